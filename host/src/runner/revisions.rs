//! One copy of each revision in this runner, whatever the number of its replicas: a spec is most of what one
//! that waits would take.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use wasmorch_api::{Revision, RevisionNumber, WorkloadKey};

/// Forgotten ones are looked for when there are so many.
const LEAST: usize = 64;

/// Those that some replica here is one of.
#[derive(Default)]
pub(super) struct Revisions {
    known: HashMap<(WorkloadKey, RevisionNumber), Weak<Revision>>,
    look_at: usize,
}

impl Revisions {
    /// The copy that replicas here have already, or this one from now on.
    pub(super) fn shared(&mut self, came: Arc<Revision>) -> Arc<Revision> {
        if self.known.len() >= self.look_at.max(LEAST) {
            self.known.retain(|_, known| known.strong_count() > 0);
            self.look_at = self.known.len() * 2;
        }
        let key = (came.key(), came.number);
        // A workload that was removed and made anew begins at 1 again.
        match self.known.get(&key).and_then(Weak::upgrade) {
            Some(known) if *known == *came => known,
            _ => {
                self.known.insert(key, Arc::downgrade(&came));
                came
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use wasmorch_api::{Digest, Kind, Timestamp, WorkloadSpec};

    use super::*;

    fn revision(number: u64, by: &str) -> Arc<Revision> {
        Arc::new(Revision {
            namespace: "shop".parse().unwrap(),
            name: "web".parse().unwrap(),
            number: RevisionNumber(number),
            kind: Kind::Http,
            artifact: Digest::of(b""),
            features: Vec::new(),
            spec: WorkloadSpec::default(),
            at: Timestamp(0),
            by: by.to_owned(),
            changes: Vec::new(),
        })
    }

    #[test]
    fn equal_ones_are_shared_and_others_of_the_same_number_are_not() {
        let mut revisions = Revisions::default();
        let first = revisions.shared(revision(1, "ada"));
        assert!(Arc::ptr_eq(&first, &revisions.shared(revision(1, "ada"))));
        let anew = revisions.shared(revision(1, "bob"));
        assert_eq!((&*first.by, &*anew.by), ("ada", "bob"));
        assert!(Arc::ptr_eq(&anew, &revisions.shared(revision(1, "bob"))));
    }

    #[test]
    fn those_that_no_replica_has_are_forgotten() {
        let mut revisions = Revisions::default();
        let held = revisions.shared(revision(0, "ada"));
        for number in 1..10_000 {
            drop(revisions.shared(revision(number, "ada")));
        }
        assert!(revisions.known.len() <= LEAST, "{}", revisions.known.len());
        assert!(Arc::ptr_eq(&held, &revisions.shared(revision(0, "ada"))));
    }
}
