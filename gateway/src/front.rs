//! What a connection begins with, before its HTTP: who it is from (PROXY protocol), then TLS.
//!
//! Owns the order of the two. How long it may take is the sweep's (`connections`).

use std::net::SocketAddr;
use std::sync::Arc;

use rustls::ServerConfig;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::BoxError;
use crate::headers::Client;
use crate::proxy_protocol;
use crate::tls::Certificates;

/// The first byte of a TLS connection: a handshake record (RFC 8446, 5.1).
const HANDSHAKE: u8 = 0x16;
/// How much of what a client that does not speak TLS sends is read, bytes.
const MOST_UNREAD: u64 = 256 * 1024;
/// What a client that does not speak TLS is told.
const SPEAK_TLS: &[u8] = b"HTTP/1.1 400 Bad Request\r\nwasmorch-error: bad-request\r\n\
content-type: text/plain; charset=utf-8\r\ncontent-length: 44\r\nconnection: close\r\n\r\n\
this port speaks TLS: write https, not http\n";

/// How connections of a port begin. By default: with HTTP.
#[derive(Debug, Default)]
pub(crate) struct Front {
    pub(crate) proxy_protocol: bool,
    pub(crate) tls: Option<watch::Receiver<Option<Certificates>>>,
}

/// A connection that is about to speak HTTP.
pub(crate) enum Opened {
    Plain(TcpStream),
    Secure(Box<TlsStream<TcpStream>>),
}

impl Front {
    pub(crate) fn is_plain(&self) -> bool {
        self.tls.is_none()
    }

    pub(crate) async fn open(
        &self,
        mut stream: TcpStream,
        mut address: SocketAddr,
    ) -> Result<(Opened, Client), BoxError> {
        if self.proxy_protocol
            && let Some(client) = proxy_protocol::read(&mut stream).await?
        {
            address = client;
        }
        let Some(certificates) = &self.tls else {
            return Ok((Opened::Plain(stream), Client::new(address, false)));
        };
        let config = newest(certificates).await?;
        let mut first = [0];
        if stream.peek(&mut first).await? == 1 && first[0] != HANDSHAKE {
            tell_to_speak_tls(stream).await?;
            return Err("it does not speak TLS".into());
        }
        let stream = TlsAcceptor::from(config).accept(stream).await?;
        let opened = Opened::Secure(Box::new(stream));
        Ok((opened, Client::new(address, true)))
    }
}

/// Answers a client that does not speak TLS, and closes. What it still sends is read until it
/// closes too: a close over unread bytes is a reset, which makes the client lose the answer
/// (RFC 9112, 9.6). How long that may take is bounded as the rest of the opening is.
async fn tell_to_speak_tls(mut stream: TcpStream) -> std::io::Result<()> {
    stream.write_all(SPEAK_TLS).await?;
    stream.shutdown().await?;
    let mut rest = (&mut stream).take(MOST_UNREAD);
    tokio::io::copy(&mut rest, &mut tokio::io::sink()).await?;
    Ok(())
}

/// The certificates in force, waiting for the first ones.
async fn newest(
    certificates: &watch::Receiver<Option<Certificates>>,
) -> Result<Arc<ServerConfig>, BoxError> {
    let mut certificates = certificates.clone();
    let newest = certificates.wait_for(Option::is_some).await?;
    let newest = newest.as_ref().ok_or("there are no certificates")?;
    Ok(newest.config.clone())
}
