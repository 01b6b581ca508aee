//! Both ends of a tunnel over a wire of memory: what comes through, and what a bad other side does.

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
    over(loses, None)
}

/// And of the bytes that go from the first to the second so many come through in a second.
fn over(loses: usize, rate: Option<u32>) -> (DuplexStream, DuplexStream, Carried, Carried) {
    let (to_b, from_a) = mpsc::unbounded_channel();
    let (to_a, from_b) = mpsc::unbounded_channel();
    let side = |to, from, loses, rate: Option<u32>| {
        let (ours, gateways) = tokio::io::duplex(PIPE_BYTES);
        let wire = Channel {
            to,
            sent: AtomicUsize::new(0),
            loses,
        };
        let mut from: mpsc::UnboundedReceiver<Delivery> = from;
        let feed = futures::stream::poll_fn(move |cx| from.poll_recv(cx));
        let feed = feed.then(move |delivery: Delivery| async move {
            let takes = |rate| Duration::from_secs(1) * delivery.body.len() as u32 / rate;
            if let Some(takes) = rate.map(takes) {
                tokio::time::sleep(takes).await;
            }
            delivery
        });
        let feed = Box::pin(feed);
        let task = tokio::spawn(async move { carry(&wire, feed, ours).await });
        (gateways, task)
    };
    let (a, a_task) = side(to_b, from_b, loses, None);
    let (b, b_task) = side(to_a, from_a, usize::MAX, rate);
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
    let most = window::BYTES_MAX + 2 * CHUNK_BYTES + 2 * PIPE_BYTES;
    assert!((PIPE_BYTES..=most).contains(&sent), "{sent} of {most}");
    let mut got = vec![0; sent];
    within(b.read_exact(&mut got)).await.unwrap();
    within(a.write_all(&chunk)).await.unwrap();
}

/// What stands before a ping would make a slow host look gone: gateways give it five seconds, and all
/// of this takes eight.
#[tokio::test]
async fn little_is_under_way_on_a_slow_link() {
    const BLOCK: usize = 1024;
    const BLOCKS: usize = 768;
    let (mut a, mut b, ..) = over(usize::MAX, Some(96 * 1024));
    let began = std::time::Instant::now();
    let sending = tokio::spawn(async move {
        for _ in 0..BLOCKS {
            let mut block = [0; BLOCK];
            let since = began.elapsed().as_micros() as u64;
            block[..8].copy_from_slice(&since.to_be_bytes());
            a.write_all(&block).await.unwrap();
        }
        a
    });
    let (mut block, mut longest) = ([0; BLOCK], Duration::ZERO);
    for _ in 0..BLOCKS {
        b.read_exact(&mut block).await.unwrap();
        let since = u64::from_be_bytes(block[..8].try_into().unwrap());
        longest = longest.max(began.elapsed() - Duration::from_micros(since));
    }
    drop(sending.await.unwrap());
    assert!(longest < Duration::from_secs(4), "{longest:?}");
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
        vec![Frame::Used(1)],
        (0..100).map(|at| Frame::Data(at, Bytes::new())).collect(),
    ] {
        let deliveries = frames.iter().map(|frame| message("", None, frame));
        let mut feed = futures::stream::iter(deliveries);
        let (arrived, _arrives) = mpsc::channel(MESSAGES_MAX);
        let window = Window::new();
        let done = take_apart(&mut feed, &window, arrived).await;
        assert!(done.is_err(), "{frames:?}");
    }
}
