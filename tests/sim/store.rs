//! The store: one bucket with compare-and-set, fenced atomic batches, a lease that ends, republish.
//!
//! Owns what is durable. It knows keys and bytes; the laws of what is written are `laws`'.

use std::collections::BTreeMap;

use std::sync::Arc;

use wasmorch_api::record::TermRecord;
use wasmorch_api::subjects::key;
use wasmorch_api::{HostId, LeaderId, PlacementSet, Revision};
use wasmorch_planner::Write;

use super::bent::Bent;
use super::wire::{Answer, Event, HostMessage, Node, Op};
use super::world::World;

/// The lease ends so long after it was last written.
pub(crate) const LEASE_TTL: u64 = 3_000;
/// States of a key that a server that lags may still show.
const KEPT: usize = 4;

/// One state of one key; `None`: deleted.
type Version = (Option<Arc<Vec<u8>>>, u64);

/// What is stored, and when.
#[derive(Debug, Clone, Default)]
pub(crate) struct Bucket {
    pub(crate) keys: BTreeMap<String, Vec<Version>>,
    pub(crate) last: u64,
    pub(crate) term: Option<(TermRecord, u64)>,
}

/// The store.
#[derive(Debug, Default)]
pub(crate) struct Store {
    pub(crate) bucket: Bucket,
    lease: Option<(LeaderId, u64)>,
    lease_sequence: u64,
    /// Answers nothing: requests vanish.
    pub(crate) stopped: bool,
    /// Copies made now and then, for a restore.
    pub(crate) copies: Vec<Bucket>,
    /// When it was last put back: what it had acknowledged may be gone.
    pub(crate) regressed: Option<u64>,
}

impl Bucket {
    /// The newest value of a key, or an older one.
    fn read(&self, key: &str, back: usize) -> Option<(Arc<Vec<u8>>, u64)> {
        let versions = self.keys.get(key)?;
        let at = versions.len().checked_sub(1 + back)?;
        let (value, sequence) = &versions[at];
        Some((value.clone()?, *sequence))
    }

    /// The sequence of the newest table for gateways, one that was deleted among them.
    pub(crate) fn newest_table(&self) -> u64 {
        let is_table =
            |key: &String| key.starts_with("pub.endpoints.") || key.starts_with("pub.routes.");
        let tables = self.keys.iter().filter(|(key, _)| is_table(key));
        let newest = tables.filter_map(|(_, versions)| versions.last());
        newest.map(|(_, sequence)| *sequence).max().unwrap_or(0)
    }

    /// The sequence of a host's set, that of what deleted it included; 0 when there is neither.
    pub(crate) fn set_sequence(&self, host: &HostId) -> u64 {
        let versions = self.keys.get(&key::placements(host));
        let newest = versions.and_then(|versions| versions.last());
        newest.map_or(0, |(_, sequence)| *sequence)
    }

    fn put(&mut self, key: String, value: Option<Vec<u8>>) -> u64 {
        self.last += 1;
        let versions = self.keys.entry(key).or_default();
        if versions.len() == KEPT {
            versions.remove(0);
        }
        versions.push((value.map(Arc::new), self.last));
        self.last
    }

    /// What requests were answered, by their numbers.
    pub(crate) fn answers(&self) -> BTreeMap<u64, serde_json::Value> {
        let value = self.value(key::ANSWERS);
        let read = |value: Arc<Vec<u8>>| serde_json::from_slice(&value).expect("our own text");
        value.map(read).unwrap_or_default()
    }

    fn keep_answer(&mut self, id: u64, reply: serde_json::Value) {
        let mut answers = self.answers();
        answers.insert(id, reply);
        let value = serde_json::to_vec(&answers).expect("numbers are keys too");
        self.put(key::ANSWERS.to_owned(), Some(value));
    }

    pub(crate) fn has(&self, key: &str) -> bool {
        self.read(key, 0).is_some()
    }

    pub(crate) fn value(&self, key: &str) -> Option<Arc<Vec<u8>>> {
        self.read(key, 0).map(|(value, _)| value)
    }

    fn entries(&self) -> Vec<(String, Vec<u8>, u64)> {
        self.keys
            .keys()
            .filter_map(|key| {
                let (value, sequence) = self.read(key, 0)?;
                Some((key.clone(), value.as_ref().clone(), sequence))
            })
            .collect()
    }
}

impl Store {
    fn holder(&self, now: u64) -> Option<&LeaderId> {
        self.lease
            .as_ref()
            .filter(|(_, until)| *until > now)
            .map(|(leader, _)| leader)
    }

    /// All revisions that it holds.
    pub(crate) fn revisions(&self) -> Vec<Revision> {
        let entries = self.bucket.entries().into_iter();
        let revisions = entries.filter(|(key, ..)| key.starts_with("revision."));
        revisions
            .map(|(_, value, _)| serde_json::from_slice(&value).expect("what was written"))
            .collect()
    }

    /// Put back to an older copy: what came after is gone, the lease too.
    pub(crate) fn restore(&mut self, copy: Bucket, now: u64) {
        self.bucket = copy;
        self.lease = None;
        self.lease_sequence = 0;
        self.regressed = Some(now);
    }
}

impl World {
    pub(crate) fn at_store(&mut self, from: Node, inc: u64, rpc: u64, op: Op) {
        if self.store.stopped || !self.passes(Node::Store, from) {
            // What only reads may as well never have been asked; a write whose answer finds no way
            // back happens all the same.
            if self.store.stopped || !matches!(op, Op::Batch { .. } | Op::WriteLease { .. }) {
                return;
            }
        }
        let answer = self.store_does(from, op);
        let event = match from {
            Node::Controller(at) => Event::ControllerAnswer {
                at,
                inc,
                rpc,
                answer,
            },
            Node::Host(at) => Event::HostAnswer {
                at,
                inc,
                rpc,
                answer,
            },
            Node::Store | Node::User => return,
        };
        self.send_once(Node::Store, from, event);
    }

    fn store_does(&mut self, from: Node, op: Op) -> Answer {
        let now = self.now;
        match op {
            Op::ReadLease => {
                let store = &self.store;
                Answer::Lease(store.holder(now).cloned(), store.lease_sequence)
            }
            Op::WriteLease { leader, expect } => {
                let store = &mut self.store;
                if store.lease_sequence != expect {
                    return Answer::Fenced;
                }
                store.bucket.last += 1;
                store.lease = Some((leader, now + LEASE_TTL));
                store.lease_sequence = store.bucket.last;
                Answer::Stored(store.lease_sequence)
            }
            Op::ReadTerm => {
                let term = &self.store.bucket.term;
                let sequence = term.as_ref().map_or(0, |(_, sequence)| *sequence);
                Answer::Term(term.as_ref().map(|(record, _)| record.clone()), sequence)
            }
            Op::WriteTerm { record, expect } => {
                let bucket = &mut self.store.bucket;
                let before = bucket.term.as_ref().map_or(0, |(_, sequence)| *sequence);
                if before != expect {
                    return Answer::Fenced;
                }
                bucket.last += 1;
                let last = bucket.last;
                let known = bucket.term.replace((record.clone(), last));
                let words = format!("term {} is {}'s, fence {last}", record.term, record.leader);
                self.say("store", || words);
                self.law_terms_grow(known.map(|(record, _)| record), &record);
                Answer::Stored(last)
            }
            Op::Load { fence } => {
                let bucket = &self.store.bucket;
                let current = bucket.term.as_ref().map_or(0, |(_, sequence)| *sequence);
                if current > fence {
                    return Answer::Fenced;
                }
                Answer::Loaded {
                    entries: bucket.entries(),
                    last: bucket.last,
                }
            }
            Op::Batch {
                fence,
                writes,
                answer,
                by,
            } => self.store_batch((from, fence), answer, &writes, &by),
            Op::LastSequence => Answer::Last(self.store.bucket.last),
            Op::SetSequence { host } => Answer::Last(self.store.bucket.set_sequence(&host)),
            Op::Connect { host } => match self.store.bucket.term.clone() {
                Some((record, _)) => Answer::Connected {
                    cluster: record.cluster,
                    term: record.term,
                    set: self.read_set(&host),
                },
                None => Answer::NotReady,
            },
            Op::Set { host } => Answer::Set(self.read_set(&host)),
            Op::Revision { workload, number } => {
                let value = self.read_lagging(&key::revision(&workload, number));
                let revision = value.map(|(value, _)| {
                    Arc::new(serde_json::from_slice(&value).expect("a stored revision reads back"))
                });
                Answer::Revision(revision)
            }
            Op::Artifact => Answer::Artifact,
        }
    }

    fn read_lagging(&mut self, key: &str) -> Option<(Arc<Vec<u8>>, u64)> {
        let back = if self.rng.per_mille(self.weather.stale) {
            self.rng.below(KEPT)
        } else {
            0
        };
        self.store.bucket.read(key, back)
    }

    fn read_set(&mut self, host: &HostId) -> Option<(Box<PlacementSet>, u64)> {
        let (value, sequence) = self.read_lagging(&key::placements(host))?;
        let set = serde_json::from_slice(&value).expect("a stored set reads back");
        Some((Box::new(set), sequence))
    }

    fn store_batch(
        &mut self,
        (from, fence): (Node, u64),
        answer: Option<(u64, serde_json::Value)>,
        writes: &[Write],
        by: &(wasmorch_api::Term, LeaderId),
    ) -> Answer {
        let current = self.store.bucket.term.as_ref();
        let current = current.map_or(0, |(_, sequence)| *sequence);
        if current != fence && self.bent != Some(Bent::FenceLeftOut) {
            self.say("store", || format!("a batch of {from} is fenced"));
            return Answer::Fenced;
        }
        self.law_only_the_leader_writes(by);
        // First, as the controller has it: the writes' sequences are counted from the end.
        if let Some((id, reply)) = answer {
            self.store.bucket.keep_answer(id, reply);
            self.laws.last_written = self.store.bucket.last;
        }
        let mut sets = Vec::new();
        for write in writes {
            let sequence = self.store.bucket.put(write.key(), write.body());
            self.laws.last_written = self.store.bucket.last;
            if let Write::Placements(set) = write {
                sets.push((set.clone(), sequence));
            }
        }
        let last = self.store.bucket.last;
        if self.told() {
            let keys: Vec<String> = writes.iter().map(Write::key).collect();
            self.say("store", || format!("{last}: {}", keys.join(" ")));
        }
        self.laws_of_writes(writes);
        for (set, sequence) in sets {
            let to: Vec<usize> = self.actors_of(&set.host);
            for at in to {
                let inc = self.hosts[at].inc;
                let message = HostMessage::Set(Box::new(set.clone()), sequence);
                self.send(
                    Node::Store,
                    Node::Host(at),
                    Event::HostMessage { at, inc, message },
                );
            }
        }
        Answer::Stored(last)
    }
}
