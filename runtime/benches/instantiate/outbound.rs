//! How many requests a second one replica sends to another server: each of its own requests makes one.

use std::net::SocketAddr;
use std::time::Instant;

use bytes::Bytes;
use futures::StreamExt as _;
use http_body_util::{BodyExt as _, Empty};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use wasmorch_runtime::{HttpReplica, OutboundHttp, ReplicaConfig, Runtime};

use crate::table::{Row, Unit};
use crate::{Problem, Settings, load, whole};

/// Requests under way at once.
const AT_ONCE: usize = 32;
/// More than a peer's known ceiling, by far.
const AIM: f64 = 1000.0;

/// A server on a thread of its own.
fn serve() -> Result<SocketAddr, Problem> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let executor = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    // It ends with the process.
    std::thread::spawn(move || {
        executor.block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener)?;
            loop {
                let (mut stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                tokio::spawn(async move {
                    let mut buffer = [0; 4096];
                    while stream.read(&mut buffer).await.is_ok_and(|n| n > 0) {
                        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nserved";
                        if stream.write_all(answer).await.is_err() {
                            break;
                        }
                    }
                });
            }
            #[allow(unreachable_code, reason = "names the type of the errors above")]
            Ok::<(), std::io::Error>(())
        })
    });
    Ok(address)
}

/// Two rows: by a replica, and by a client of the same kind without one.
pub(crate) async fn measure(runtime: &Runtime, settings: &Settings) -> Result<Vec<Row>, Problem> {
    let address = serve()?;
    let artifact = load(runtime, settings.guest("fetcher-http")?).await?;
    let config = ReplicaConfig {
        outbound: OutboundHttp::allow([address.to_string().parse()?]),
        ..ReplicaConfig::new("bench")
    };
    let replica = HttpReplica::prepare(runtime, &artifact, config)?;
    let client: Client<_, Empty<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
    let what = format!("outbound requests, {AT_ONCE} at once, a fresh instance for each");
    let mut ours = Row::new(what, "wasmorch", Unit::PerSecond).aim(AIM);
    let mut theirs = Row::new("the same without a guest", "bare hyper", Unit::PerSecond);
    let path = format!("/fetch?http://{address}/");
    for turn in 0..=settings.turns {
        let began = Instant::now();
        let all = futures::stream::iter(0..settings.requests).map(|_| whole(&replica, &path));
        let mut all = all.buffer_unordered(AT_ONCE);
        while let Some(answer) = all.next().await {
            expect(&answer?)?;
        }
        let took = began.elapsed() / settings.requests;
        let began = Instant::now();
        let url: http::Uri = format!("http://{address}/").parse()?;
        let all = futures::stream::iter(0..settings.requests).map(|_| async {
            let response = client.get(url.clone()).await?;
            Ok::<_, Problem>(response.into_body().collect().await?.to_bytes())
        });
        let mut all = all.buffer_unordered(AT_ONCE);
        while let Some(answer) = all.next().await {
            expect(&answer?)?;
        }
        // The first turn makes the connections.
        if turn > 0 {
            ours.push_time(took);
            theirs.push_time(began.elapsed() / settings.requests);
        }
    }
    Ok(vec![ours, theirs])
}

fn expect(body: &Bytes) -> Result<(), Problem> {
    match &body[..] {
        b"served" => Ok(()),
        other => Err(format!("answered {}", String::from_utf8_lossy(other)).into()),
    }
}
