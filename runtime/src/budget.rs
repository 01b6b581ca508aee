//! Memory of this process that is held for guests besides their own: large values on their way
//! between a backend and a guest.
//!
//! Owns the bound over all replicas. A guest's own limit does not cover what the host reads for it,
//! and many calls at once, each within its bounds, would take more than a machine has.

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Semaphore, SemaphorePermit};

/// What may be held at once.
const BYTES_MAX: usize = 256 << 20;
/// What is counted in one permit.
const UNIT: usize = 4 << 10;
/// Who has waited so long is refused: it may be that all others wait too.
const WAIT: Duration = Duration::from_secs(5);

static BUDGET: Budget = Budget::new(BYTES_MAX);

/// Nothing more could be held in time; the text is for guests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this host reads too many large values at once; try again, or ask for less in one call")]
pub struct NoMemory;

/// A part of the bound, given back when dropped.
#[derive(Debug)]
pub struct HeldMemory {
    _permit: SemaphorePermit<'static>,
}

impl HeldMemory {
    /// Waits a while for room for so many bytes.
    ///
    /// # Errors
    ///
    /// When there is none in time, or never can be.
    pub async fn hold(bytes: usize) -> Result<Self, NoMemory> {
        let permit = BUDGET.hold(bytes).await?;
        Ok(Self { _permit: permit })
    }

    /// Takes room for so many bytes now. Who holds some already does not wait for more.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub(crate) fn try_hold(bytes: usize) -> Result<Self, NoMemory> {
        let permit = BUDGET.try_hold(bytes)?;
        Ok(Self { _permit: permit })
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

struct Budget(Semaphore);

impl Budget {
    const fn new(bytes: usize) -> Self {
        Self(Semaphore::const_new(bytes / UNIT))
    }

    fn units(bytes: usize) -> u32 {
        u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX)
    }

    async fn hold(&self, bytes: usize) -> Result<SemaphorePermit<'_>, NoMemory> {
        if bytes > BYTES_MAX {
            return Err(NoMemory);
        }
        let waiting = self.0.acquire_many(Self::units(bytes));
        let held = tokio::time::timeout(WAIT, waiting).await;
        held.map_err(|_| NoMemory)?.map_err(|_| NoMemory)
    }

    fn try_hold(&self, bytes: usize) -> Result<SemaphorePermit<'_>, NoMemory> {
        let held = self.0.try_acquire_many(Self::units(bytes));
        held.map_err(|_| NoMemory)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_finds_no_room_is_refused() {
        let budget = Budget::new(3 * UNIT);
        let first = budget.try_hold(2 * UNIT).unwrap();
        let one = budget.hold(1).await.unwrap();
        assert_eq!(budget.try_hold(1).err(), Some(NoMemory));
        assert_eq!(budget.hold(usize::MAX).await.err(), Some(NoMemory));
        drop(first);
        let (next, _) = tokio::join!(budget.hold(2 * UNIT), async { drop(one) });
        assert!(next.is_ok());
    }

    #[tokio::test]
    async fn a_value_holds_its_memory() {
        let held = HeldMemory::hold(5).await.unwrap();
        let value = held.keep(b"value".to_vec());
        assert_eq!(value, "value");
    }
}
