//! What a term begins with: its record, and the state as the store held it.
//!
//! Pure.

use wasmorch_api::record::TermRecord;
use wasmorch_api::subjects::key;
use wasmorch_api::{ClusterId, LeaderId, Term};
use wasmorch_planner::{Cluster, Stored};

use crate::clock::Clock;
use crate::control_loop::Answers;
use crate::guard::Guard;
use crate::store::Loaded;

/// The term as minted.
pub(super) struct Minted {
    pub(super) record: TermRecord,
    /// The sequence of its record: the fence of every write.
    pub(super) fence: u64,
}

/// What the store held when the term began.
pub(super) struct Restored {
    pub(super) cluster: Cluster,
    pub(super) guard: Guard,
    pub(super) answers: Answers,
}

/// What the stored term leads to; `None`: it is the last that there can be.
pub(super) fn next_term(
    before: Option<TermRecord>,
    floor: Term,
    leader: &LeaderId,
    clock: &Clock,
    random: [u8; 10],
) -> Option<TermRecord> {
    let (cluster, last, formerly) = match before {
        Some(record) => (record.cluster, record.term, record.formerly),
        None => (ClusterId::from_random(random), Term(0), Vec::new()),
    };
    let last = last.max(floor);
    (last < last.next()).then(|| TermRecord {
        cluster,
        term: last.next(),
        leader: leader.clone(),
        at: clock.now(),
        formerly,
    })
}

/// The state as loaded. Records come first: what belongs to an unknown workload is a leftover.
pub(super) fn restore(minted: &Minted, loaded: Loaded, clock: &Clock) -> Restored {
    let TermRecord {
        cluster,
        term,
        leader,
        ..
    } = &minted.record;
    let mut unreadable = Vec::new();
    let mut entries: Vec<(u8, Stored, u64)> = Vec::with_capacity(loaded.entries.len());
    let mut answers = Answers::default();
    let mut broken_off = false;
    for entry in loaded.entries {
        if entry.key == key::ANSWERS {
            answers = Answers::restore(&entry.value);
            continue;
        }
        if entry.key == key::RECOVERING {
            broken_off = true;
            continue;
        }
        match Stored::parse(&entry.key, &entry.value) {
            Ok(Some(stored)) => entries.push((rank(&stored), stored, entry.sequence)),
            Ok(None) => tracing::debug!(key = entry.key, "a key of another version is left alone"),
            Err(error) => {
                tracing::error!(key = entry.key, %error, "a stored value cannot be read");
                unreadable.push(entry.key);
            }
        }
    }
    entries.sort_by_key(|(rank, _, sequence)| (*rank, *sequence));
    let known = |key: &str| key != key::TERM && key != key::LEASE;
    unreadable.retain(|key| known(key));
    let hostless = !entries
        .iter()
        .any(|(_, stored, _)| matches!(stored, Stored::Host(_)));
    let mut state = Cluster::new(cluster.clone(), *term, leader.clone(), clock.now());
    for (_, stored, sequence) in entries {
        state.load(stored, sequence);
    }
    let last = loaded.last_sequence.max(minted.fence);
    let mut guard = Guard::new(cluster.clone(), hostless, last, &unreadable, clock.now());
    if broken_off {
        guard.freeze("a recovery was broken off, and the state is not whole".to_owned());
    }
    Restored {
        cluster: state,
        guard,
        answers,
    }
}

fn rank(stored: &Stored) -> u8 {
    match stored {
        Stored::Record(_) | Stored::Removed(_) => 0,
        Stored::Revision(_) => 1,
        Stored::Host(_) | Stored::Namespace(_) => 2,
        Stored::Placements(_) => 3,
        Stored::Endpoints(_) | Stored::Routes(_) => 4,
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use wasmorch_api::Timestamp;

    use super::*;
    use crate::store::LoadedEntry;

    fn clock() -> Clock {
        Clock::at(Timestamp(1_700_000_000_000))
    }

    fn leader() -> LeaderId {
        "l1".parse().unwrap()
    }

    #[test]
    fn terms_only_grow_and_the_cluster_stays() {
        let clock = self::clock();
        let first = next_term(None, Term(0), &leader(), &clock, [7; 10]).unwrap();
        assert_eq!(
            (first.term, first.cluster.as_str()),
            (Term(1), "07070707070707070707")
        );
        let second = next_term(Some(first.clone()), Term(0), &leader(), &clock, [8; 10]).unwrap();
        assert_eq!((second.term, &second.cluster), (Term(2), &first.cluster));
        let after_loss = next_term(Some(first), Term(9), &leader(), &clock, [8; 10]).unwrap();
        assert_eq!(after_loss.term, Term(10), "later than what a host has seen");
        let last = TermRecord {
            term: Term(u64::MAX),
            ..after_loss
        };
        let after = next_term(Some(last), Term(9), &leader(), &clock, [8; 10]);
        assert!(after.is_none(), "none comes after the last");
    }

    fn minted() -> Minted {
        let record = next_term(None, Term(0), &leader(), &clock(), [7; 10]).unwrap();
        Minted { record, fence: 5 }
    }

    fn entry(key: &str, value: &'static str, sequence: u64) -> LoadedEntry {
        LoadedEntry {
            key: key.to_owned(),
            value: Bytes::from(value),
            sequence,
        }
    }

    #[test]
    fn a_value_that_cannot_be_read_freezes_the_leader() {
        let loaded = Loaded {
            entries: vec![entry("workload.shop.web", "{", 3)],
            last_sequence: 5,
        };
        let Restored { cluster, guard, .. } = restore(&minted(), loaded, &clock());
        assert!(cluster.workloads().is_empty());
        assert!(
            guard
                .frozen()
                .is_some_and(|why| why.contains("workload.shop.web"))
        );
    }

    #[test]
    fn records_are_loaded_before_what_belongs_to_them() {
        let routes = r#"{"cluster":"c","term":1,"namespace":"shop","workload":"web","kind":"http","routes":[]}"#;
        let record = r#"{"namespace":"shop","name":"web","kind":"http","revision":1,"newest":1,
            "desired":2,"next_placement":1,"created":"2023-11-14T22:13:20Z","updated":"2023-11-14T22:13:20Z"}"#;
        let namespace = r#"{"namespace":"shop","quota":{"replicas":4},"updated":"2023-11-14T22:13:20Z","by":"ann"}"#;
        let loaded = Loaded {
            entries: vec![
                entry("pub.routes.shop.web", routes, 2),
                entry("workload.shop.web", record, 3),
                entry("namespace.shop", namespace, 4),
            ],
            last_sequence: 5,
        };
        let Restored { cluster, guard, .. } = restore(&minted(), loaded, &clock());
        assert_eq!(guard.frozen(), None);
        let workload = cluster.workloads().values().next().unwrap();
        assert!(workload.routes.is_some());
        assert_eq!(workload.index, 3);
    }
}
