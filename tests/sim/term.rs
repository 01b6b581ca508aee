//! A running term: the loop round the planner, as `controller/src/control_loop` does it.
//!
//! Owns what one leader knows and has under way: one batch at a time, and while it is on its way
//! everything else waits. The state changes by what hosts say and by what the store acknowledged.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use wasmorch_api::messages::HeardNote;
use wasmorch_api::{HostId, StatusReport, Timestamp};
use wasmorch_controller::simulation::{Concern, Guard, Pace, Question};
use wasmorch_planner::{Ask, Cluster, Host, Observation, Write, check};

use super::bent::Bent;
use super::client::UserCall;
use super::controller::{Phase, Purpose};
use super::law::Law;
use super::mass::Deaths;
use super::wire::{Answer, Event, HostMessage, Node, Op, Wake};
use super::world::World;

const TICK: u64 = 200;
/// A question to the store is given up after this.
const PATIENCE: u64 = 2_000;

/// One leader in its term.
pub(crate) struct Leading {
    pub(crate) cluster: Cluster,
    pub(crate) guard: Guard,
    fence: u64,
    pace: Pace,
    next_tick: u64,
    /// The newest wake-up.
    ticket: u64,
    heard: VecDeque<(Observation, Timestamp)>,
    calls: VecDeque<UserCall>,
    busy: Option<Busy>,
    finding: bool,
    /// Answers to requests: of this term, and what the store kept of earlier ones.
    pub(crate) answers: BTreeMap<u64, serde_json::Value>,
    /// When this leader last heard each host, by the simulator's clock; for the laws.
    pub(crate) last_heard: BTreeMap<HostId, u64>,
    /// Hosts that have said anything in this term.
    pub(crate) spoken: BTreeSet<HostId>,
    pub(crate) since: u64,
    pub(crate) deaths: Deaths,
    /// Batches stored in this term.
    pub(crate) batches: u64,
    /// It has heard of something that the store has lost.
    pub(crate) loss: bool,
}

impl Leading {
    pub(crate) fn new(
        cluster: Cluster,
        guard: Guard,
        fence: u64,
        instant: Instant,
        now: u64,
    ) -> Self {
        Self {
            cluster,
            guard,
            fence,
            pace: Pace::new(instant),
            next_tick: now,
            ticket: 0,
            heard: VecDeque::new(),
            calls: VecDeque::new(),
            busy: None,
            finding: false,
            answers: BTreeMap::new(),
            last_heard: BTreeMap::new(),
            spoken: BTreeSet::new(),
            since: now,
            deaths: Deaths::default(),
            batches: 0,
            loss: false,
        }
    }

    pub(crate) fn is_busy(&self) -> bool {
        self.busy.is_some()
    }
}

/// The leader's state, for code that has made sure that there is one.
macro_rules! leading {
    ($world:ident, $at:ident) => {
        match &mut $world.controllers[$at].phase {
            Phase::Leading(leading) => leading,
            _ => return,
        }
    };
}

// Below the macro, which it uses.
mod batches;

use batches::{Busy, InHand};

impl World {
    pub(crate) fn controller_hears(&mut self, at: usize, what: Observation) {
        let now = self.controller_clock(at);
        let leading = leading!(self, at);
        leading.heard.push_back((what, now));
        self.loop_turns(at);
    }

    pub(crate) fn controller_called(&mut self, at: usize, call: UserCall) {
        // The lease is checked before each answer: a deposed leader swallows nothing.
        if !self.lease_holds(at) {
            return;
        }
        let leading = leading!(self, at);
        leading.calls.push_back(call);
        self.loop_turns(at);
    }

    pub(crate) fn loop_wakes(&mut self, at: usize, ticket: u64) {
        if leading!(self, at).ticket == ticket {
            self.loop_turns(at);
        }
    }

    /// Does everything that waits, as far as no batch is on its way.
    pub(crate) fn loop_turns(&mut self, at: usize) {
        loop {
            let leading = leading!(self, at);
            if leading.busy.is_some() {
                return;
            }
            if let Some((what, when)) = leading.heard.pop_front() {
                self.hear(at, what, when);
                continue;
            }
            if let Some(call) = leading.calls.pop_front() {
                self.execute(at, call);
                continue;
            }
            if self.now >= leading.next_tick {
                leading.next_tick = self.now + TICK;
                let (now, instant) = (self.controller_clock(at), self.instant(self.now));
                self.look_at_silence(at, now);
                let leading = leading!(self, at);
                if leading.guard.listened(now) {
                    leading.pace.changed(instant);
                }
                self.settle_doubt(at);
                continue;
            }
            let due = leading.pace.due();
            if due.is_some_and(|due| due <= self.instant(self.now)) {
                self.plan(at);
                continue;
            }
            break;
        }
        let leading = leading!(self, at);
        leading.ticket += 1;
        let (ticket, tick, due) = (leading.ticket, leading.next_tick, leading.pace.due());
        let time = due.map_or(tick, |due| tick.min(self.time_of(due)));
        self.wake_controller(at, time.max(self.now + 1), Wake::Loop(ticket));
    }

    /// A doubt is asked about again with every tick: whoever raised it may be silent by now.
    fn settle_doubt(&mut self, at: usize) {
        let leading = leading!(self, at);
        if let Some(question) = leading.guard.question() {
            self.verify_sequence(at, question);
        }
    }

    fn verify_sequence(&mut self, at: usize, question: Question) {
        let leading = leading!(self, at);
        if !std::mem::replace(&mut leading.finding, true) {
            let op = match &question {
                Question::Last(_) => Op::LastSequence,
                Question::Set(host, _) => Op::SetSequence { host: host.clone() },
            };
            self.ask_store(at, Purpose::Sequence(question), op, PATIENCE);
        }
    }

    // What hosts say.

    fn hear(&mut self, at: usize, what: Observation, when: Timestamp) {
        let arrived = when.0.saturating_add_signed(-self.controllers[at].skew);
        let instant = self.instant(self.now);
        let leading = leading!(self, at);
        match &what {
            Observation::Heartbeat(beat) => {
                let doubted = leading.guard.in_doubt();
                let host = leading.cluster.hosts().get(&beat.host);
                let stored = host.and_then(Host::set_stored);
                let concern = leading.guard.heard(beat, stored, when);
                if doubted && !leading.guard.in_doubt() {
                    leading.pace.changed(instant);
                }
                match concern {
                    Concern::Fine => {}
                    Concern::Foreign => return,
                    Concern::Ask(question) => {
                        self.verify_sequence(at, question);
                    }
                }
                self.note_loss(at, beat);
                let leading = leading!(self, at);
                let heard = leading.last_heard.entry(beat.host.clone()).or_default();
                *heard = (*heard).max(arrived);
                leading.spoken.insert(beat.host.clone());
            }
            Observation::Status(report) => {
                leading.spoken.insert(report.host.clone());
            }
            Observation::Tick => {}
        }
        self.observe(at, what, when);
    }

    pub(crate) fn observe(&mut self, at: usize, what: Observation, when: Timestamp) {
        let instant = self.instant(self.now);
        let leading = leading!(self, at);
        let observed = leading.cluster.observe(what, when);
        if observed.changed {
            leading.pace.changed(instant);
        }
        if self.told() {
            for event in &observed.events {
                let words = format!("{:?}: {}", event.kind, event.reason);
                self.say_controller(at, || words);
            }
        }
        for ask in observed.asks {
            match ask {
                Ask::Status(host) => {
                    let inc = self.controllers[at].inc;
                    let controller = at;
                    self.tell_host(at, &host, HostMessage::Status { controller, inc });
                }
                Ask::Sync { host, sequence } => {
                    if self.bent != Some(Bent::SyncNotAsked) {
                        self.tell_host(at, &host, HostMessage::Sync(sequence));
                    }
                }
                Ask::Heard {
                    host,
                    boot,
                    at: beat,
                    sequence,
                } => {
                    if self.lease_holds(at) {
                        let term = leading!(self, at).cluster.term;
                        let note = HeardNote {
                            term,
                            boot,
                            at: beat,
                            sequence,
                        };
                        self.tell_host(at, &host, HostMessage::Heard(note));
                    }
                }
                Ask::Withdrawn { host, set } => {
                    self.tell_host(at, &host, HostMessage::Withdrawn(set));
                }
                Ask::NewerTerm(seen) => {
                    let leading = leading!(self, at);
                    if !std::mem::replace(&mut leading.finding, true) {
                        self.ask_store(at, Purpose::TermSeen(seen), Op::ReadTerm, PATIENCE);
                    }
                }
            }
        }
    }

    fn tell_host(&mut self, at: usize, host: &HostId, message: HostMessage) {
        for actor in self.actors_of(host) {
            let inc = self.hosts[actor].inc;
            let message = message.clone();
            let event = Event::HostMessage {
                at: actor,
                inc,
                message,
            };
            self.send(Node::Controller(at), Node::Host(actor), event);
        }
    }

    pub(crate) fn sequence_found(&mut self, at: usize, question: &Question, answer: &Answer) {
        let instant = self.instant(self.now);
        let leading = leading!(self, at);
        leading.finding = false;
        if let Answer::Last(last) = answer {
            leading.guard.answered(question, *last);
            leading.pace.changed(instant);
            let next = leading.guard.question();
            next.into_iter()
                .for_each(|next| self.verify_sequence(at, next));
            let leading = leading!(self, at);
            if let Some(why) = leading.guard.frozen().map(str::to_owned) {
                self.law_freezes_for_a_reason();
                self.say_controller(at, || format!("FROZEN: {why}"));
            }
            self.loop_turns(at);
        }
    }

    pub(crate) fn term_found(&mut self, at: usize, seen: wasmorch_api::Term, answer: Answer) {
        let leading = leading!(self, at);
        leading.finding = false;
        let Answer::Term(stored, _) = answer else {
            return;
        };
        if stored.is_some_and(|record| record.term > leading.cluster.term) {
            self.step_down(at, "a later term has begun");
        } else {
            self.step_down_behind(at, seen);
        }
    }

    // What users ask.

    fn execute(&mut self, at: usize, call: UserCall) {
        let now = self.controller_clock(at);
        let leading = leading!(self, at);
        if let Some(first) = leading.answers.get(&call.id).cloned() {
            self.answer_user(at, &call, Ok(first));
            return;
        }
        let done = match call.execute(&leading.cluster, now) {
            Ok(done) => done,
            Err(refusal) => {
                self.answer_user(at, &call, Err(refusal));
                return;
            }
        };
        let (writes, reply) = done;
        if writes.is_empty() && !call.leaves_no_record() {
            self.answer_user(at, &call, Ok(reply));
            return;
        }
        let holds = leading.guard.frozen().is_some() || leading.guard.in_doubt();
        if holds && self.bent != Some(Bent::GuardIgnored) {
            let code = wasmorch_api::ErrorCode::Unavailable;
            let refusal = wasmorch_api::ApiError::new(code, "frozen or in doubt", "", "try again");
            self.answer_user(at, &call, Err(refusal));
            return;
        }
        if self.bent == Some(Bent::AckBeforeStored) {
            self.answer_user(at, &call, Ok(reply.clone()));
        }
        self.begin_batches(at, VecDeque::from([writes]), InHand::Call(call, reply));
    }

    // What the planner wants.

    fn plan(&mut self, at: usize) {
        let (now, instant) = (self.controller_clock(at), self.instant(self.now));
        let leading = leading!(self, at);
        leading.pace.begin();
        let holds = leading.guard.frozen().is_some() || leading.guard.in_doubt();
        if holds && self.bent != Some(Bent::GuardIgnored) {
            return;
        }
        let mut plan = leading.cluster.plan(now);
        if let Some(wake) = plan.wake_at {
            let wait = wake.since(now);
            leading.pace.wake(instant + wait, instant);
        }
        let mut broken = check::check(&leading.cluster, &plan);
        let stored = self.store.bucket.term.as_ref();
        let deposed = stored.is_some_and(|(record, _)| record.term > leading.cluster.term);
        if deposed && broken.iter().all(|rule| rule.host().is_some()) {
            // Another leads and this one has been frozen: what a host holds is later, and stays.
            plan = plan.without(&broken);
            broken.clear();
        }
        let writes = leading.cluster.writes(plan.clone());
        if writes.is_empty() {
            leading.cluster.remember(&plan.events, now);
            leading.pace.done(instant, Duration::ZERO, false);
        }
        if let Some(rule) = broken.first() {
            let how = format!("a plan breaks a rule of the checker: {rule}");
            self.broken(Law::of(rule), how);
            return;
        }
        self.laws_of_a_plan(at, &plan, &writes);
        if writes.is_empty() {
            return;
        }
        let most = self.weather.batch_max;
        let batches = writes.chunks(most).map(<[Write]>::to_vec).collect();
        self.begin_batches(at, batches, InHand::Plan(plan));
    }

    /// The answer to a question for everything: it comes as an observation.
    pub(crate) fn status_answer(&mut self, from: usize, to: usize, inc: u64, report: StatusReport) {
        let what = Observation::Status(report);
        let event = Event::Heard { at: to, inc, what };
        self.send(Node::Host(from), Node::Controller(to), event);
    }
}
