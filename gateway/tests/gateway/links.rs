//! Links between hosts that are slow, or that carry nothing any more.

use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use http::{Request, Response};
use http_body_util::BodyExt as _;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::support::*;

/// What a link reads at once.
const CHUNK_BYTES: usize = 8 * 1024;

/// A way to a host that carries so many bytes a second there, and all that comes back; nothing in
/// either direction while it is cut.
struct Link {
    at: std::net::SocketAddr,
    cut: watch::Sender<bool>,
    _tasks: JoinSet<()>,
}

impl Link {
    fn to(host: std::net::SocketAddr, bytes_per_second: usize) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        // Or the link would hold megabytes by itself.
        socket.set_recv_buffer_size(CHUNK_BYTES as u32).unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(16).unwrap();
        let at = listener.local_addr().unwrap();
        let (cut, is_cut) = watch::channel(false);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((near, _)) = listener.accept().await {
                let far = TcpStream::connect(host).await.unwrap();
                let (near_in, near_out) = near.into_split();
                let (far_in, far_out) = far.into_split();
                let pause = Duration::from_secs(1) * CHUNK_BYTES as u32 / bytes_per_second as u32;
                connections.spawn(carry(near_in, far_out, Some(pause), is_cut.clone()));
                connections.spawn(carry(far_in, near_out, None, is_cut.clone()));
            }
        });
        Self {
            at,
            cut,
            _tasks: tasks,
        }
    }
}

/// A chunk in every `pause`, until either side is gone.
async fn carry(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    pause: Option<Duration>,
    mut is_cut: watch::Receiver<bool>,
) {
    let mut turns = pause.map(interval);
    if let Some(turns) = &mut turns {
        turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
    }
    let mut chunk = [0; CHUNK_BYTES];
    loop {
        if let Some(turns) = &mut turns {
            turns.tick().await;
        }
        if is_cut.wait_for(|cut| !cut).await.is_err() {
            return;
        }
        let Ok(read @ 1..) = from.read(&mut chunk).await else {
            return;
        };
        if to.write_all(&chunk[..read]).await.is_err() {
            return;
        }
    }
}

/// Two megabytes at 160 KiB a second take 13 s. Were they all in the socket's buffer, the answer to a
/// ping would take as long, and the host would count as gone.
#[tokio::test]
async fn uploads_over_a_slow_link_do_not_make_its_host_look_gone() {
    const BODY_BYTES: usize = 256 * 1024;
    let there = Host::start(
        "there",
        1,
        handler(|request| async move {
            let body = request.into_body().collect().await;
            let bytes = body.map_or(0, |body| body.to_bytes().len());
            Ok(Response::new(full(bytes.to_string())))
        }),
    );
    let link = Link::to(there.peer, 160 * 1024);
    let here = Host::start_with("here", 0, says("never"), |config| {
        config.limits.peer_connections = 1;
    });
    here.sees(&[("there", link.at)]);
    let web = web();
    let body = Bytes::from(vec![b'x'; BODY_BYTES]);
    let uploads = (0..8).map(|_| {
        let request = Request::post("/").body(full(body.clone())).unwrap();
        here.gateway.dispatch(&web, request)
    });
    let answers = timeout(Duration::from_secs(60), join_all(uploads)).await;
    for answer in answers.expect("the link is slow, not cut") {
        assert_eq!(answer.status(), 200);
        assert_eq!(text(answer).await, BODY_BYTES.to_string());
    }
    here.stop().await;
    there.stop().await;
}

/// Without power a host closes no connection: what waits there waits for as long as it takes to see
/// that, and no longer.
#[tokio::test]
async fn what_waits_on_a_host_that_says_nothing_any_more_ends() {
    let there = Host::start("there", 1, hangs());
    let link = Link::to(there.peer, 1 << 30);
    let here = Host::start("here", 0, says("never"));
    here.sees(&[("there", link.at)]);
    let (web, request) = (web(), Request::post("/").body(full("once")).unwrap());
    let asked = here.gateway.dispatch(&web, request);
    let cut = async {
        until("it came", || there.calls() == 1).await;
        link.cut.send(true).unwrap();
    };
    let (answer, ()) = within(futures::future::join(asked, cut)).await;
    assert_eq!(answer.status(), 502);
    here.stop().await;
    drop(link);
    there.stop().await;
}
