//! Connecting: resolve, refuse private addresses, TCP, TLS.
//!
//! The address is checked where the connection is made, after the name was resolved and in the
//! same breath, so no second answer of a name server is trusted. Pooled connections were checked
//! when they were made.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsConnector;

use super::address::is_restricted;
use super::client::IDLE_TIMEOUT;
use super::{HostPattern, IN_HAND_MAX};
use crate::names::Resolver;

/// How long a connection may take, TLS included, whatever the guest asks for.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// Connections of one replica in one runner, as many as requests in hand, those included that are kept
/// for later: each is a descriptor of a process that others share. Who waits for one that is kept
/// gets it within twice its idle time-out.
const CONNECTIONS_MAX: usize = IN_HAND_MAX;
const _: () = assert!(2 * IDLE_TIMEOUT.as_secs() < CONNECT_TIMEOUT.as_secs());

/// Why no connection was made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error("the authority has no host")]
    NoHost,
    #[error("`{0}` cannot be resolved")]
    Resolve(String, #[source] io::Error),
    #[error("`{host}` resolves to {ip}, which is not public; name the address itself to allow it")]
    Restricted { host: String, ip: IpAddr },
    #[error("connecting failed")]
    Tcp(#[source] io::Error),
    #[error("TLS failed")]
    Tls(#[source] io::Error),
    #[error("connecting took too long")]
    Timeout,
}

/// Makes the connections of one replica.
#[derive(Clone)]
pub(crate) struct Connector {
    patterns: Arc<[HostPattern]>,
    connections: Arc<Semaphore>,
    names: Resolver,
}

impl Connector {
    pub(crate) fn new(patterns: Arc<[HostPattern]>) -> Self {
        Self {
            patterns,
            connections: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            names: Resolver::new(),
        }
    }

    async fn connect(self, uri: Uri) -> Result<TokioIo<Stream>, ConnectError> {
        let host = uri.host().ok_or(ConnectError::NoHost)?;
        let host = host
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_ascii_lowercase();
        let secure = uri.scheme() == Some(&http::uri::Scheme::HTTPS);
        let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let addresses = self.resolve(&host, port).await?;
        let open = take(&self.connections).await;
        let tcp = dial(&addresses).await.map_err(ConnectError::Tcp)?;
        // Small requests must not wait for an acknowledgement of the one before.
        let _ = tcp.set_nodelay(true);
        if !secure {
            return Ok(TokioIo::new(Stream::new(Transport::Plain(tcp), open)));
        }
        let name = ServerName::try_from(host).map_err(|error| {
            ConnectError::Tls(io::Error::new(io::ErrorKind::InvalidInput, error))
        })?;
        let tls = TlsConnector::from(tls_config()?).connect(name, tcp).await;
        let tls = Transport::Tls(Box::new(tls.map_err(ConnectError::Tls)?));
        Ok(TokioIo::new(Stream::new(tls, open)))
    }

    /// The addresses of a host that may be used: all, when it was named literally.
    async fn resolve(&self, host: &str, port: u16) -> Result<Vec<SocketAddr>, ConnectError> {
        let literal = self
            .patterns
            .iter()
            .any(|p| p.is_literal() && p.matches(host, port));
        let found = self.names.look_up(host).await;
        let found = found.map_err(|error| ConnectError::Resolve(host.to_owned(), error))?;
        let mut refused = None;
        let mut allowed = Vec::new();
        for ip in found {
            if literal || !is_restricted(ip) {
                allowed.push(SocketAddr::new(ip, port));
            } else {
                refused = Some(ip);
            }
        }
        match refused {
            Some(ip) if allowed.is_empty() => Err(ConnectError::Restricted {
                host: host.to_owned(),
                ip,
            }),
            _ => Ok(allowed),
        }
    }
}

/// `None` never: nobody closes them.
async fn take(semaphore: &Arc<Semaphore>) -> Option<OwnedSemaphorePermit> {
    semaphore.clone().acquire_owned().await.ok()
}

async fn dial(addresses: &[SocketAddr]) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// The roots of the system, or Mozilla's where the system has none. Read once.
fn tls_config() -> Result<Arc<rustls::ClientConfig>, ConnectError> {
    static CONFIG: OnceLock<Arc<rustls::ClientConfig>> = OnceLock::new();
    if let Some(config) = CONFIG.get() {
        return Ok(config.clone());
    }
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| ConnectError::Tls(io::Error::other(error)))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(CONFIG.get_or_init(|| Arc::new(config)).clone())
}

impl tower_service::Service<Uri> for Connector {
    type Response = TokioIo<Stream>;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, ConnectError>> + Send>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connector = self.clone();
        Box::pin(async move {
            tokio::time::timeout(CONNECT_TIMEOUT, connector.connect(uri))
                .await
                .unwrap_or(Err(ConnectError::Timeout))
        })
    }
}

/// A connection, with its place among those of the replica.
pub(crate) struct Stream {
    transport: Transport,
    _open: Option<OwnedSemaphorePermit>,
}

impl Stream {
    fn new(transport: Transport, open: Option<OwnedSemaphorePermit>) -> Self {
        Self {
            transport,
            _open: open,
        }
    }
}

/// Encrypted or not.
enum Transport {
    Plain(TcpStream),
    Tls(Box<tokio_rustls::client::TlsStream<TcpStream>>),
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.get_mut().transport {
            Transport::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Transport::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().transport {
            Transport::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Transport::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().transport {
            Transport::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Transport::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().transport {
            Transport::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Transport::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
