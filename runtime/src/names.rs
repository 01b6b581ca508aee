//! Looking names up: bounded for each replica and for all of a process, since every look-up holds a thread
//! of those that all replicas share.

use std::io;
use std::net::{IpAddr, ToSocketAddrs as _};
use std::sync::Arc;

use tokio::sync::Semaphore;

/// Look-ups of one replica at once.
const LOOKUPS_MAX: usize = 16;
/// And of all: a quarter of the threads that tokio has for what may block. Files need them too.
const ALL_LOOKUPS_MAX: usize = 128;

static ALL: Semaphore = Semaphore::const_new(ALL_LOOKUPS_MAX);

/// Asks the system's resolver. Clones share the bound.
#[derive(Debug, Clone)]
pub(crate) struct Resolver {
    own: Arc<Semaphore>,
    all: &'static Semaphore,
}

impl Resolver {
    pub(crate) fn new() -> Self {
        Self {
            own: Arc::new(Semaphore::new(LOOKUPS_MAX)),
            all: &ALL,
        }
    }

    /// The addresses of a name, or the address that it is.
    pub(crate) async fn look_up(&self, host: &str) -> io::Result<Vec<IpAddr>> {
        if let Ok(ip) = host.parse::<IpAddr>() {
            return Ok(vec![ip]);
        }
        let own = self.own.clone().acquire_owned().await;
        let place = (own, self.all.acquire().await);
        let host = host.to_owned();
        // The thread goes on when nobody waits any more, and keeps its place until it ends.
        let looking = tokio::task::spawn_blocking(move || {
            let _place = place;
            let found = (host.as_str(), 0).to_socket_addrs()?;
            Ok(found.map(|found| found.ip().to_canonical()).collect())
        });
        looking.await.map_err(io::Error::other)?
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    /// Time passes while no thread works.
    #[tokio::test(start_paused = true)]
    async fn replicas_share_a_bound() {
        static ONE: Semaphore = Semaphore::const_new(1);
        let resolver = Resolver {
            all: &ONE,
            ..Resolver::new()
        };
        let look_up = || timeout(Duration::from_secs(1), resolver.look_up("localhost"));
        let taken = ONE.acquire().await.unwrap();
        assert!(look_up().await.is_err(), "another replica looks one up");
        drop(taken);
        assert!(look_up().await.is_ok());
        assert_eq!(ONE.available_permits(), 1);
    }
}
