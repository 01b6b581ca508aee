//! How much of a tunnel's bytes may be under way in one direction.
//!
//! What is said on the connection stands behind what is under way: were that two megabytes on a link of
//! 160 KiB a second, the answer to a ping would take 13 s, and the host would count as gone. So the window
//! follows the link: it grows while what is sent is used up soon, and shrinks when that takes long.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::CHUNK_BYTES;

/// Messages under way, however small.
pub(super) const MESSAGES_MAX: usize = 64;
/// Bytes under way at first.
const BYTES_FIRST: usize = 128 * 1024;
/// And at the most: at a round trip of 50 ms 40 MB a second.
pub(super) const BYTES_MAX: usize = MESSAGES_MAX * CHUNK_BYTES;
/// Used up so soon after a round trip, more may be under way.
const SOON: Duration = Duration::from_millis(100);
/// So long after it, less is to be.
const LATE: Duration = Duration::from_millis(300);
/// What a link may take by itself, a satellite's: what is longer is taken for a queue.
const ROUND_TRIP_MAX: Duration = Duration::from_millis(600);

/// One direction.
#[derive(Debug)]
pub(super) struct Window {
    under_way: Mutex<UnderWay>,
    /// Told when something is used up.
    used: Notify,
}

#[derive(Debug)]
struct UnderWay {
    /// The oldest first.
    messages: VecDeque<Sent>,
    bytes: usize,
    bytes_max: usize,
    /// The shortest time in which a message was used up: what the link takes by itself.
    round_trip: Option<Duration>,
    /// Messages used up, in all.
    used: u64,
}

#[derive(Debug)]
struct Sent {
    bytes: usize,
    at: Instant,
    /// No more might be under way beside it: how long it takes tells whether the link bears that much.
    fills: bool,
}

impl Window {
    pub(super) fn new() -> Self {
        Self {
            under_way: Mutex::new(UnderWay {
                messages: VecDeque::new(),
                bytes: 0,
                bytes_max: BYTES_FIRST,
                round_trip: None,
                used: 0,
            }),
            used: Notify::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, UnderWay> {
        self.under_way
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until something may be sent; how many bytes. For one sender.
    pub(super) async fn room(&self) -> usize {
        loop {
            let used = self.used.notified();
            {
                let under_way = self.lock();
                let room = under_way.bytes_max.saturating_sub(under_way.bytes);
                if room > 0 && under_way.messages.len() < MESSAGES_MAX {
                    return room;
                }
            }
            used.await;
        }
    }

    /// A message of so many bytes is sent.
    pub(super) fn sent(&self, bytes: usize) {
        self.lock().sent(bytes, Instant::now());
    }

    /// The other side has used up so many messages, in all; `false`: more than it was sent, or fewer than
    /// it has said before.
    pub(super) fn used(&self, messages: u64) -> bool {
        let taken = self.lock().used(messages, Instant::now());
        self.used.notify_one();
        taken
    }
}

impl UnderWay {
    fn sent(&mut self, bytes: usize, now: Instant) {
        self.bytes += bytes;
        let fills = self.bytes >= self.bytes_max;
        self.messages.push_back(Sent {
            bytes,
            at: now,
            fills,
        });
    }

    fn used(&mut self, messages: u64, now: Instant) -> bool {
        let more = messages.checked_sub(self.used);
        let more = more.and_then(|more| usize::try_from(more).ok());
        let Some(more) = more.filter(|more| *more <= self.messages.len()) else {
            return false;
        };
        self.used = messages;
        let mut last = None;
        for sent in self.messages.drain(..more) {
            self.bytes -= sent.bytes;
            last = Some((now - sent.at, sent.fills));
        }
        let Some((took, filled)) = last else {
            return true;
        };
        let shortest = self.round_trip.map_or(took, |known| known.min(took));
        self.round_trip = Some(shortest);
        // The first one says nothing of how long the link takes by itself.
        let waited = took - shortest.min(ROUND_TRIP_MAX);
        if waited <= SOON && filled {
            self.bytes_max = (self.bytes_max * 2).min(BYTES_MAX);
        } else if waited >= LATE {
            self.bytes_max = (self.bytes_max / 2).max(CHUNK_BYTES);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What may be under way in the end on a link of so many bytes a second, with this round trip, that is
    /// never idle.
    fn settled(bytes_per_second: usize, round_trip: Duration) -> usize {
        let window = Window::new();
        let mut under_way = window.lock();
        let mut now = Instant::now();
        let (mut link_free, mut coming) = (now, VecDeque::new());
        for message in 1..=2_000 {
            while under_way.bytes >= under_way.bytes_max {
                let (at, used) = coming.pop_front().expect("what is under way arrives");
                now = at;
                assert!(under_way.used(used, now));
            }
            under_way.sent(CHUNK_BYTES, now);
            let takes = Duration::from_secs(1) * CHUNK_BYTES as u32 / bytes_per_second as u32;
            link_free = link_free.max(now) + takes;
            coming.push_back((link_free + round_trip, message));
        }
        under_way.bytes_max
    }

    #[test]
    fn a_slow_link_has_little_under_way_and_a_fast_one_much() {
        let far = Duration::from_millis(50);
        for kib in [16, 32, 64, 100, 160, 640] {
            let most = settled(kib * 1024, far);
            let second = most <= kib * 1024 || most == CHUNK_BYTES;
            assert!(second, "{most} on a link of {kib} KiB a second");
        }
        for far in [50, 300, 600].map(Duration::from_millis) {
            assert_eq!(settled(100 << 20, far), BYTES_MAX, "{far:?}");
        }
    }

    #[test]
    fn more_than_was_sent_is_not_used_up_and_nothing_twice() {
        let window = Window::new();
        window.sent(10);
        window.sent(10);
        assert!(!window.used(3));
        assert!(window.used(2) && window.used(2));
        assert!(!window.used(1));
    }
}
