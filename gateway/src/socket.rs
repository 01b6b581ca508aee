//! What every TCP connection of a gateway is told when it begins.

use std::io;

use tokio::net::TcpStream;

/// What may wait in the kernel to be sent. What is said on a connection stands behind it: a ping and
/// its answer must not wait for the megabytes that a socket takes, or a slow link looks like a dead peer.
#[cfg(target_os = "linux")]
const UNSENT_BYTES_MAX: u32 = 128 * 1024;

/// Small messages are sent at once, and few bytes wait before them.
pub(crate) fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    #[cfg(target_os = "linux")]
    if let Err(error) = socket2::SockRef::from(stream).set_tcp_notsent_lowat(UNSENT_BYTES_MAX) {
        // It works without, but for pings on slow links.
        tracing::debug!(%error, "unsent bytes of connections have no bound");
    }
    Ok(())
}
