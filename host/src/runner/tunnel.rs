//! Connections between gateways through NATS, for a host that nobody can dial.
//!
//! ```text
//!   gateway ── duplex ── pump ══ frames in NATS messages ══ pump ── duplex ── peer port's service
//!      opens: wasmorch.v1.tunnel.<host>, with an inbox     answers: opened, from an inbox of its own
//! ```
//!
//! A tunnel is a stream of bytes both ways, and what the gateways speak over it is the HTTP/2 that
//! they speak over TCP: streaming, many requests at once, refused streams, all as on the direct way.
//!
//! Invariants:
//! - Flow control: a side sends at most [`WINDOW`] messages beyond what the other has said that it
//!   has used up, so a slow reader holds up its own tunnel and fills nobody's memory.
//! - NATS may lose a message; a stream may not. Messages are numbered, and a gap ends the tunnel.
//! - Tunnels are bounded, and every task is joined by [`Tunnels::end`].

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{BufMut as _, Bytes, BytesMut};
use futures::{Stream, StreamExt as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, ReadHalf, WriteHalf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use wasmorch_api::{HostId, subjects};
use wasmorch_gateway::{Pipe, Tunnel};

use super::link::{Delivery, Feed, Link, LinkError};

/// Messages under way in one direction.
const WINDOW: usize = 64;
/// Said to be used up in steps of so many: few enough that the window never runs dry.
const USED_STEP: u64 = 16;
/// Bytes of one message: far below what any server takes, and large enough to be few.
const CHUNK_BYTES: usize = 32 * 1024;
/// Between the gateway and the pump.
const PIPE_BYTES: usize = 64 * 1024;
/// Tunnels of one runner at once, both ways together.
const TUNNELS_MAX: usize = 512;
/// For the other side to answer.
const OPEN_TIMEOUT: Duration = Duration::from_millis(1500);
/// Before a subscription that was refused is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// Runners of one host share what is opened to it.
const GROUP: &str = "wasmorch.tunnel";

/// What one message is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Frame {
    /// The other side is there; its inbox is the reply subject.
    Opened,
    /// Bytes, numbered from 0.
    Data(u64, Bytes),
    /// So many messages are used up, in all.
    Used(u64),
    /// No more bytes follow.
    End,
}

const HEAD_BYTES: usize = 9;

impl Frame {
    fn encode(&self) -> Bytes {
        let (kind, number, bytes): (u8, u64, &[u8]) = match self {
            Self::Opened => (0, 0, &[]),
            Self::Data(number, bytes) => (1, *number, bytes),
            Self::Used(number) => (2, *number, &[]),
            Self::End => (3, 0, &[]),
        };
        let mut frame = BytesMut::with_capacity(HEAD_BYTES + bytes.len());
        frame.put_u8(kind);
        frame.put_u64(number);
        frame.put_slice(bytes);
        frame.freeze()
    }

    /// `None`: not one of these. Also what the server says when nobody listens: an empty message.
    fn decode(mut bytes: Bytes) -> Option<Self> {
        if bytes.len() < HEAD_BYTES {
            return None;
        }
        let head = bytes.split_to(HEAD_BYTES);
        let number = u64::from_be_bytes(head[1..].try_into().ok()?);
        Some(match head[0] {
            0 => Self::Opened,
            1 => Self::Data(number, bytes),
            2 => Self::Used(number),
            3 => Self::End,
            _ => return None,
        })
    }
}

/// All tunnels of one runner.
#[derive(Debug)]
pub(super) struct Tunnels {
    link: Arc<Link>,
    host: HostId,
    /// Where what others open goes: the gateway's peer service.
    accepted: mpsc::Sender<Pipe>,
    listening: AtomicBool,
    open: Arc<Semaphore>,
    tasks: TaskTracker,
    end: CancellationToken,
}

impl Tunnels {
    pub(super) fn new(link: Arc<Link>, host: HostId, accepted: mpsc::Sender<Pipe>) -> Arc<Self> {
        Arc::new(Self {
            link,
            host,
            accepted,
            listening: AtomicBool::new(false),
            open: Arc::new(Semaphore::new(TUNNELS_MAX)),
            tasks: TaskTracker::new(),
            end: CancellationToken::new(),
        })
    }

    /// Lets other hosts open tunnels to this one, from the first call on. Called when there is
    /// something to be reached for: a host without http replicas keeps no connection for it.
    pub(super) fn listen(self: &Arc<Self>) {
        if self.link.is_configured() && !self.listening.swap(true, Ordering::Relaxed) {
            let tunnels = self.clone();
            self.tasks.spawn(async move {
                let accepting = tunnels.accept();
                tunnels.end.run_until_cancelled(accepting).await;
            });
        }
    }

    /// Ends every tunnel and joins its task.
    pub(super) async fn end(&self) {
        self.end.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    async fn accept(&self) {
        let subject = subjects::tunnel(&self.host);
        loop {
            match self.link.subscribe(&subject, GROUP).await {
                Ok(mut opened) => {
                    while let Some(ask) = opened.next().await {
                        self.answer(ask).await;
                    }
                }
                Err(error) => tracing::warn!(subject, %error, "tunnels cannot be taken"),
            }
            tokio::time::sleep(RETRY_AFTER).await;
        }
    }

    /// One tunnel that another host wants. Who is not answered tries elsewhere after a moment.
    async fn answer(&self, ask: Delivery) {
        let Some(theirs) = ask.reply else { return };
        let Ok(place) = self.open.clone().try_acquire_owned() else {
            return tracing::warn!("a tunnel is refused: there are {TUNNELS_MAX} of them");
        };
        let (ours, feed) = match self.link.inbox().await {
            Ok(inbox) => inbox,
            Err(error) => return tracing::debug!(%error, "a tunnel is not opened"),
        };
        let opened = message(&theirs, Some(ours), &Frame::Opened);
        if let Err(error) = self.link.publish(opened).await {
            return tracing::debug!(%error, "a tunnel is not opened");
        }
        let pipe = self.pump(place, feed, theirs);
        // Its place bounds it: the gateway takes them out at once.
        let _ = self.accepted.send(pipe).await;
    }

    /// Carries bytes between the gateway and the other side, in a task of its own.
    fn pump(&self, place: OwnedSemaphorePermit, feed: Feed, to: String) -> Pipe {
        let (ours, gateways) = tokio::io::duplex(PIPE_BYTES);
        let (link, end) = (self.link.clone(), self.end.clone());
        self.tasks.spawn(async move {
            let wire = NatsWire { link, to };
            // Boxed: its buffers would make every task that may open a tunnel large.
            let carrying = Box::pin(carry(&wire, feed, ours));
            let carried = end.run_until_cancelled(carrying).await;
            if let Some(Err(why)) = carried {
                tracing::debug!(why, "a tunnel broke");
            }
            drop(place);
        });
        Pipe::new(gateways)
    }
}

#[async_trait]
impl Tunnel for Tunnels {
    async fn open(&self, host: &HostId) -> Result<Pipe, String> {
        let opened = tokio::time::timeout(OPEN_TIMEOUT, self.ask(host)).await;
        opened.map_err(|_| format!("tunnel: no answer within {OPEN_TIMEOUT:?}"))?
    }
}

impl Tunnels {
    async fn ask(&self, host: &HostId) -> Result<Pipe, String> {
        let text = |error: LinkError| format!("tunnel: {error}");
        // The first one connects.
        self.link.connected().await.map_err(text)?;
        let place = self.open.clone().try_acquire_owned();
        let place = place.map_err(|_| format!("tunnel: there are {TUNNELS_MAX} of them"))?;
        let (ours, mut feed) = self.link.inbox().await.map_err(text)?;
        let ask = Delivery {
            subject: subjects::tunnel(host),
            reply: Some(ours),
            ..Delivery::default()
        };
        self.link.publish(ask).await.map_err(text)?;
        let answer = feed
            .next()
            .await
            .ok_or("tunnel: the connection to NATS ended")?;
        match (Frame::decode(answer.body), answer.reply) {
            (Some(Frame::Opened), Some(theirs)) => Ok(self.pump(place, feed, theirs)),
            _ => Err("tunnel: the host does not listen".into()),
        }
    }
}

fn message(to: &str, reply: Option<String>, frame: &Frame) -> Delivery {
    Delivery {
        subject: to.to_owned(),
        reply,
        headers: Vec::new(),
        body: frame.encode(),
    }
}

/// Where frames go.
trait Wire: Sync {
    fn send(&self, frame: Frame) -> impl Future<Output = Result<(), String>> + Send;
}

/// To the other side's inbox.
struct NatsWire {
    link: Arc<Link>,
    to: String,
}

impl Wire for NatsWire {
    async fn send(&self, frame: Frame) -> Result<(), String> {
        let sent = self.link.publish(message(&self.to, None, &frame)).await;
        sent.map_err(|error| error.to_string())
    }
}

/// Until one side has no more to say, or something is lost.
async fn carry(
    wire: &impl Wire,
    feed: impl Stream<Item = Delivery> + Unpin,
    pipe: DuplexStream,
) -> Result<(), String> {
    let (from_gateway, to_gateway) = tokio::io::split(pipe);
    let credit = Semaphore::new(WINDOW);
    // Never fuller than what the other side may send.
    let (arrived, arrives) = mpsc::channel(WINDOW);
    tokio::select! {
        done = outwards(from_gateway, &credit, wire) => done,
        done = inwards(arrives, to_gateway, wire) => done,
        why = receive(feed, &credit, arrived) => Err(why),
    }
}

/// From the gateway into messages, as far as there is credit.
async fn outwards(
    mut from: ReadHalf<DuplexStream>,
    credit: &Semaphore,
    wire: &impl Wire,
) -> Result<(), String> {
    let mut number = 0;
    let mut buffer = BytesMut::with_capacity(CHUNK_BYTES);
    loop {
        // Nobody closes it.
        if let Ok(permit) = credit.acquire().await {
            permit.forget();
        }
        buffer.reserve(CHUNK_BYTES);
        let read = from.read_buf(&mut (&mut buffer).limit(CHUNK_BYTES)).await;
        if read.map_err(|error| error.to_string())? == 0 {
            return wire.send(Frame::End).await;
        }
        wire.send(Frame::Data(number, buffer.split().freeze()))
            .await?;
        number += 1;
    }
}

/// From messages to the gateway, saying now and then how many are used up.
async fn inwards(
    mut arrives: mpsc::Receiver<Bytes>,
    mut to: WriteHalf<DuplexStream>,
    wire: &impl Wire,
) -> Result<(), String> {
    let mut used = 0;
    while let Some(bytes) = arrives.recv().await {
        to.write_all(&bytes)
            .await
            .map_err(|error| error.to_string())?;
        used += 1;
        if used % USED_STEP == 0 {
            wire.send(Frame::Used(used)).await?;
        }
    }
    to.shutdown().await.map_err(|error| error.to_string())
}

/// Takes messages apart; returns with what went wrong. Waits for ever once the other side has
/// ended, so that what has arrived still reaches the gateway.
async fn receive(
    mut feed: impl Stream<Item = Delivery> + Unpin,
    credit: &Semaphore,
    arrived: mpsc::Sender<Bytes>,
) -> String {
    match take_apart(&mut feed, credit, arrived).await {
        Err(why) => why,
        Ok(()) => std::future::pending().await,
    }
}

/// Until the other side has ended.
async fn take_apart(
    feed: &mut (impl Stream<Item = Delivery> + Unpin),
    credit: &Semaphore,
    arrived: mpsc::Sender<Bytes>,
) -> Result<(), String> {
    let (mut expected, mut used) = (0, 0);
    while let Some(delivery) = feed.next().await {
        match Frame::decode(delivery.body) {
            Some(Frame::Data(number, bytes)) => {
                if number != expected {
                    return Err(format!("message {expected} was lost"));
                }
                expected += 1;
                let full = "the other side sends more than it may";
                arrived.try_send(bytes).map_err(|_| full.to_owned())?;
            }
            Some(Frame::Used(number)) => {
                let more = number
                    .checked_sub(used)
                    .filter(|more| *more <= WINDOW as u64);
                let more = more.ok_or("the other side has used up more than it was sent")?;
                used = number;
                credit.add_permits(more as usize);
            }
            Some(Frame::End) => return Ok(()),
            Some(Frame::Opened) | None => return Err("the other side talks nonsense".into()),
        }
    }
    Err("the connection to NATS ended".into())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    /// A wire that ends in a channel, with a number of messages after which one is lost.
    struct Channel {
        to: mpsc::UnboundedSender<Delivery>,
        sent: AtomicUsize,
        loses: usize,
    }

    impl Wire for Channel {
        async fn send(&self, frame: Frame) -> Result<(), String> {
            if self.sent.fetch_add(1, Ordering::Relaxed) != self.loses {
                let _ = self.to.send(message("", None, &frame));
            }
            Ok(())
        }
    }

    type Carried = tokio::task::JoinHandle<Result<(), String>>;

    /// Both ends of a tunnel, and the tasks that carry it.
    fn tunnel(loses: usize) -> (DuplexStream, DuplexStream, Carried, Carried) {
        let (to_b, from_a) = mpsc::unbounded_channel();
        let (to_a, from_b) = mpsc::unbounded_channel();
        let side = |to, from, loses| {
            let (ours, gateways) = tokio::io::duplex(PIPE_BYTES);
            let wire = Channel {
                to,
                sent: AtomicUsize::new(0),
                loses,
            };
            let mut from: mpsc::UnboundedReceiver<Delivery> = from;
            let feed = futures::stream::poll_fn(move |cx| from.poll_recv(cx));
            let task = tokio::spawn(async move { carry(&wire, feed, ours).await });
            (gateways, task)
        };
        let (a, a_task) = side(to_b, from_b, loses);
        let (b, b_task) = side(to_a, from_a, usize::MAX);
        (a, b, a_task, b_task)
    }

    async fn within<F: Future>(future: F) -> F::Output {
        let limit = Duration::from_secs(20);
        tokio::time::timeout(limit, future).await.expect("too long")
    }

    #[tokio::test]
    async fn bytes_come_through_in_order_both_ways() {
        let (mut a, mut b, a_task, b_task) = tunnel(usize::MAX);
        let sent: Vec<u8> = (0..20_000_000_u32).map(|at| (at / 7) as u8).collect();
        let expected = sent.clone();
        let sending = tokio::spawn(async move {
            a.write_all(&sent).await.unwrap();
            let mut answer = [0; 5];
            a.read_exact(&mut answer).await.unwrap();
            answer
        });
        let mut got = vec![0; expected.len()];
        within(b.read_exact(&mut got)).await.unwrap();
        assert!(got == expected, "other bytes than were sent");
        b.write_all(b"thank").await.unwrap();
        assert_eq!(&within(sending).await.unwrap(), b"thank");
        // `a` is gone: both ends end, and what reads at `b` sees the end.
        assert_eq!(within(b.read(&mut [0])).await.unwrap(), 0);
        within(a_task).await.unwrap().unwrap();
        within(b_task).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn who_does_not_read_holds_up_the_sender() {
        let (mut a, mut b, ..) = tunnel(usize::MAX);
        let mut sent = 0;
        let chunk = [0; 1024];
        let silence = Duration::from_millis(300);
        while let Ok(written) = tokio::time::timeout(silence, a.write(&chunk)).await {
            sent += written.unwrap();
        }
        // The window, both pipes, and what is in the pumps' hands.
        let most = (WINDOW + 2) * CHUNK_BYTES + 2 * PIPE_BYTES;
        assert!((PIPE_BYTES..=most).contains(&sent), "{sent} of {most}");
        let mut got = vec![0; sent];
        within(b.read_exact(&mut got)).await.unwrap();
        within(a.write_all(&chunk)).await.unwrap();
    }

    #[tokio::test]
    async fn a_lost_message_ends_the_tunnel() {
        let (mut a, mut b, _a_task, b_task) = tunnel(3);
        for _ in 0..10 {
            // Its end may come in the middle.
            let _ = a.write_all(&[7; CHUNK_BYTES]).await;
        }
        let mut got = Vec::new();
        let _ = within(b.read_to_end(&mut got)).await;
        assert!(got.len() < 10 * CHUNK_BYTES);
        let why = within(b_task).await.unwrap().unwrap_err();
        assert!(why.contains("was lost"), "{why}");
    }

    #[test]
    fn frames_read_back_and_nonsense_is_none() {
        for frame in [
            Frame::Opened,
            Frame::Data(u64::MAX, Bytes::from_static(b"x")),
            Frame::Data(0, Bytes::new()),
            Frame::Used(7),
            Frame::End,
        ] {
            assert_eq!(Frame::decode(frame.encode()), Some(frame));
        }
        for bytes in [&b""[..], b"\x01", b"\x09\0\0\0\0\0\0\0\0"] {
            assert_eq!(Frame::decode(Bytes::from_static(bytes)), None);
        }
    }

    #[tokio::test]
    async fn an_other_side_that_breaks_the_rules_is_left() {
        for frames in [
            vec![Frame::Data(1, Bytes::new())],
            vec![Frame::Opened],
            vec![Frame::Used(5), Frame::Used(4)],
            vec![Frame::Used(WINDOW as u64 + 1)],
            (0..100).map(|at| Frame::Data(at, Bytes::new())).collect(),
        ] {
            let deliveries = frames.iter().map(|frame| message("", None, frame));
            let mut feed = futures::stream::iter(deliveries);
            let (arrived, _arrives) = mpsc::channel(WINDOW);
            let done = take_apart(&mut feed, &Semaphore::new(0), arrived).await;
            assert!(done.is_err(), "{frames:?}");
        }
    }
}
