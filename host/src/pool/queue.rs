//! What waits for the compiler and what it has in hand: whose turn it is. Pure.
//!
//! ```text
//!   waiting, by namespace ──turn about──> in hand ──done──> gone
//!                                           │ the process ended
//!            suspects <─────────────────────┘
//!               └──one at a time, before all else──> in hand
//! ```
//!
//! Rules: namespaces take turns, and none has more than [`PART`] in hand, so that who deploys a thousand components
//! holds nobody up for longer than one of them takes. What several namespaces want has a place in the line of each.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use wasmorch_api::{Digest, Name};

/// Artifacts that the process has at a time: each is held in memory, and its threads are few.
pub(super) const IN_HAND: usize = 8;
/// Of one namespace: as many as keep the threads busy, and room for another's.
const PART: usize = IN_HAND / 2;

/// Who wants something: a namespace; `None` where that is not known any more.
type Owner = Option<Name>;

/// See the module's head.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// Each in the order of its asking; nobody without anything.
    waiting: BTreeMap<Owner, VecDeque<Digest>>,
    /// Who waits, the next first.
    turns: VecDeque<Owner>,
    /// The process ended while it had them.
    suspects: VecDeque<(Owner, Digest)>,
    in_hand: Vec<(Owner, Digest)>,
    /// What is in hand is a suspect, and has the process alone.
    is_trial: bool,
}

impl Queue {
    /// Somebody wants an artifact, unless it is there already.
    pub(super) fn push(&mut self, owners: BTreeSet<Name>, digest: &Digest) {
        let mut known = self.in_hand.iter().chain(&self.suspects);
        if known.any(|(_, other)| other == digest) {
            return;
        }
        let nobody = owners.is_empty().then_some(None);
        for owner in owners.into_iter().map(Some).chain(nobody) {
            let line = self.waiting.entry(owner.clone()).or_insert_with(|| {
                self.turns.push_back(owner);
                VecDeque::new()
            });
            if !line.contains(digest) {
                line.push_back(digest.clone());
            }
        }
    }

    pub(super) fn in_hand(&self) -> impl ExactSizeIterator<Item = &Digest> {
        self.in_hand.iter().map(|(_, digest)| digest)
    }

    /// The next, whether the process has room for it or not.
    pub(super) fn first(&self) -> Option<&Digest> {
        let suspect = self.suspects.front().map(|(_, digest)| digest);
        suspect.or_else(|| self.waiting.get(self.turns.front()?)?.front())
    }

    /// Whether the process may have another.
    pub(super) fn has_next(&self) -> bool {
        if self.in_hand.is_empty() {
            return self.first().is_some();
        }
        !self.is_trial && self.suspects.is_empty() && self.turn().is_some()
    }

    /// Whose turn it is, as a place in `turns`.
    fn turn(&self) -> Option<usize> {
        let has = |owner: &Owner| self.in_hand.iter().filter(|(of, _)| of == owner).count();
        let mut turns = self.turns.iter();
        turns.position(|owner| self.in_hand.len() < IN_HAND && has(owner) < PART)
    }

    /// Takes the next in hand.
    pub(super) fn take(&mut self) -> Option<Digest> {
        if !self.has_next() {
            return None;
        }
        let taken = match self.suspects.pop_front() {
            Some(suspect) => {
                self.is_trial = true;
                suspect
            }
            None => {
                let at = self.turn()?;
                let owner = self.turns.remove(at)?;
                let digest = self.waiting.get_mut(&owner)?.pop_front()?;
                self.turns.push_back(owner.clone());
                self.forget(&digest);
                (owner, digest)
            }
        };
        let digest = taken.1.clone();
        self.in_hand.push(taken);
        Some(digest)
    }

    /// It is made, or will not be.
    pub(super) fn done(&mut self, digest: &Digest) {
        self.in_hand.retain(|(_, other)| other != digest);
        self.suspects.retain(|(_, other)| other != digest);
        self.is_trial &= !self.in_hand.is_empty();
        self.forget(digest);
    }

    /// The process is gone: what it had goes one at a time from now on.
    pub(super) fn lost(&mut self) {
        for suspect in self.in_hand.drain(..).rev() {
            self.suspects.push_front(suspect);
        }
        self.is_trial = false;
    }

    /// Nobody waits for it any more, and who waits for nothing has no turn.
    fn forget(&mut self, digest: &Digest) {
        self.waiting.retain(|_, line| {
            line.retain(|other| other != digest);
            !line.is_empty()
        });
        self.turns.retain(|owner| self.waiting.contains_key(owner));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn owners(names: &[&str]) -> BTreeSet<Name> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    fn digest(number: usize) -> Digest {
        Digest::of(&number.to_le_bytes())
    }

    fn all(queue: &mut Queue) -> Vec<Digest> {
        std::iter::from_fn(|| queue.take()).collect()
    }

    /// The next in hand, or else what is there already.
    fn next(queue: &mut Queue) -> Option<Digest> {
        let next = queue.take();
        next.or_else(|| queue.in_hand().next().cloned())
    }

    #[test]
    fn who_comes_after_a_thousand_is_next() {
        let mut queue = Queue::default();
        for number in 0..1000 {
            queue.push(owners(&["many"]), &digest(number));
        }
        let first = all(&mut queue);
        assert_eq!(first, (0..PART).map(digest).collect::<Vec<_>>(), "a part");
        queue.push(owners(&["few"]), &digest(5000));
        assert_eq!(queue.take(), Some(digest(5000)), "there is room for it");
        queue.push(owners(&["few"]), &digest(5001));
        queue.push(owners(&["other"]), &digest(5002));
        queue.done(&first[0]);
        let next = all(&mut queue);
        let expected = [5002, PART, 5001].map(digest);
        assert_eq!(BTreeSet::from_iter(&next), BTreeSet::from_iter(&expected));
    }

    #[test]
    fn what_two_want_is_made_when_the_first_of_them_has_its_turn() {
        let mut queue = Queue::default();
        for number in 0..100 {
            queue.push(owners(&["many"]), &digest(number));
        }
        queue.push(owners(&["few"]), &digest(99));
        assert!(all(&mut queue).contains(&digest(99)));
        queue.done(&digest(99));
        let mut made = 1;
        while let Some(next) = next(&mut queue) {
            assert_ne!(next, digest(99), "once");
            queue.done(&next);
            made += 1;
        }
        assert_eq!(made, 100);
    }

    #[test]
    fn a_suspect_has_the_process_alone() {
        let mut queue = Queue::default();
        (0..3).for_each(|number| queue.push(owners(&["a"]), &digest(number)));
        assert_eq!(all(&mut queue).len(), 3);
        queue.push(owners(&["b"]), &digest(9));
        queue.lost();
        for number in 0..3 {
            assert_eq!(all(&mut queue), [digest(number)]);
            queue.done(&digest(number));
        }
        assert_eq!(all(&mut queue), [digest(9)]);
    }

    #[derive(Debug, Clone)]
    enum Act {
        Push(usize, usize),
        Take,
        /// Of what is in hand, the one at this place.
        Done(usize),
        Lost,
    }

    fn act() -> impl Strategy<Value = Act> {
        prop_oneof![
            4 => (0..4_usize, 0..40_usize).prop_map(|(owner, number)| Act::Push(owner, number)),
            6 => Just(Act::Take),
            4 => (0..IN_HAND).prop_map(Act::Done),
            1 => Just(Act::Lost),
        ]
    }

    const NAMES: [&str; 4] = ["a", "b", "c", "d"];

    proptest! {
        /// Everything is taken, nothing twice at a time, nobody has more than a part, and between two turns of one
        /// there is one of everybody else who waits and may.
        #[test]
        fn turns_are_fair_and_nothing_is_lost(acts in proptest::collection::vec(act(), 1..200)) {
            let mut queue = Queue::default();
            let mut wanted = BTreeSet::new();
            for act in acts {
                match act {
                    Act::Push(owner, number) => {
                        queue.push(owners(&NAMES[owner..=owner]), &digest(number));
                        wanted.insert(digest(number));
                    }
                    Act::Take => {
                        let waits: Vec<Owner> = queue.turns.iter().cloned().collect();
                        if let Some(taken) = queue.take() {
                            let same = queue.in_hand().filter(|other| **other == taken);
                            prop_assert_eq!(same.count(), 1);
                            let (owner, _) = queue.in_hand.last().expect("it was taken");
                            let of = |owner: &Owner| queue.in_hand.iter().filter(|(of, _)| of == owner).count();
                            if !queue.is_trial {
                                prop_assert!(of(owner) <= PART);
                                let passed = waits.iter().take_while(|other| *other != owner);
                                for other in passed {
                                    prop_assert!(of(other) >= PART, "{:?} was passed over", other);
                                }
                            }
                        }
                    }
                    Act::Done(at) => {
                        let digest = queue.in_hand().nth(at).cloned();
                        if let Some(digest) = digest {
                            queue.done(&digest);
                            wanted.remove(&digest);
                        }
                    }
                    Act::Lost => queue.lost(),
                }
                prop_assert!(queue.in_hand().len() <= IN_HAND);
                prop_assert_eq!(queue.turns.len(), queue.waiting.len());
            }
            while let Some(digest) = next(&mut queue) {
                queue.done(&digest);
                prop_assert!(wanted.remove(&digest));
            }
            prop_assert!(wanted.is_empty());
            prop_assert!(queue.first().is_none());
        }
    }
}
