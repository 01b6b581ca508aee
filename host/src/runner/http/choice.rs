//! Which replica of a workload on this host answers the next request.
//!
//! ```text
//!   of the revision whose turn it is, with room, not ejected, the least loaded
//!     none: any that serves and is not ejected ─ none: any that serves ─ none: one that leaves
//! ```
//!
//! A replica that fails many requests in a row is left alone for a while, as a gateway does with a
//! host. The floor: never more than half of the serving replicas of its revision. So a request that
//! fails everywhere takes nobody away, and a canary's only replica goes on showing what it is.
//!
//! It must not know what a request is, or how a replica runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use wasmorch_api::RevisionNumber;
use wasmorch_gateway::{Canary, Health, Limits};

use super::member::{CLOSED, LEAVING, SERVING};

/// What is asked of a replica to choose it.
pub(super) trait Candidate {
    /// Where it stands: see `member.rs`.
    fn stage(&self) -> u8;
    fn revision(&self) -> RevisionNumber;
    /// Whether a request would be run at once.
    fn has_room(&self) -> bool;
    /// Requests in hand, waiting ones included.
    fn load(&self) -> usize;
    fn health(&self) -> &Health;
}

/// Why there is no replica for a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Missing {
    NotReady,
    Closed,
}

/// Chooses among replicas, and remembers whose turn it is.
#[derive(Debug, Default)]
pub(super) struct Choice {
    /// Breaks ties between equally loaded ones.
    turn: AtomicUsize,
}

impl Choice {
    /// The replica for a request.
    pub(super) fn choose<'m, C: Candidate>(
        &self,
        members: &'m [Arc<C>],
        canary: Option<Canary>,
    ) -> Result<&'m Arc<C>, Missing> {
        let at = |stage| members.iter().filter(move |member| member.stage() == stage);
        let fit = || at(SERVING).filter(|member| !member.health().is_ejected());
        let has_turn = |member: &&Arc<C>| {
            canary.is_none_or(|canary| (member.revision() == canary.revision) == canary.chosen)
        };
        let turn = self.pick(|| fit().filter(has_turn));
        // One that is full gives its turn away: another may have room.
        turn.filter(|member| member.has_room())
            .or_else(|| self.pick(fit))
            .or_else(|| self.pick(|| at(SERVING)))
            .or_else(|| self.pick(|| at(LEAVING)))
            .ok_or_else(|| match at(CLOSED).next() {
                Some(_) => Missing::Closed,
                None => Missing::NotReady,
            })
    }

    /// Takes down that a replica failed a request. Whether it is now left alone for a while.
    pub(super) fn failed<C: Candidate>(members: &[Arc<C>], member: &C) -> bool {
        let health = member.health();
        if !health.failed() || health.is_ejected() || member.stage() != SERVING {
            return false;
        }
        let alike =
            |other: &&Arc<C>| other.stage() == SERVING && other.revision() == member.revision();
        let alike = members.iter().filter(alike);
        let eject_for = Limits::default().eject_for;
        health.eject_among(alike.map(|other| other.health()), eject_for)
    }

    /// The least loaded of some, in turn.
    fn pick<'m, C: Candidate + 'm, I>(&self, some: impl Fn() -> I) -> Option<&'m Arc<C>>
    where
        I: Iterator<Item = &'m Arc<C>>,
    {
        match some().count() {
            0 => None,
            1 => some().next(),
            count => {
                let start = self.turn.fetch_add(1, Ordering::Relaxed) % count;
                let rotated = some().skip(start).chain(some().take(start));
                rotated.min_by_key(|member| member.load())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::runner::http::member::UNREADY;

    struct Fake {
        stage: u8,
        revision: RevisionNumber,
        room: bool,
        load: usize,
        health: Health,
    }

    impl Candidate for Fake {
        fn stage(&self) -> u8 {
            self.stage
        }
        fn revision(&self) -> RevisionNumber {
            self.revision
        }
        fn has_room(&self) -> bool {
            self.room
        }
        fn load(&self) -> usize {
            self.load
        }
        fn health(&self) -> &Health {
            &self.health
        }
    }

    fn fake(stage: u8, revision: u64, load: usize) -> Arc<Fake> {
        Arc::new(Fake {
            stage,
            revision: RevisionNumber(revision),
            room: true,
            load,
            health: Health::default(),
        })
    }

    /// How often each was chosen, of 100 times.
    fn chosen(members: &[Arc<Fake>], canary: Option<Canary>) -> Vec<usize> {
        let choice = Choice::default();
        let mut counts = vec![0; members.len()];
        for _ in 0..100 {
            let member = choice.choose(members, canary).unwrap();
            let at = members.iter().position(|one| Arc::ptr_eq(one, member));
            counts[at.unwrap()] += 1;
        }
        counts
    }

    fn fail_often(members: &[Arc<Fake>], member: &Fake) -> bool {
        (0..5).any(|_| Choice::failed(members, member))
    }

    #[test]
    fn the_least_loaded_is_chosen_and_equals_take_turns() {
        assert_eq!(
            chosen(&[fake(SERVING, 1, 0), fake(SERVING, 1, 0)], None),
            [50, 50]
        );
        assert_eq!(
            chosen(&[fake(SERVING, 1, 3), fake(SERVING, 1, 2)], None),
            [0, 100]
        );
    }

    #[test]
    fn one_that_leaves_answers_only_when_no_other_does() {
        let members = [
            fake(LEAVING, 1, 0),
            fake(SERVING, 1, 9),
            fake(UNREADY, 1, 0),
        ];
        assert_eq!(chosen(&members, None), [0, 100, 0]);
        assert_eq!(
            chosen(&[fake(LEAVING, 1, 0), fake(CLOSED, 1, 0)], None),
            [100, 0]
        );
        let none = |members: &[Arc<Fake>]| Choice::default().choose(members, None).err();
        assert_eq!(
            none(&[fake(CLOSED, 1, 0), fake(UNREADY, 1, 0)]),
            Some(Missing::Closed)
        );
        assert_eq!(none(&[fake(UNREADY, 1, 0)]), Some(Missing::NotReady));
        assert_eq!(none(&[]), Some(Missing::NotReady));
    }

    #[test]
    fn a_canarys_turn_is_its_own_while_it_has_room() {
        let turn = |chosen| {
            Some(Canary {
                revision: RevisionNumber(2),
                chosen,
            })
        };
        let mut members = [fake(SERVING, 1, 0), fake(SERVING, 2, 5)];
        assert_eq!(chosen(&members, turn(true)), [0, 100]);
        assert_eq!(chosen(&members, turn(false)), [100, 0]);
        Arc::get_mut(&mut members[1]).unwrap().room = false;
        assert_eq!(chosen(&members, turn(true)), [100, 0]);
    }

    #[test]
    fn one_that_fails_in_a_row_is_left_alone_but_never_more_than_half() {
        let members = [
            fake(SERVING, 1, 0),
            fake(SERVING, 1, 0),
            fake(SERVING, 1, 0),
        ];
        for _ in 0..4 {
            assert!(!Choice::failed(&members, &members[0]));
        }
        members[0].health.succeeded();
        assert!(!Choice::failed(&members, &members[0]), "a success forgets");
        assert!(fail_often(&members, &members[0]));
        assert_eq!(chosen(&members, None)[0], 0);
        assert!(
            !fail_often(&members, &members[1]),
            "two of three are too many"
        );
        assert!(chosen(&members, None)[1] > 0);
        members[0].health.eject(Duration::ZERO);
        assert!(chosen(&members, None)[0] > 0, "it comes back");
        assert!(
            Choice::failed(&members, &members[0]),
            "and is gone at its next failure"
        );
    }

    #[test]
    fn the_only_one_of_its_revision_stays() {
        let members = [
            fake(SERVING, 1, 0),
            fake(SERVING, 1, 0),
            fake(SERVING, 2, 0),
        ];
        assert!(!fail_often(&members, &members[2]));
        let leaves = [fake(SERVING, 1, 0), fake(LEAVING, 1, 0)];
        assert!(
            !fail_often(&leaves, &leaves[0]),
            "one that leaves counts for none"
        );
        assert!(!fail_often(&leaves, &leaves[1]));
    }

    #[test]
    fn with_all_of_them_ejected_one_is_tried() {
        let members = [fake(SERVING, 1, 0)];
        members[0].health.eject(Duration::from_secs(60));
        assert_eq!(chosen(&members, None), [100]);
    }
}
