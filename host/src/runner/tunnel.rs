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
//! - Flow control: a side sends only so far beyond what the other has said that it has used up (see
//!   `tunnel/window.rs`), so a slow reader holds up its own tunnel and fills nobody's memory, and what is
//!   said on a slow link, a ping, comes through in time.
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

#[cfg(test)]
mod tests;
mod window;

use window::{MESSAGES_MAX, Window};

/// Said to be used up in steps of so many messages, or of [`CHUNK_BYTES`]: little enough that the
/// window never runs dry.
const USED_STEP: u64 = 16;
/// Bytes of one message: far below what any server takes, and large enough to be few.
const CHUNK_BYTES: usize = 32 * 1024;
/// Between the gateway and the pump: it stands before a ping as what is under way does.
const PIPE_BYTES: usize = 32 * 1024;
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
    let window = Window::new();
    // Never fuller than what the other side may send.
    let (arrived, arrives) = mpsc::channel(MESSAGES_MAX);
    tokio::select! {
        done = outwards(from_gateway, &window, wire) => done,
        done = inwards(arrives, to_gateway, wire) => done,
        why = receive(feed, &window, arrived) => Err(why),
    }
}

/// From the gateway into messages, as far as there is room in the window.
async fn outwards(
    mut from: ReadHalf<DuplexStream>,
    window: &Window,
    wire: &impl Wire,
) -> Result<(), String> {
    let mut number = 0;
    let mut buffer = BytesMut::with_capacity(CHUNK_BYTES);
    loop {
        let room = window.room().await;
        buffer.reserve(CHUNK_BYTES);
        let read = from
            .read_buf(&mut (&mut buffer).limit(room.min(CHUNK_BYTES)))
            .await;
        let read = read.map_err(|error| error.to_string())?;
        if read == 0 {
            return wire.send(Frame::End).await;
        }
        window.sent(read);
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
    let (mut used, mut told, mut bytes_untold) = (0, 0, 0);
    while let Some(bytes) = arrives.recv().await {
        to.write_all(&bytes)
            .await
            .map_err(|error| error.to_string())?;
        used += 1;
        bytes_untold += bytes.len();
        if used - told >= USED_STEP || bytes_untold >= CHUNK_BYTES {
            wire.send(Frame::Used(used)).await?;
            (told, bytes_untold) = (used, 0);
        }
    }
    to.shutdown().await.map_err(|error| error.to_string())
}

/// Takes messages apart; returns with what went wrong. Waits for ever once the other side has
/// ended, so that what has arrived still reaches the gateway.
async fn receive(
    mut feed: impl Stream<Item = Delivery> + Unpin,
    window: &Window,
    arrived: mpsc::Sender<Bytes>,
) -> String {
    match take_apart(&mut feed, window, arrived).await {
        Err(why) => why,
        Ok(()) => std::future::pending().await,
    }
}

/// Until the other side has ended.
async fn take_apart(
    feed: &mut (impl Stream<Item = Delivery> + Unpin),
    window: &Window,
    arrived: mpsc::Sender<Bytes>,
) -> Result<(), String> {
    let mut expected = 0;
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
                if !window.used(number) {
                    return Err("the other side has used up more than it was sent".into());
                }
            }
            Some(Frame::End) => return Ok(()),
            Some(Frame::Opened) | None => return Err("the other side talks nonsense".into()),
        }
    }
    Err("the connection to NATS ended".into())
}
