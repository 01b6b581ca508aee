//! The sockets of one replica: what it was granted, held against each address that is used and each
//! name that is looked up.

use std::collections::{BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex as BriefMutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Mutex;
use wasmtime_wasi::WasiCtxBuilder;
use wasmtime_wasi::sockets::SocketAddrUse;

use super::{Network, SocketHost, SocketPattern, complete};
use crate::names::Resolver;
use crate::outbound::address::is_restricted;
use crate::refusals::{Refusals, Refused};

/// What a granted name was found to be is believed for so long: a check is made for every
/// datagram.
const BELIEVED_FOR: Duration = Duration::from_secs(5);
/// The longest name: one of 253 letters, each of which may have been four bytes before it was encoded.
const NAME_BYTES_MAX: usize = 4 * 253;
/// So many who asked something are remembered.
const ASKERS_MAX: usize = 256;

/// What one replica may do by sockets.
#[derive(Debug)]
pub(crate) struct Sockets {
    network: Network,
    names: Vec<Known>,
    resolver: Resolver,
    refusals: Arc<Refusals>,
    /// Without any grant it has had one socket with a port, by whose use it shows where it was to lead.
    tried: AtomicBool,
}

/// A granted name.
#[derive(Debug)]
struct Known {
    name: String,
    /// When it was last looked up, and what it was then; nothing: it could not be resolved. Who
    /// looks it up holds it meanwhile, so that all others wait for the same answer.
    found: Mutex<Option<(Instant, Vec<IpAddr>)>>,
}

/// Why a guest gets no addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LookupError {
    /// The name is not one that it was granted.
    Denied,
    /// It is no name.
    Invalid,
    /// Nothing is known under it.
    Unresolvable,
}

impl Sockets {
    pub(crate) fn new(network: Network, refusals: Arc<Refusals>) -> Self {
        let patterns = match &network {
            Network::Allow { connect, .. } => connect.as_slice(),
            Network::Denied | Network::Any => &[],
        };
        let granted: BTreeSet<String> = patterns
            .iter()
            .filter_map(|pattern| match &pattern.host {
                SocketHost::Name(name) => Some(name.clone()),
                SocketHost::Any | SocketHost::Range(..) => None,
            })
            .collect();
        let names = granted.into_iter().map(|name| Known {
            name,
            found: Mutex::default(),
        });
        Self {
            network,
            names: names.collect(),
            resolver: Resolver::new(),
            refusals,
            tried: AtomicBool::new(false),
        }
    }

    /// Gives an instance what the replica was granted. Names are looked up by [`Self::resolve`] alone.
    pub(crate) fn apply(self: &Arc<Self>, wasi: &mut WasiCtxBuilder) {
        wasi.allow_tcp(true).allow_udp(true);
        match &self.network {
            Network::Any => {
                wasi.inherit_network();
            }
            // It may make sockets that lead nowhere: so it is known where they were to lead.
            Network::Denied => {
                let sockets = self.clone();
                wasi.socket_addr_check(move |address, usage| {
                    let clients = is_clients_bind(address, usage);
                    // One port is held so, and not as many as a guest may have handles.
                    let allows = clients && !sockets.tried.swap(true, Relaxed);
                    match clients {
                        true if allows => {}
                        true => sockets.refusals.tell(Refused::Connect(None)),
                        false => sockets.tell(address, usage),
                    }
                    Box::pin(async move { allows })
                });
            }
            Network::Allow { connect, listen } => {
                let allowed = Arc::new(Allowed {
                    connect: connect.clone(),
                    listen: listen.clone(),
                    sockets: self.clone(),
                    askers: BriefMutex::default(),
                });
                wasi.socket_addr_check(move |address, usage| {
                    let allowed = allowed.clone();
                    Box::pin(async move {
                        let allows = allowed.allows(address, usage).await;
                        if !allows {
                            allowed.sockets.tell(address, usage);
                        }
                        allows
                    })
                });
            }
        }
    }

    /// Tells of what was refused. Whose datagrams a guest does not get is no doing of its own.
    fn tell(&self, address: SocketAddr, usage: SocketAddrUse) {
        let refused = match usage {
            SocketAddrUse::TcpConnect | SocketAddrUse::UdpSend => Refused::Connect(Some(address)),
            SocketAddrUse::TcpBind | SocketAddrUse::TcpListen | SocketAddrUse::UdpBind => {
                Refused::Listen(address.port())
            }
            SocketAddrUse::TcpAccept | SocketAddrUse::UdpReceive => return,
        };
        self.refusals.tell(refused);
    }

    /// The addresses of a name that a guest looks up. Who may reach every public address may look up
    /// every name, and is told its public addresses.
    pub(super) async fn resolve(&self, name: &str) -> Result<Vec<IpAddr>, LookupError> {
        self.may_ask(name)?;
        let name = match url::Host::parse(name) {
            Ok(url::Host::Domain(name)) => name,
            Ok(url::Host::Ipv4(ip)) => return Ok(vec![ip.into()]),
            Ok(url::Host::Ipv6(ip)) => return Ok(vec![ip.into()]),
            // Without its brackets it is one all the same.
            Err(_) => match name.parse::<Ipv6Addr>() {
                Ok(ip) => return Ok(vec![ip.into()]),
                Err(_) => return Err(LookupError::Invalid),
            },
        };
        let name = complete(&name);
        let found = match &self.network {
            Network::Denied => return Err(self.denied(&name)),
            Network::Any => self.look_up(&name).await,
            Network::Allow { .. } if self.known(&name).is_some() => self.addresses(&name).await,
            Network::Allow { connect, .. }
                if connect.iter().any(|one| one.host == SocketHost::Any) =>
            {
                let found = self.look_up(&name).await;
                found.into_iter().filter(|ip| !is_restricted(*ip)).collect()
            }
            Network::Allow { .. } => return Err(self.denied(&name)),
        };
        if found.is_empty() {
            return Err(LookupError::Unresolvable);
        }
        Ok(found)
    }

    /// What can be said without reading a name. Who has no network is told nothing at all, and what is
    /// longer than any name is not kept for a moment: the guest pays nothing for it.
    pub(super) fn may_ask(&self, name: &str) -> Result<(), LookupError> {
        match self.network {
            Network::Denied => Err(self.denied(name)),
            _ if name.len() > NAME_BYTES_MAX => Err(LookupError::Invalid),
            Network::Any | Network::Allow { .. } => Ok(()),
        }
    }

    fn denied(&self, name: &str) -> LookupError {
        self.refusals.tell(Refused::Lookup(name));
        LookupError::Denied
    }

    fn known(&self, name: &str) -> Option<&Known> {
        self.names.iter().find(|known| known.name == name)
    }

    /// What a granted name is; nothing where it cannot be resolved.
    async fn addresses(&self, name: &str) -> Vec<IpAddr> {
        let Some(known) = self.known(name) else {
            return Vec::new();
        };
        let mut found = known.found.lock().await;
        if let Some((at, addresses)) = &*found
            && at.elapsed() < BELIEVED_FOR
        {
            return addresses.clone();
        }
        let addresses = self.look_up(name).await;
        *found = Some((Instant::now(), addresses.clone()));
        addresses
    }

    async fn look_up(&self, name: &str) -> Vec<IpAddr> {
        self.resolver.look_up(name).await.unwrap_or_else(|error| {
            tracing::debug!(name, %error, "a name cannot be resolved");
            Vec::new()
        })
    }
}

/// The port is the operating system's choice: the implicit bind of a client.
fn is_clients_bind(address: SocketAddr, usage: SocketAddrUse) -> bool {
    matches!(usage, SocketAddrUse::TcpBind | SocketAddrUse::UdpBind) && address.port() == 0
}

/// What one instance may do, and who has asked it something.
#[derive(Debug)]
struct Allowed {
    connect: Vec<SocketPattern>,
    listen: Vec<u16>,
    sockets: Arc<Sockets>,
    /// Where datagrams came from on a port that is listened on, the newest last: they may be
    /// answered.
    askers: BriefMutex<VecDeque<SocketAddr>>,
}

impl Allowed {
    async fn allows(&self, address: SocketAddr, usage: SocketAddrUse) -> bool {
        match usage {
            _ if is_clients_bind(address, usage) => true,
            SocketAddrUse::TcpBind | SocketAddrUse::TcpListen | SocketAddrUse::UdpBind => {
                self.listen.contains(&address.port())
            }
            // Whoever reaches a port that is open to listening is welcome.
            SocketAddrUse::TcpAccept => true,
            SocketAddrUse::UdpReceive if !self.listen.is_empty() => {
                self.has_asked(address);
                true
            }
            SocketAddrUse::UdpSend if self.askers().contains(&address) => true,
            SocketAddrUse::TcpConnect | SocketAddrUse::UdpSend | SocketAddrUse::UdpReceive => {
                for pattern in &self.connect {
                    if self.matches(pattern, address).await {
                        return true;
                    }
                }
                false
            }
        }
    }

    async fn matches(&self, pattern: &SocketPattern, address: SocketAddr) -> bool {
        match (pattern.matches(address), &pattern.host) {
            (Some(known), _) => known,
            (None, SocketHost::Name(name)) => {
                let ip = address.ip().to_canonical();
                self.sockets.addresses(name).await.contains(&ip)
            }
            (None, SocketHost::Any | SocketHost::Range(..)) => false,
        }
    }

    fn askers(&self) -> MutexGuard<'_, VecDeque<SocketAddr>> {
        // A panic while it was held leaves a list that is usable.
        self.askers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has_asked(&self, address: SocketAddr) {
        let mut askers = self.askers();
        askers.retain(|known| *known != address);
        if askers.len() == ASKERS_MAX {
            askers.pop_front();
        }
        askers.push_back(address);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::NoLogs;

    fn untold(network: Network) -> Sockets {
        Sockets::new(network, Refusals::new(Arc::new(NoLogs)))
    }

    fn sockets(patterns: &[&str]) -> Arc<Sockets> {
        let connect = patterns.iter().map(|text| text.parse().unwrap());
        Arc::new(untold(Network::Allow {
            connect: connect.collect(),
            listen: Vec::new(),
        }))
    }

    fn allowed(patterns: &[&str], listen: Vec<u16>) -> Allowed {
        Allowed {
            connect: patterns.iter().map(|text| text.parse().unwrap()).collect(),
            listen,
            sockets: sockets(patterns),
            askers: BriefMutex::default(),
        }
    }

    async fn matches(pattern: &str, address: &str) -> bool {
        let connect = SocketAddrUse::TcpConnect;
        let address = address.parse().unwrap();
        allowed(&[pattern], Vec::new())
            .allows(address, connect)
            .await
    }

    #[tokio::test]
    async fn patterns_match_addresses() {
        assert!(matches("10.0.0.5:5432", "10.0.0.5:5432").await);
        assert!(!matches("10.0.0.5:5432", "10.0.0.5:5433").await);
        assert!(matches("10.0.0.0/8", "10.9.9.9:1").await);
        assert!(!matches("10.0.0.0/8", "11.0.0.1:1").await);
        assert!(matches("[::1]:80", "[::1]:80").await);
        assert!(matches("*:443", "1.1.1.1:443").await);
        assert!(!matches("*:443", "169.254.169.254:443").await);
        assert!(!matches("*", "[::ffff:127.0.0.1]:443").await);
        assert!(matches("localhost", "127.0.0.1:9").await);
        assert!(matches("LOCALHOST.:9", "127.0.0.1:9").await);
        assert!(matches("0.0.0.0/0", "127.0.0.1:9").await);
    }

    #[tokio::test]
    async fn names_are_looked_up_by_who_was_granted_them() {
        let denied = Err(LookupError::Denied);
        let found = sockets(&["localhost:1"]).resolve("LocalHost.").await;
        assert!(found.is_ok_and(|found| found.iter().all(IpAddr::is_loopback)));
        let other = sockets(&["db.example.com", "10.0.0.0/8"]);
        assert_eq!(other.resolve("localhost").await, denied);
        assert_eq!(other.resolve("x.db.example.com").await, denied);
        let long = "a".repeat(NAME_BYTES_MAX + 1);
        for wrong in ["a b", &long] {
            assert_eq!(other.resolve(wrong).await, Err(LookupError::Invalid));
        }
        let address: IpAddr = "10.0.0.1".parse().unwrap();
        assert_eq!(other.resolve("10.0.0.1").await, Ok(vec![address]));
        assert_eq!(untold(Network::Denied).resolve("::1").await, denied);
        // Who may reach every public address learns nothing of those that are not.
        let public = sockets(&["*"]).resolve("localhost").await;
        assert_eq!(public, Err(LookupError::Unresolvable));
    }

    #[tokio::test]
    async fn a_name_is_looked_up_once_for_many_checks() {
        let allowed = allowed(&["localhost"], Vec::new());
        let address = "127.0.0.1:9".parse().unwrap();
        let send = SocketAddrUse::UdpSend;
        assert!(allowed.allows(address, send).await);
        let known = allowed.sockets.known("localhost").unwrap();
        let first = known.found.lock().await.clone().unwrap();
        for _ in 0..1000 {
            assert!(allowed.allows(address, send).await);
        }
        assert_eq!(known.found.lock().await.clone(), Some(first));
        // What it was is not believed for ever.
        let long_ago = Instant::now().checked_sub(2 * BELIEVED_FOR).unwrap();
        *known.found.lock().await = Some((long_ago, Vec::new()));
        assert!(allowed.allows(address, send).await);
    }

    #[tokio::test]
    async fn listening_needs_its_port() {
        let local: SocketAddr = "0.0.0.0:9000".parse().unwrap();
        let listening = |port| allowed(&[], vec![port]);
        let tcp = SocketAddrUse::TcpListen;
        assert!(listening(9000).allows(local, tcp).await);
        assert!(!listening(9001).allows(local, tcp).await);
    }

    #[tokio::test]
    async fn datagrams_are_answered_and_sent_to_nobody_else() {
        let listening = allowed(&[], vec![9000]);
        let asker = |port| SocketAddr::from(([10, 0, 0, 1], port));
        let (receive, send) = (SocketAddrUse::UdpReceive, SocketAddrUse::UdpSend);
        assert!(!listening.allows(asker(1), send).await);
        assert!(listening.allows(asker(1), receive).await);
        assert!(listening.allows(asker(1), send).await);
        assert!(!listening.allows(asker(2), send).await);
        for port in 2..=300 {
            assert!(listening.allows(asker(port), receive).await);
        }
        assert!(!listening.allows(asker(1), send).await, "long ago");
        assert_eq!(listening.askers().len(), ASKERS_MAX);
    }
}
