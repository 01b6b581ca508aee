//! What a guest's calls inherit from the requests that it serves.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// What the requests of a guest inherit from the one that it serves. Put it into the extensions of
/// a request; without it there is nothing to inherit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lineage {
    /// How often a request went from workload to workload before.
    pub hops: u32,
    /// Nobody waits for an answer after this.
    pub deadline: Option<Instant>,
}

/// The requests that share an instance: a call of its guest may be for any of them.
#[derive(Debug, Default)]
pub(crate) struct Lineages(Mutex<(Vec<Lineage>, Lineage)>);

impl Lineages {
    fn lock(&self) -> MutexGuard<'_, (Vec<Lineage>, Lineage)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn add(&self, lineage: Lineage) {
        self.lock().0.push(lineage);
    }

    pub(crate) fn remove(&self, lineage: Lineage) {
        let (present, last) = &mut *self.lock();
        if let Some(at) = present.iter().position(|one| *one == lineage) {
            present.swap_remove(at);
        }
        *last = lineage;
    }

    /// A circle is cut whosever call it is, and nobody's is cut short by another's deadline. Of none: what
    /// goes on is the last one's.
    pub(super) fn of_all(&self) -> Lineage {
        let (present, last) = &*self.lock();
        let beside = |one: Lineage, other: &Lineage| Lineage {
            hops: one.hops.max(other.hops),
            deadline: one.deadline.zip(other.deadline).map(|(a, b)| a.max(b)),
        };
        match present.split_first() {
            Some((first, others)) => others.iter().fold(*first, beside),
            None => *last,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_call_inherits_of_all_who_are_there() {
        let now = Instant::now();
        let of = |hops, seconds: Option<u64>| Lineage {
            hops,
            deadline: seconds.map(|seconds| now + Duration::from_secs(seconds)),
        };
        let all = Lineages::default();
        assert_eq!(all.of_all(), Lineage::default());
        all.add(of(3, Some(1)));
        assert_eq!(all.of_all(), of(3, Some(1)));
        all.add(of(1, Some(5)));
        assert_eq!(all.of_all(), of(3, Some(5)));
        all.add(of(0, None));
        assert_eq!(all.of_all(), of(3, None));
        all.remove(of(3, Some(1)));
        assert_eq!(all.of_all(), of(1, None));
        all.remove(of(0, None));
        all.remove(of(1, Some(5)));
        assert_eq!(
            all.of_all(),
            of(1, Some(5)),
            "what goes on is the last one's"
        );
    }
}
