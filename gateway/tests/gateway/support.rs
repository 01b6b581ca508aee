//! Hosts with made-up replicas, and clients that say exactly what they send.

use std::future::Future;
use std::net::{SocketAddr, TcpListener};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Empty, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use wasmorch_api::{
    ClusterId, EndpointTable, HostEndpoint, Kind, Route, RouteTable, Term, WorkloadKey,
};
use wasmorch_gateway::{Body, Gateway, GatewayConfig, Local, LocalError, Server, Tables};

pub(crate) type Handled = Result<Response<Body>, LocalError>;
pub(crate) type Handle =
    Box<dyn Fn(Request<Body>) -> Pin<Box<dyn Future<Output = Handled> + Send>> + Send + Sync>;

/// A replica that does as the test says.
pub(crate) struct Fake {
    pub(crate) ready: AtomicU32,
    pub(crate) has_room: AtomicBool,
    /// Added to what is in hand.
    pub(crate) load: AtomicU32,
    pub(crate) calls: AtomicU32,
    handle: Handle,
}

#[async_trait::async_trait]
impl Local for Fake {
    fn ready(&self, _: &WorkloadKey) -> u32 {
        self.ready.load(Relaxed)
    }
    fn has_room(&self, _: &WorkloadKey) -> bool {
        self.has_room.load(Relaxed)
    }
    fn load(&self, _: &WorkloadKey) -> u32 {
        self.load.load(Relaxed)
    }
    async fn handle(&self, _: &WorkloadKey, request: Request<Body>) -> Handled {
        self.calls.fetch_add(1, Relaxed);
        (self.handle)(request).await
    }
}

pub(crate) fn handler<F>(handle: impl Fn(Request<Body>) -> F + Send + Sync + 'static) -> Handle
where
    F: Future<Output = Handled> + Send + 'static,
{
    Box::new(move |request| Box::pin(handle(request)))
}

/// Answers with a text.
pub(crate) fn says(text: &'static str) -> Handle {
    handler(move |_| async move { Ok(Response::new(full(text))) })
}

/// Answers with the request's headers, a line each, and its hops.
pub(crate) fn tells_headers() -> Handle {
    handler(|request| async move {
        let hops = request.extensions().get::<wasmorch_gateway::Hops>();
        let mut text = format!("{} {} hops={hops:?}\n", request.method(), request.uri());
        for (name, value) in request.headers() {
            text.push_str(&format!("{name}={}\n", value.to_str().unwrap()));
        }
        Ok(Response::new(full(text)))
    })
}

/// Answers with the request's body as it comes.
pub(crate) fn echoes() -> Handle {
    handler(|request| async move { Ok(Response::new(request.into_body())) })
}

/// Never answers.
pub(crate) fn hangs() -> Handle {
    handler(|_| std::future::pending())
}

/// Reads all of the body, and tells as a runtime does when there is none.
pub(crate) fn reads() -> Handle {
    handler(|request| async {
        match request.into_body().collect().await {
            Ok(body) => Ok(Response::new(full(body.to_bytes()))),
            Err(error) => Err(LocalError::Broken {
                reason: error.to_string(),
            }),
        }
    })
}

pub(crate) fn full(text: impl Into<Bytes>) -> Body {
    Full::new(text.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

pub(crate) fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// A gateway with a replica behind it.
pub(crate) struct Host {
    pub(crate) http: SocketAddr,
    pub(crate) peer: SocketAddr,
    pub(crate) tables: Tables,
    pub(crate) gateway: Gateway,
    pub(crate) fake: Arc<Fake>,
    pub(crate) shutdown: CancellationToken,
    pub(crate) task: Option<JoinHandle<()>>,
}

impl Host {
    pub(crate) fn start(name: &'static str, ready: u32, handle: Handle) -> Self {
        Self::start_with(name, ready, handle, |_| {})
    }

    pub(crate) fn start_with(
        name: &'static str,
        ready: u32,
        handle: Handle,
        change: impl FnOnce(&mut GatewayConfig),
    ) -> Self {
        Self::start_at(name, ready, handle, "127.0.0.1:0".parse().unwrap(), change)
    }

    /// With its peer port at an address.
    pub(crate) fn start_at(
        name: &'static str,
        ready: u32,
        handle: Handle,
        peer: SocketAddr,
        change: impl FnOnce(&mut GatewayConfig),
    ) -> Self {
        let http = TcpListener::bind("127.0.0.1:0").unwrap();
        let peer = TcpListener::bind(peer).unwrap();
        let (http_at, peer_at) = (http.local_addr().unwrap(), peer.local_addr().unwrap());
        let mut config = GatewayConfig::new(http, Some(peer), name.parse().unwrap(), "localhost");
        config.development = true;
        change(&mut config);
        let fake = Arc::new(Fake {
            ready: AtomicU32::new(ready),
            has_room: AtomicBool::new(true),
            load: AtomicU32::new(0),
            calls: AtomicU32::new(0),
            handle,
        });
        let tables = Tables::new();
        tables.apply_routes(routes(&["shop.example.com/"]), 1);
        let shutdown = CancellationToken::new();
        let server = Server::new(config, tables.clone(), fake.clone()).unwrap();
        let gateway = server.gateway();
        let task = Some(tokio::spawn(server.run(shutdown.clone())));
        Self {
            http: http_at,
            peer: peer_at,
            tables,
            gateway,
            fake,
            shutdown,
            task,
        }
    }

    /// Tells of the hosts that serve the workload.
    pub(crate) fn sees(&self, hosts: &[(&str, SocketAddr)]) {
        let hosts = hosts
            .iter()
            .map(|(name, peer)| endpoint(name, *peer))
            .collect();
        let sequence = self.tables.sequence() + 1;
        self.tables.apply_endpoints(endpoints(hosts), sequence);
    }

    pub(crate) fn calls(&self) -> u32 {
        self.fake.calls.load(Relaxed)
    }

    pub(crate) async fn stop(mut self) {
        self.shutdown.cancel();
        within(self.task.take().unwrap()).await.unwrap();
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

pub(crate) fn web() -> WorkloadKey {
    WorkloadKey::new("default".parse().unwrap(), "web".parse().unwrap())
}

pub(crate) fn routes(routes: &[&str]) -> RouteTable {
    RouteTable {
        cluster: ClusterId::from_random([0; 10]),
        term: Term(1),
        namespace: web().namespace,
        workload: web().name,
        kind: Kind::Http,
        routes: routes
            .iter()
            .map(|route| Route::parse(route).unwrap())
            .collect(),
        timeout: None,
    }
}

pub(crate) fn endpoints(hosts: Vec<HostEndpoint>) -> EndpointTable {
    EndpointTable {
        cluster: ClusterId::from_random([0; 10]),
        term: Term(1),
        namespace: web().namespace,
        workload: web().name,
        hosts,
        canary: None,
    }
}

pub(crate) fn endpoint(host: &str, peer: SocketAddr) -> HostEndpoint {
    HostEndpoint {
        host: host.parse().unwrap(),
        peer: Some(peer.to_string().into()),
        ready: 1,
        standby: None,
        weight: 1,
        canary: 0,
        zone: None,
    }
}

/// An address where nothing listens.
pub(crate) fn nowhere() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
}

/// A deadline for what should happen soon.
pub(crate) async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(20), future)
        .await
        .expect("it takes too long")
}

/// Waits for a condition.
pub(crate) async fn until(what: &str, condition: impl Fn() -> bool) {
    let met = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), met)
        .await
        .unwrap_or_else(|_| panic!("{what}"));
}

/// Sends bytes, reads until the other side closes.
pub(crate) async fn raw(address: SocketAddr, bytes: &[u8]) -> String {
    within(async {
        let mut stream = TcpStream::connect(address).await.unwrap();
        // The other side may close before all is sent.
        let _ = stream.write_all(bytes).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8_lossy(&answer).into_owned()
    })
    .await
}

/// A request by HTTP/1.1 with some header lines; the whole answer as text.
pub(crate) async fn ask(address: SocketAddr, line: &str, lines: &[&str]) -> String {
    let lines: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
    raw(
        address,
        format!("{line} HTTP/1.1\r\nconnection: close\r\n{lines}\r\n").as_bytes(),
    )
    .await
}

/// A request to the workload by its built-in name; status and body.
pub(crate) async fn get(address: SocketAddr) -> (u16, String) {
    let answer = ask(address, "GET /", &["host: web.default.localhost"]).await;
    (status(&answer), body(&answer))
}

pub(crate) fn status(answer: &str) -> u16 {
    answer
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok())
        .unwrap_or_else(|| panic!("{answer:?}"))
}

pub(crate) fn body(answer: &str) -> String {
    answer
        .split_once("\r\n\r\n")
        .map(|(_, body)| body.to_owned())
        .unwrap_or_default()
}

pub(crate) struct H1(hyper::client::conn::http1::SendRequest<Body>);
#[derive(Clone)]
pub(crate) struct H2(hyper::client::conn::http2::SendRequest<Body>);

impl H1 {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let io = TokioIo::new(TcpStream::connect(address).await.unwrap());
        let (sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
        tokio::spawn(connection);
        Self(sender)
    }

    pub(crate) async fn send(
        &mut self,
        request: Request<Body>,
    ) -> hyper::Result<Response<hyper::body::Incoming>> {
        within(self.0.send_request(request)).await
    }
}

impl H2 {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let io = TokioIo::new(TcpStream::connect(address).await.unwrap());
        let (sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io)
            .await
            .unwrap();
        tokio::spawn(connection);
        Self(sender)
    }

    pub(crate) async fn send(
        &mut self,
        request: Request<Body>,
    ) -> hyper::Result<Response<hyper::body::Incoming>> {
        within(self.0.send_request(request)).await
    }
}

pub(crate) async fn text<B: http_body::Body<Error: std::fmt::Debug>>(
    response: Response<B>,
) -> String {
    let bytes = within(response.into_body().collect())
        .await
        .unwrap()
        .to_bytes();
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// A body that the test writes piece by piece.
pub(crate) fn piped() -> (futures::channel::mpsc::UnboundedSender<&'static str>, Body) {
    use futures::StreamExt as _;
    let (sender, receiver) = futures::channel::mpsc::unbounded();
    let frames = receiver.map(|text: &str| Ok(http_body::Frame::data(Bytes::from(text))));
    (
        sender,
        http_body_util::StreamBody::new(frames).boxed_unsync(),
    )
}
