//! What goes wrong, when, and how it is mended.
//!
//! Owns the storm. Whatever it takes away comes back by itself or at the end of the storm, but for
//! hosts that are gone for good.

use std::time::Duration;

use wasmorch_api::Term;

use super::host::HostNode;
use super::laws::HostLaw;
use super::weather::Fault;
use super::wire::{Event, HostMessage, HostWake, Mend, Node};
use super::world::{Cut, World};

impl World {
    pub(crate) fn fault_due(&mut self) {
        if self.healed {
            return;
        }
        let wait = self.rng.between(200, self.weather.fault_every_ms);
        self.after(wait, Event::Fault);
        if self.rng.one_in(3) {
            // Beside what is broken, copies are made for a bad day.
            let copy = self.store.bucket.clone();
            if self.weather.regresses() {
                self.store.copies.push(copy);
            }
        }
        if self.weather.faults.is_empty() {
            return;
        }
        let fault = *self.rng.pick(&self.weather.faults);
        match fault {
            Fault::PartitionHost => {
                let at = self.rng.below(self.hosts.len());
                self.cut(Node::Host(at));
            }
            Fault::PartitionController => {
                let at = self.rng.below(self.controllers.len());
                self.cut(Node::Controller(at));
            }
            Fault::CrashHost => {
                let at = self.rng.below(self.hosts.len());
                if self.hosts[at].up.is_some() {
                    self.host_crashes(at);
                    let wait = self.rng.between(100, 12_000);
                    self.after(wait, Event::Mend(Mend::Host(at)));
                }
            }
            Fault::LoseHost => self.lose_host(),
            Fault::CrashRunner => {
                let at = self.rng.below(self.hosts.len());
                if self.hosts[at].up.is_some() {
                    self.runner_crashes(at);
                }
            }
            Fault::TwinHost => self.twin_host(),
            Fault::JumpClock => self.jump_clock(),
            Fault::CrashController => {
                let at = self.rng.below(self.controllers.len());
                self.controller_crashes(at);
                let wait = self.rng.between(10, 8_000);
                self.after(wait, Event::Mend(Mend::Controller(at)));
            }
            Fault::FreezeController => {
                let at = self.rng.below(self.controllers.len());
                let time = self.rng.between(500, 20_000);
                if self.controllers[at]
                    .frozen_until
                    .is_none_or(|t| t <= self.now)
                {
                    self.controller_freezes(at, Duration::from_millis(time));
                    self.delay_requests(at, time);
                    self.after(time, Event::Mend(Mend::Thaw(at)));
                }
            }
            Fault::StopStore => {
                self.say("store", || "stops".into());
                self.store.stopped = true;
                let wait = self.rng.between(100, 8_000);
                self.after(wait, Event::Mend(Mend::Store));
            }
            Fault::RegressStore => self.regress_store(),
            Fault::ForgeSet => self.forge_set(),
        }
    }

    fn cut(&mut self, node: Node) {
        let cut = *self.rng.pick(&[
            Cut {
                out: true,
                inward: true,
            },
            Cut {
                out: true,
                inward: false,
            },
            Cut {
                out: false,
                inward: true,
            },
        ]);
        self.say("net", || format!("{node} is cut off: {cut:?}"));
        self.cuts.insert(node, cut);
        let wait = self.rng.between(500, 15_000);
        self.after(wait, Event::Mend(Mend::Line(node)));
    }

    fn lose_host(&mut self) {
        let living: Vec<usize> = (0..self.hosts.len())
            .filter(|at| !self.hosts[*at].gone && !self.hosts[*at].twin)
            .collect();
        if living.len() < 2 {
            return;
        }
        let at = *self.rng.pick(&living);
        self.host_crashes(at);
        self.hosts[at].gone = true;
        self.say_host(at, || "and its disk is gone".into());
        if self.hosts.len() < 10 && self.rng.one_in(2) {
            let new = self.new_host();
            let wait = self.rng.between(500, 10_000);
            self.after(wait, Event::Mend(Mend::Host(new)));
        }
    }

    fn twin_host(&mut self) {
        let at = self.rng.below(self.hosts.len());
        if self.hosts[at].twin || self.hosts[at].gone || self.hosts.len() >= 10 {
            return;
        }
        let host = &self.hosts[at];
        let mut law = HostLaw::default();
        law.started(host.disk.held.as_deref());
        let twin = HostNode {
            inc: 0,
            id: host.id.clone(),
            disk: host.disk.clone(),
            law,
            up: None,
            ahead: host.ahead,
            slow: host.slow,
            gone: false,
            twin: true,
            info: host.info.clone(),
        };
        let new = self.hosts.len();
        self.hosts.push(twin);
        self.say_host(new, || format!("is a copy of host{at}"));
        self.host_starts(new);
        let wait = self.rng.between(1_000, 10_000);
        self.after(wait, Event::Mend(Mend::TwinEnds(new)));
    }

    fn jump_clock(&mut self) {
        let at = self.rng.below(self.hosts.len());
        let by = self.rng.between(1_000, 3_600_000) as i64;
        let by = if self.rng.one_in(2) { -by } else { by };
        self.clock_set(at, by);
        let host = &mut self.hosts[at];
        if by > 0 {
            // What has been well for long by that clock counts as such.
            host.law.forgive();
            host.law.jumped = self.now;
        }
        self.say_host(at, || format!("its clock is set by {} s", by / 1_000));
        if self.hosts[at].up.is_some() {
            self.wake_host(at, 0, HostWake::Agent);
        }
    }

    /// What a controller had on its way when it stood still may come out of it when it goes on.
    fn delay_requests(&mut self, at: usize, time: u64) {
        if self.rng.one_in(2) {
            self.hold_back(Node::Controller(at), time + 1);
        }
    }

    fn regress_store(&mut self) {
        if self.store.copies.is_empty() {
            return;
        }
        let at = self.rng.below(self.store.copies.len());
        let copy = self.store.copies[at].clone();
        let (from, to) = (self.store.bucket.last, copy.last);
        self.say("store", || format!("is put back from {from} to {to}"));
        self.store.restore(copy, self.now);
        self.user.oracle.void = true;
        let revisions = self.store.revisions();
        self.laws.store_regressed(&revisions);
    }

    /// A set that the store would never have taken: hosts are the second line.
    fn forge_set(&mut self) {
        let at = self.rng.below(self.hosts.len());
        let host = &self.hosts[at];
        let Some((mut set, sequence)) = host.up.as_ref().and_then(|up| {
            up.agent
                .held_set()
                .map(|set| (set.clone(), up.agent.sequence()))
        }) else {
            return;
        };
        if self.rng.one_in(2) {
            set.groups.clear();
        }
        let lower = set.term > Term(1) && self.rng.one_in(2);
        if lower {
            set.term = Term(set.term.0 - 1);
        }
        set.leader = "forger".parse().expect("an id");
        let inc = host.inc;
        let sequence = sequence + self.rng.between(1, 50);
        let message = HostMessage::Set(Box::new(set), sequence);
        self.after(5, Event::HostMessage { at, inc, message });
    }

    pub(crate) fn mend(&mut self, mend: Mend) {
        match mend {
            Mend::Line(node) => {
                if self.cuts.remove(&node).is_some() {
                    self.say("net", || format!("{node} is back"));
                }
                if let Node::Host(at) = node
                    && self.hosts[at].up.is_some()
                {
                    self.wake_host(at, 100, HostWake::Connect);
                }
            }
            Mend::Host(at) => {
                if !self.hosts[at].twin {
                    self.host_starts(at);
                }
            }
            Mend::TwinEnds(at) => {
                self.hosts[at].gone = true;
                self.host_crashes(at);
            }
            Mend::Controller(at) => {
                if matches!(self.controllers[at].phase, super::controller::Phase::Down) {
                    self.say_controller(at, || "starts".into());
                    self.controller_starts(at);
                }
            }
            Mend::Thaw(at) => {
                let controller = &mut self.controllers[at];
                if controller.frozen_until.take().is_some() {
                    self.say_controller(at, || "goes on".into());
                }
            }
            Mend::Store => {
                self.say("store", || "is back".into());
                self.store.stopped = false;
            }
        }
    }

    /// The storm is over: everything that can come back does.
    pub(crate) fn heal(&mut self) {
        self.say("world", || "the storm is over".into());
        self.healed = true;
        self.loads.rest(self.now);
        self.weather.calm_down();
        for node in self.cuts.keys().copied().collect::<Vec<_>>() {
            self.mend(Mend::Line(node));
        }
        self.mend(Mend::Store);
        for at in 0..self.controllers.len() {
            self.mend(Mend::Thaw(at));
            self.mend(Mend::Controller(at));
        }
        for at in 0..self.hosts.len() {
            self.hosts[at].slow = false;
            if self.hosts[at].twin && !self.hosts[at].gone {
                self.mend(Mend::TwinEnds(at));
            } else {
                self.mend(Mend::Host(at));
            }
        }
    }
}
