//! How much compiled code is in memory, and what of it leaves again.
//!
//! ```text
//!   loaded ──asked for──> used ──nobody executes it──> unused ──> unloaded ──asked for──> loaded
//!                                                        when more than `loaded_max` is loaded: the one
//!                                                        unused for longest first; when more than a
//!                                                        quarter of that is: after `UNUSED_FOR`;
//!                                                        never within `USED_LATELY`
//! ```
//!
//! A replica keeps its [`Artifact`], not its code: a host holds more workloads than its memory holds code. What
//! is executed, or waits in an instance for another request, never leaves.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::artifact::Artifact;
use crate::runtime::{Inner, Runtime};

/// Code that nobody has used for so long goes, while much is loaded.
const UNUSED_FOR: Duration = Duration::from_secs(60);
/// Code that was used a moment ago stays, however much is loaded: a replica is probed twice a second, and to
/// load it for each would cost more than it takes.
const USED_LATELY: Duration = Duration::from_secs(2);
/// The use of what is loaded is noted so often.
const NOTED_EVERY: Duration = Duration::from_secs(1800);
/// Of what may be loaded, so much stays whether it is used or not.
const KEPT_SHARE: u64 = 4;
/// When too much is loaded, more goes than would have to: a look at all of it for each that comes were too
/// many.
const SPARE_SHARE: u64 = 8;
/// What code takes besides its mapping: types, layouts, what it is linked to. Measured for a component of 63 KB.
const OWN_BYTES: u64 = 64 << 10;

/// What is loaded, over all artifacts.
#[derive(Debug)]
pub(crate) struct Counts {
    began: Instant,
    artifacts: AtomicU64,
    bytes: AtomicU64,
    loads: AtomicU64,
    unloads: AtomicU64,
    /// When the use of what is loaded was noted last.
    noted_ms: AtomicU64,
}

impl Default for Counts {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            artifacts: AtomicU64::default(),
            bytes: AtomicU64::default(),
            loads: AtomicU64::default(),
            unloads: AtomicU64::default(),
            noted_ms: AtomicU64::default(),
        }
    }
}

impl Counts {
    /// Code was mapped, or compiled.
    pub(crate) fn loaded(&self) {
        self.loads.fetch_add(1, Relaxed);
    }

    /// Milliseconds since the runtime was made.
    pub(crate) fn now_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// Counts code for as long as it is in memory.
#[derive(Debug)]
pub(crate) struct Counted {
    counts: Arc<Counts>,
    pub(crate) bytes: u64,
}

impl Counted {
    /// Code of so many mapped bytes.
    pub(crate) fn new(counts: &Arc<Counts>, mapped_bytes: u64) -> Self {
        let bytes = mapped_bytes.saturating_add(OWN_BYTES);
        counts.artifacts.fetch_add(1, Relaxed);
        counts.bytes.fetch_add(bytes, Relaxed);
        Self {
            counts: counts.clone(),
            bytes,
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.counts.artifacts.fetch_sub(1, Relaxed);
        self.counts.bytes.fetch_sub(self.bytes, Relaxed);
    }
}

/// What of the compiled code is in memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LoadedCode {
    /// Artifacts whose code is loaded.
    pub artifacts: u64,
    /// About what it takes: its mappings, and what is kept of each besides.
    pub bytes: u64,
    /// Times that code was loaded.
    pub loads: u64,
    /// Times that unused code was unloaded.
    pub unloads: u64,
}

impl Runtime {
    /// What of the compiled code is in memory.
    pub fn loaded(&self) -> LoadedCode {
        let counts = &self.inner.counts;
        LoadedCode {
            artifacts: counts.artifacts.load(Relaxed),
            bytes: counts.bytes.load(Relaxed),
            loads: counts.loads.load(Relaxed),
            unloads: counts.unloads.load(Relaxed),
        }
    }

    /// Unloads what was unused for long, as far as much is loaded, and notes on disk what is in use. To be
    /// called now and then, off the async threads: unmapping takes its time.
    pub fn unload_unused(&self) {
        let inner = &self.inner;
        if inner.counts.bytes.load(Relaxed) > inner.config.loaded_max / KEPT_SHARE {
            inner.unload();
        }
        inner.note_use();
    }
}

impl Inner {
    /// Makes room after something was loaded.
    pub(crate) fn unload_too_much(&self) {
        if self.counts.bytes.load(Relaxed) > self.config.loaded_max {
            self.unload();
        }
    }

    fn unload(&self) {
        let (counts, now) = (&self.counts, self.counts.now_ms());
        let mut unused: Vec<(u64, u64, Arc<Artifact>)> = { self.loads.known().into_iter() }
            .filter_map(|artifact| {
                artifact
                    .unused(now)
                    .map(|(at, bytes)| (at, bytes, artifact))
            })
            .collect();
        unused.sort_unstable_by_key(|(at, ..)| *at);
        let ages = unused.iter().map(|(at, bytes, _)| (*at, *bytes));
        let loaded = counts.bytes.load(Relaxed);
        let goes = too_much(ages, loaded, self.config.loaded_max, now);
        for (.., artifact) in unused.drain(..goes) {
            // Somebody may use it by now.
            if let Some(code) = artifact.unload() {
                counts.unloads.fetch_add(1, Relaxed);
                drop(code);
            }
        }
    }

    /// Code that stays loaded is never mapped again, and would look unused on disk.
    fn note_use(&self) {
        let (now, every) = (self.counts.now_ms(), NOTED_EVERY.as_millis());
        let noted = self.counts.noted_ms.load(Relaxed);
        let Some(cache) = &self.cache else { return };
        if u128::from(now.saturating_sub(noted)) < every {
            return;
        }
        self.counts.noted_ms.store(now, Relaxed);
        let known = self.loads.known();
        for artifact in known.iter().filter(|artifact| artifact.is_loaded()) {
            cache.is_used(artifact.digest());
        }
    }
}

/// How many of the unused, the one unused for longest first, each with the time of its last use and its bytes,
/// are to go.
fn too_much(
    unused: impl Iterator<Item = (u64, u64)>,
    loaded: u64,
    most: u64,
    now_ms: u64,
) -> usize {
    let before =
        |ago: Duration| now_ms.saturating_sub(u64::try_from(ago.as_millis()).unwrap_or(u64::MAX));
    let (long_ago, lately) = (before(UNUSED_FOR), before(USED_LATELY));
    let target = if loaded > most {
        most - most / SPARE_SHARE
    } else {
        most
    };
    let mut left = loaded;
    unused
        .take_while(|(used_ms, bytes)| {
            let goes = (left > target && *used_ms <= lately)
                || (left > most / KEPT_SHARE && *used_ms < long_ago);
            if goes {
                left = left.saturating_sub(*bytes);
            }
            goes
        })
        .count()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: u64 = 60_000;

    fn goes(unused: &[(u64, u64)], loaded: u64, now_ms: u64) -> usize {
        too_much(unused.iter().copied(), loaded, 800, now_ms)
    }

    #[test]
    fn what_was_unused_for_longest_makes_room_and_some_to_spare() {
        let unused = [(1, 100), (2, 100), (3, 100), (4, 100)];
        let later = 10_000;
        assert_eq!(goes(&unused, 800, later), 0, "as much as may be");
        assert_eq!(goes(&unused, 801, later), 2, "to 700 and below");
        assert_eq!(goes(&unused, 5000, later), 4, "the rest is in use");
    }

    #[test]
    fn what_was_used_a_moment_ago_stays() {
        let unused = [(1, 100), (5000, 100), (5001, 100)];
        assert_eq!(goes(&unused, 5000, 7000), 2);
    }

    #[test]
    fn what_is_unused_for_long_goes_down_to_a_quarter() {
        let unused = [(0, 100), (1, 100), (2, 100), (MINUTE, 100)];
        assert_eq!(goes(&unused, 400, MINUTE + 1), 1, "only the first is old");
        assert_eq!(goes(&unused, 400, MINUTE + 10), 2, "200 stay");
        assert_eq!(goes(&unused, 200, 9 * MINUTE), 0);
    }
}
