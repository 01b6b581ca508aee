//! Memory of this process that is held for guests besides their own: large values on their way
//! between a backend and a guest, and what stores in memory keep.
//!
//! Owns the bounds: on values on their way over all replicas, on both for each of them. A guest's own
//! limit does not cover what the host reads for it, and many calls at once, each within its bounds,
//! would take more than a machine has.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};
use tokio::time::timeout;

/// What may be on its way at once.
const BYTES_MAX: usize = 256 << 20;
/// And for one replica: it alone keeps no other from reading.
const REPLICA_BYTES_MAX: usize = BYTES_MAX / 4;
/// What all the stores in memory of one replica keep.
const KEPT_BYTES_MAX: usize = 64 << 20;
/// What is counted in one permit.
const UNIT: usize = 4 << 10;
/// Who has waited so long is refused: it may be that all others wait too.
const WAIT: Duration = Duration::from_secs(5);

static ALL: Semaphore = Semaphore::const_new(BYTES_MAX / UNIT);

/// Nothing more could be held in time; the text is for guests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "too many large values are read at once, by this workload or by all on its host; try again, or \
     ask for less in one call"
)]
pub struct NoMemory;

/// The stores in memory of a replica are full; the text is for guests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the store is full: all stores in memory of a replica hold {} MiB at most, together",
    KEPT_BYTES_MAX >> 20
)]
pub(crate) struct Full;

/// What one replica may have of it in one process; clones share that.
#[derive(Debug, Clone)]
pub struct MemoryShare {
    reading: Arc<Semaphore>,
    kept: Arc<AtomicUsize>,
}

impl Default for MemoryShare {
    fn default() -> Self {
        Self {
            reading: Arc::new(Semaphore::new(REPLICA_BYTES_MAX / UNIT)),
            kept: Arc::default(),
        }
    }
}

impl MemoryShare {
    /// Waits a while for room for so many bytes.
    ///
    /// # Errors
    ///
    /// When there is none in time, or never can be.
    pub async fn hold(&self, bytes: usize) -> Result<HeldMemory, NoMemory> {
        if bytes > REPLICA_BYTES_MAX {
            return Err(NoMemory);
        }
        let units = units(bytes);
        let waiting = async {
            // Its own first: who waits for that keeps nobody else waiting.
            let of_replica = self.reading.clone().acquire_many_owned(units).await.ok()?;
            let of_all = ALL.acquire_many(units).await.ok()?;
            Some(HeldMemory::new(of_replica, of_all))
        };
        timeout(WAIT, waiting).await.ok().flatten().ok_or(NoMemory)
    }

    /// Takes room for so many bytes now. Who holds some already does not wait for more.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub(crate) fn try_hold(&self, bytes: usize) -> Result<HeldMemory, NoMemory> {
        let units = units(bytes);
        let of_replica = self.reading.clone().try_acquire_many_owned(units);
        let of_all = ALL.try_acquire_many(units);
        match (of_replica, of_all) {
            (Ok(of_replica), Ok(of_all)) => Ok(HeldMemory::new(of_replica, of_all)),
            _ => Err(NoMemory),
        }
    }

    /// A store in memory keeps `more` bytes in the place of `less`.
    pub(crate) fn keep(&self, more: usize, less: usize) -> Result<(), Full> {
        let kept = self.kept.try_update(SeqCst, SeqCst, |kept| {
            let after = kept.saturating_sub(less).saturating_add(more);
            (after <= KEPT_BYTES_MAX).then_some(after)
        });
        kept.map(drop).map_err(|_| Full)
    }

    /// And no more of these.
    pub(crate) fn give_up(&self, bytes: usize) {
        self.kept.fetch_sub(bytes, SeqCst);
    }
}

fn units(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX)
}

/// A part of the bounds, given back when dropped.
#[derive(Debug)]
pub struct HeldMemory {
    _of_replica: OwnedSemaphorePermit,
    _of_all: SemaphorePermit<'static>,
}

impl HeldMemory {
    fn new(of_replica: OwnedSemaphorePermit, of_all: SemaphorePermit<'static>) -> Self {
        Self {
            _of_replica: of_replica,
            _of_all: of_all,
        }
    }

    /// A value that holds its memory as long as someone has it.
    pub fn keep(self, value: Vec<u8>) -> Bytes {
        struct Kept {
            value: Vec<u8>,
            _held: HeldMemory,
        }
        impl AsRef<[u8]> for Kept {
            fn as_ref(&self) -> &[u8] {
                &self.value
            }
        }
        Bytes::from_owner(Kept { value, _held: self })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_replica_has_a_part_and_the_others_theirs() {
        let (one, other) = (MemoryShare::default(), MemoryShare::default());
        let all = one.hold(REPLICA_BYTES_MAX).await.unwrap();
        assert!(matches!(one.try_hold(1), Err(NoMemory)));
        assert!(other.try_hold(REPLICA_BYTES_MAX / 2).is_ok());
        let never = one.hold(REPLICA_BYTES_MAX + 1).await;
        assert!(matches!(never, Err(NoMemory)));
        let (next, ()) = tokio::join!(one.hold(2 * UNIT), async { drop(all) });
        assert!(next.is_ok());
    }

    #[tokio::test]
    async fn a_value_holds_its_memory() {
        let share = MemoryShare::default();
        let value = share.hold(5).await.unwrap().keep(b"value".to_vec());
        assert_eq!(value, "value");
        let free = share.reading.available_permits();
        drop(value);
        assert_eq!(share.reading.available_permits(), free + 1);
    }

    #[test]
    fn what_is_kept_is_bounded_over_all_clones() {
        let share = MemoryShare::default();
        assert_eq!(share.keep(KEPT_BYTES_MAX, 0), Ok(()));
        assert_eq!(share.clone().keep(1, 0), Err(Full));
        assert_eq!(share.keep(5, 6), Ok(()));
        share.give_up(2);
        assert_eq!(share.clone().keep(3, 0), Ok(()));
        assert_eq!(share.keep(1, 0), Err(Full));
    }
}
