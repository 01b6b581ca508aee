//! A controller's leadership: candidate, lease, term, load; as `controller/src/leader` does it.
//!
//! Owns the steps up to a running term and the keeping of the lease. The running term itself is
//! `term`'s. Who may take the lease and until when it holds, the guard and the pace are the
//! controller's real ones.

use std::collections::BTreeMap;
use std::time::Duration;

use wasmorch_api::record::{Lease as LeaseRecord, TermRecord};
use wasmorch_api::{ClusterId, LeaderId, Term, Timestamp};
use wasmorch_controller::lease::{LeaseClock, LeaseTimes, Watch, look_again};
use wasmorch_controller::simulation::{Guard, Question};
use wasmorch_controller::store::LeaseView;
use wasmorch_planner::{Cluster, Stored};

use super::bent::Bent;
use super::term::Leading;
use super::wire::{Answer, Event, Node, Op, Wake};
use super::world::World;

/// A store that fails is asked again after this.
const STORE_AGAIN: u64 = 1_000;
/// After the end of a term.
const PAUSE: u64 = 250;
/// An answer to most questions is waited for so long.
const PATIENCE: u64 = 2_000;
/// A batch's outcome is unknown after this.
pub(crate) const BATCH_TIMEOUT: u64 = 5_000;
const RENEWAL_MAX: u64 = 500;
const RENEW_AGAIN: u64 = 200;
const MINT_TRIES: u32 = 5;

/// What an answer of the store is for.
#[derive(Debug, Clone)]
pub(crate) enum Purpose {
    LookAtLease,
    TakeLease {
        sent: u64,
    },
    Renew {
        sent: u64,
    },
    StillOurs,
    ReadTerm {
        tries: u32,
    },
    WriteTerm {
        record: TermRecord,
        tries: u32,
    },
    Load {
        record: TermRecord,
        fence: u64,
    },
    /// Of the running term.
    Batch,
    Sequence(Question),
    TermSeen(Term),
}

/// The lease that is held.
#[derive(Debug)]
pub(crate) struct Lease {
    pub(crate) clock: LeaseClock,
    sequence: u64,
}

/// Where a controller stands.
pub(crate) enum Phase {
    Down,
    Candidate,
    /// It has the lease and gets its term.
    Beginning,
    Leading(Box<Leading>),
}

/// One controller process.
pub(crate) struct Controller {
    pub(crate) inc: u64,
    pub(crate) frozen_until: Option<u64>,
    pub(crate) leader: LeaderId,
    /// Its wall clock against the true time.
    pub(crate) skew: i64,
    floor: Term,
    cluster: Option<ClusterId>,
    pub(crate) phase: Phase,
    pub(crate) lease: Option<Lease>,
    /// What it has seen of another's.
    watch: Watch,
    rpc: u64,
    pub(crate) pending: BTreeMap<u64, Purpose>,
}

impl Controller {
    pub(crate) fn new(at: usize, skew: i64) -> Self {
        Self {
            inc: 0,
            frozen_until: None,
            leader: format!("ctl{at}").parse().expect("an id"),
            skew,
            floor: Term(0),
            cluster: None,
            phase: Phase::Down,
            lease: None,
            watch: Watch::default(),
            rpc: 0,
            pending: BTreeMap::new(),
        }
    }

    pub(crate) fn leads(&self) -> Option<&Leading> {
        match &self.phase {
            Phase::Leading(leading) => Some(leading),
            _ => None,
        }
    }
}

impl World {
    pub(crate) fn controller_clock(&self, at: usize) -> Timestamp {
        Timestamp(self.now.saturating_add_signed(self.controllers[at].skew))
    }

    pub(crate) fn say_controller(&mut self, at: usize, what: impl FnOnce() -> String) {
        self.say(["ctl0", "ctl1", "ctl2"][at], what);
    }

    /// A process starts: it knows nothing but its name, which is a new one.
    pub(crate) fn controller_starts(&mut self, at: usize) {
        let controller = &mut self.controllers[at];
        controller.inc += 1;
        let name = format!("ctl{at}-{}", controller.inc);
        controller.leader = name.parse().expect("an id");
        controller.floor = Term(0);
        controller.cluster = None;
        controller.frozen_until = None;
        self.candidate(at, 10);
    }

    pub(crate) fn controller_crashes(&mut self, at: usize) {
        let controller = &mut self.controllers[at];
        controller.inc += 1;
        controller.phase = Phase::Down;
        controller.lease = None;
        controller.pending.clear();
        self.say_controller(at, || "crashes".into());
    }

    fn candidate(&mut self, at: usize, wait: u64) {
        let controller = &mut self.controllers[at];
        controller.phase = Phase::Candidate;
        controller.lease = None;
        controller.watch = Watch::default();
        controller.pending.clear();
        self.wake_controller(at, self.now + wait, Wake::Look);
    }

    /// Drops everything of the term.
    pub(crate) fn step_down(&mut self, at: usize, why: &str) {
        self.say_controller(at, || format!("steps down: {why}"));
        self.candidate(at, PAUSE);
    }

    /// A host has seen a later term than the store: the next one is later still.
    pub(crate) fn step_down_behind(&mut self, at: usize, seen: Term) {
        let floor = &mut self.controllers[at].floor;
        *floor = (*floor).max(seen);
        self.step_down(at, "hosts have seen a later term than the store");
    }

    pub(crate) fn ask_store(&mut self, at: usize, purpose: Purpose, op: Op, patience: u64) {
        let controller = &mut self.controllers[at];
        controller.rpc += 1;
        let (rpc, inc) = (controller.rpc, controller.inc);
        controller.pending.insert(rpc, purpose);
        let from = Node::Controller(at);
        self.send_once(from, Node::Store, Event::AtStore { from, inc, rpc, op });
        let answer = Answer::Timeout;
        self.after(
            patience,
            Event::ControllerAnswer {
                at,
                inc,
                rpc,
                answer,
            },
        );
    }

    pub(crate) fn controller_wakes(&mut self, at: usize, wake: Wake) {
        match wake {
            Wake::Look if matches!(self.controllers[at].phase, Phase::Candidate) => {
                self.ask_store(at, Purpose::LookAtLease, Op::ReadLease, PATIENCE);
            }
            Wake::Look => {}
            Wake::Lease => self.renew_lease(at),
            Wake::Loop(ticket) => self.loop_wakes(at, ticket),
            Wake::Again => self.send_batch(at),
        }
    }

    pub(crate) fn controller_answered(&mut self, at: usize, rpc: u64, answer: Answer) {
        let Some(purpose) = self.controllers[at].pending.remove(&rpc) else {
            return;
        };
        match purpose {
            Purpose::LookAtLease => self.lease_seen(at, answer),
            Purpose::TakeLease { sent } => self.lease_taken(at, sent, &answer),
            Purpose::Renew { sent } => self.lease_renewed(at, sent, &answer),
            Purpose::StillOurs => self.lease_still_ours(at, &answer),
            Purpose::ReadTerm { tries } => self.term_read(at, tries, answer),
            Purpose::WriteTerm { record, tries } => self.term_written(at, record, tries, &answer),
            Purpose::Load { record, fence } => self.loaded(at, &record, fence, answer),
            Purpose::Batch => self.batch_answered(at, &answer),
            Purpose::Sequence(question) => self.sequence_found(at, &question, &answer),
            Purpose::TermSeen(seen) => self.term_found(at, seen, answer),
        }
    }

    // The lease.

    fn lease_seen(&mut self, at: usize, answer: Answer) {
        let Answer::Lease(holder, sequence) = answer else {
            return self.lease_unknown(at);
        };
        let view = match holder.filter(|_| self.bent != Some(Bent::LeaseNotWatched)) {
            None => LeaseView::Free { sequence },
            Some(leader) => LeaseView::Held {
                lease: LeaseRecord {
                    leader,
                    term: Term(0),
                },
                sequence,
            },
        };
        let now = self.instant(self.now);
        let controller = &mut self.controllers[at];
        let leader = controller.leader.clone();
        let may = controller
            .watch
            .may_take(&view, &leader, now, &LeaseTimes::default());
        let Some(expect) = may else {
            return self.look_later(at);
        };
        let purpose = Purpose::TakeLease { sent: self.now };
        let op = Op::WriteLease { leader, expect };
        self.ask_store(at, purpose, op, PATIENCE);
    }

    /// When the lease would be over, or soon.
    fn look_later(&mut self, at: usize) {
        let (now, dice) = (self.instant(self.now), self.rng.next());
        let watch = &self.controllers[at].watch;
        let wake = watch.look_at(now, look_again(dice), &LeaseTimes::default());
        self.wake_controller(at, self.time_of(wake), Wake::Look);
    }

    /// The store does not say.
    fn lease_unknown(&mut self, at: usize) {
        self.controllers[at].watch.forget();
        self.wake_controller(at, self.now + STORE_AGAIN, Wake::Look);
    }

    fn lease_taken(&mut self, at: usize, sent: u64, answer: &Answer) {
        let sequence = match answer {
            Answer::Stored(sequence) => *sequence,
            Answer::Fenced => return self.look_later(at),
            _ => return self.lease_unknown(at),
        };
        self.law_of_one_lease(at);
        let clock = LeaseClock::won(LeaseTimes::default(), self.instant(sent));
        self.controllers[at].lease = Some(Lease { clock, sequence });
        self.controllers[at].phase = Phase::Beginning;
        self.say_controller(at, || "has the lease".into());
        self.lease_due(at);
        self.ask_store(at, Purpose::ReadTerm { tries: 0 }, Op::ReadTerm, PATIENCE);
    }

    fn lease_due(&mut self, at: usize) {
        if let Some(lease) = &self.controllers[at].lease {
            let due = lease.clock.renewal_due().min(lease.clock.holds_until());
            let due = self.time_of(due);
            self.wake_controller(at, due, Wake::Lease);
        }
    }

    pub(crate) fn lease_holds(&self, at: usize) -> bool {
        let now = self.instant(self.now);
        let lease = &self.controllers[at].lease;
        lease.as_ref().is_some_and(|lease| lease.clock.holds(now))
    }

    fn renew_lease(&mut self, at: usize) {
        let Some(lease) = &self.controllers[at].lease else {
            return;
        };
        if self.instant(self.now) < lease.clock.renewal_due() {
            return;
        }
        if !self.lease_holds(at) {
            self.step_down(at, "the lease has ended");
            return;
        }
        let under_way =
            |purpose: &Purpose| matches!(purpose, Purpose::Renew { .. } | Purpose::StillOurs);
        if self.controllers[at].pending.values().any(under_way) {
            return;
        }
        let expect = lease.sequence;
        let leader = self.controllers[at].leader.clone();
        let purpose = Purpose::Renew { sent: self.now };
        self.ask_store(at, purpose, Op::WriteLease { leader, expect }, RENEWAL_MAX);
    }

    fn lease_renewed(&mut self, at: usize, sent: u64, answer: &Answer) {
        let (sent, now) = (self.instant(sent), self.instant(self.now));
        let Some(lease) = &mut self.controllers[at].lease else {
            return;
        };
        match answer {
            Answer::Stored(sequence) => {
                lease.sequence = *sequence;
                lease.clock.renewed(sent, now);
                if self.lease_holds(at) {
                    self.lease_due(at);
                } else {
                    self.step_down(at, "the lease has ended");
                }
            }
            Answer::Fenced => self.ask_store(at, Purpose::StillOurs, Op::ReadLease, RENEWAL_MAX),
            _ => self.wake_controller(at, self.now + RENEW_AGAIN, Wake::Lease),
        }
    }

    fn lease_still_ours(&mut self, at: usize, answer: &Answer) {
        let controller = &mut self.controllers[at];
        match (answer, &mut controller.lease) {
            (Answer::Lease(Some(holder), sequence), Some(lease))
                if *holder == controller.leader =>
            {
                lease.sequence = *sequence;
                self.renew_lease(at);
            }
            _ => self.step_down(at, "the lease is another's"),
        }
    }

    // The term.

    fn term_read(&mut self, at: usize, tries: u32, answer: Answer) {
        let Answer::Term(before, expect) = answer else {
            self.step_down(at, "the term cannot be read");
            return;
        };
        let controller = &self.controllers[at];
        let (cluster, last) = match before {
            Some(record) => (record.cluster, record.term),
            None => (ClusterId::from_random(self.rng.id_bytes()), Term(0)),
        };
        let record = TermRecord {
            cluster,
            term: last.max(controller.floor).next(),
            leader: controller.leader.clone(),
            at: self.controller_clock(at),
            formerly: Vec::new(),
        };
        let op = Op::WriteTerm {
            record: record.clone(),
            expect,
        };
        let purpose = Purpose::WriteTerm {
            record,
            tries: tries + 1,
        };
        self.ask_store(at, purpose, op, BATCH_TIMEOUT);
    }

    fn term_written(&mut self, at: usize, record: TermRecord, tries: u32, answer: &Answer) {
        match answer {
            Answer::Stored(fence) => {
                let fence = *fence;
                let floor = &mut self.controllers[at].floor;
                *floor = (*floor).max(record.term);
                self.ask_store(
                    at,
                    Purpose::Load { record, fence },
                    Op::Load { fence },
                    PATIENCE,
                );
            }
            Answer::Fenced if tries < MINT_TRIES => {
                self.ask_store(at, Purpose::ReadTerm { tries }, Op::ReadTerm, PATIENCE);
            }
            _ => self.step_down(at, "no term was minted"),
        }
    }

    fn loaded(&mut self, at: usize, record: &TermRecord, fence: u64, answer: Answer) {
        let Answer::Loaded { entries, last } = answer else {
            self.step_down(at, "the state cannot be read");
            return;
        };
        self.leads(at, record, fence, entries, last);
    }

    fn leads(
        &mut self,
        at: usize,
        record: &TermRecord,
        fence: u64,
        entries: Vec<(String, Vec<u8>, u64)>,
        last: u64,
    ) {
        let now = self.controller_clock(at);
        let mut stored: Vec<(u8, Stored, u64)> = entries
            .into_iter()
            .filter(|(key, ..)| key != wasmorch_api::subjects::key::ANSWERS)
            .filter_map(|(key, value, sequence)| {
                let parsed = Stored::parse(&key, &value).expect("what is stored reads back");
                parsed.map(|stored| (rank(&stored), stored, sequence))
            })
            .collect();
        stored.sort_by_key(|(rank, _, sequence)| (*rank, *sequence));
        let hostless = !stored
            .iter()
            .any(|(_, one, _)| matches!(one, Stored::Host(_)));
        let mut cluster = Cluster::new(
            record.cluster.clone(),
            record.term,
            record.leader.clone(),
            now,
        );
        for (_, one, sequence) in stored {
            cluster.load(one, sequence);
        }
        let mut guard = Guard::new(record.cluster.clone(), hostless, last.max(fence), &[], now);
        let first = self.controllers[at]
            .cluster
            .get_or_insert_with(|| record.cluster.clone());
        if *first != record.cluster {
            guard.freeze("another cluster".into());
        }
        let mut leading = Leading::new(cluster, guard, fence, self.instant(self.now), self.now);
        // Its term is in force: nobody else has added to them since they were loaded.
        leading.answers = self.store.bucket.answers();
        let (hosts, workloads) = (
            leading.cluster.hosts().len(),
            leading.cluster.workloads().len(),
        );
        self.controllers[at].phase = Phase::Leading(Box::new(leading));
        let term = record.term;
        self.say_controller(at, || {
            format!("leads term {term}: {hosts} hosts, {workloads} workloads, state at {last}")
        });
        self.loop_turns(at);
    }

    /// Until when a controller's requests that are under way are held up with it.
    pub(crate) fn controller_freezes(&mut self, at: usize, time: Duration) {
        let until = self.now + time.as_millis() as u64;
        self.controllers[at].frozen_until = Some(until);
        self.say_controller(at, || format!("stands still for {} s", time.as_secs()));
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
