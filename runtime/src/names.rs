//! Looking names up: bounded for each replica, since every look-up holds a thread of those that all
//! replicas share.

use std::io;
use std::net::{IpAddr, ToSocketAddrs as _};
use std::sync::Arc;

use tokio::sync::Semaphore;

/// Look-ups of one replica at once.
const LOOKUPS_MAX: usize = 16;

/// Asks the system's resolver. Clones share the bound.
#[derive(Debug, Clone)]
pub(crate) struct Resolver(Arc<Semaphore>);

impl Resolver {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Semaphore::new(LOOKUPS_MAX)))
    }

    /// The addresses of a name, or the address that it is.
    pub(crate) async fn look_up(&self, host: &str) -> io::Result<Vec<IpAddr>> {
        if let Ok(ip) = host.parse::<IpAddr>() {
            return Ok(vec![ip]);
        }
        let place = self.0.clone().acquire_owned().await;
        let (place, host) = (place.expect("it is never closed"), host.to_owned());
        // The thread goes on when nobody waits any more, and keeps its place until it ends.
        let looking = tokio::task::spawn_blocking(move || {
            let _place = place;
            let found = (host.as_str(), 0).to_socket_addrs()?;
            Ok(found.map(|found| found.ip().to_canonical()).collect())
        });
        looking.await.map_err(io::Error::other)?
    }
}
