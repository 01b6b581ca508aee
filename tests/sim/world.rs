//! The simulated cluster: everything in one thread, at one virtual time, from one seed.
//!
//! Owns the queue of events, the lines between nodes, and the order in which things happen. What
//! each node does with an event is its own file's.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use wasmorch_api::Digest;

use super::bent::Bent;
use super::client::User;
use super::controller::Controller;
use super::host::HostNode;
use super::law::{Broken, Law};
use super::laws::Laws;
use super::load::Loads;
use super::rng::Rng;
use super::rules::Rules;
use super::store::Store;
use super::weather::Weather;
use super::wire::{Event, HostWake, Node, Wake};

/// Virtual milliseconds since the Epoch at which every run begins.
pub(crate) const EPOCH: u64 = 1_700_000_000_000;

const PRIME: u64 = 0x0100_0000_01B3;

/// How an artifact behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Good,
    /// It cannot be started.
    Rejected,
    /// It runs for a moment.
    Crashes,
    /// It runs and never proves itself.
    NeverReady,
    /// It proves itself, and fails every other request; only where answers are judged.
    Errs,
}

/// A cut in a node's line.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Cut {
    pub(crate) out: bool,
    pub(crate) inward: bool,
}

/// The whole.
pub(crate) struct World {
    pub(crate) now: u64,
    order: u64,
    queue: BTreeMap<(u64, u64), Event>,
    /// By then frozen controllers have read what came to them, also those that went on sooner.
    pub(crate) read_late: u64,
    pub(crate) rng: Rng,
    pub(crate) weather: Weather,
    pub(crate) store: Store,
    pub(crate) controllers: Vec<Controller>,
    pub(crate) hosts: Vec<HostNode>,
    pub(crate) user: User,
    pub(crate) laws: Laws,
    pub(crate) loads: Loads,
    pub(crate) rules: Rules,
    pub(crate) cuts: BTreeMap<Node, Cut>,
    pub(crate) fates: BTreeMap<Digest, Fate>,
    /// Bugs of the simulated shell and store.
    pub(crate) bent: Option<Bent>,
    /// Nothing goes wrong by itself any more.
    pub(crate) healed: bool,
    /// Of something that is wanted it has been seen that it runs, with no excuse taken.
    pub(crate) judged: bool,
    /// The first law that was broken.
    pub(crate) broken: Option<Broken>,
    /// Printed as it happens.
    tell: bool,
    /// A digest of when everything happened, to compare runs.
    pub(crate) fingerprint: u64,
    pub(crate) steps: u64,
    /// Virtual instants for code that wants `Instant`: only their differences count.
    base: Instant,
}

impl World {
    pub(crate) fn new(seed: u64, bent: Option<Bent>, tell: bool) -> Self {
        let mut rng = Rng::new(seed);
        let mut weather = Weather::of(&mut rng);
        let user = User::new(&weather, &mut rng);
        if user.has_cron() {
            // Its times are minutes apart.
            weather.storm_ms += rng.between(30, 150) * 1_000;
        }
        let mut world = Self {
            now: EPOCH,
            order: 0,
            queue: BTreeMap::new(),
            store: Store::default(),
            controllers: Vec::new(),
            hosts: Vec::new(),
            user,
            laws: Laws::default(),
            loads: Loads::new(seed),
            rules: Rules::new(seed),
            read_late: 0,
            cuts: BTreeMap::new(),
            fates: BTreeMap::new(),
            bent,
            healed: false,
            judged: false,
            broken: None,
            tell,
            fingerprint: seed,
            steps: 0,
            base: Instant::now(),
            rng,
            weather,
        };
        world.populate();
        world
    }

    fn populate(&mut self) {
        let text = format!("{:?}", self.weather);
        self.say("world", || text);
        for at in 0..self.weather.controllers {
            let skew = self.rng.between(0, 3_000) as i64 - 1_500;
            let skew = if self.weather.calm { 0 } else { skew };
            self.controllers.push(Controller::new(at, skew));
            self.controller_starts(at);
        }
        for _ in 0..self.weather.hosts {
            let at = self.new_host();
            let wait = self.rng.between(0, 3_000);
            let inc = self.hosts[at].inc;
            self.after(wait, Event::Mend(super::wire::Mend::Host(at)));
            debug_assert_eq!(inc, 0);
        }
        self.after(1_500, Event::UserNext);
        if !self.weather.calm {
            self.after(2_000, Event::Fault);
        }
    }

    // Time.

    pub(crate) fn at(&mut self, time: u64, event: Event) {
        self.order += 1;
        self.queue.insert((time.max(self.now), self.order), event);
    }

    pub(crate) fn after(&mut self, wait: u64, event: Event) {
        self.at(self.now + wait, event);
    }

    pub(crate) fn instant(&self, time: u64) -> Instant {
        self.base + Duration::from_millis(time - EPOCH)
    }

    /// The virtual time of an instant, rounded up: never before it.
    pub(crate) fn time_of(&self, instant: Instant) -> u64 {
        let since = instant.saturating_duration_since(self.base);
        EPOCH + since.as_micros().div_ceil(1_000) as u64
    }

    /// Runs to a virtual time; `false`: a law was broken.
    pub(crate) fn run_until(&mut self, end: u64) -> bool {
        while self.broken.is_none() {
            match self.queue.first_key_value() {
                Some(((time, _), _)) if *time <= end => {}
                _ => {
                    self.now = end;
                    return true;
                }
            }
            let Some(((time, order), event)) = self.queue.pop_first() else {
                return true;
            };
            self.now = time;
            self.steps += 1;
            self.fingerprint = (self.fingerprint ^ time ^ (order << 40)).wrapping_mul(PRIME);
            self.happens(order, event);
        }
        false
    }

    fn happens(&mut self, order: u64, event: Event) {
        match event {
            Event::AtStore { from, inc, rpc, op } => self.at_store(from, inc, rpc, op),
            Event::ControllerAnswer { at, inc, .. }
            | Event::ControllerWake { at, inc, .. }
            | Event::Heard { at, inc, .. }
            | Event::Call { at, inc, .. } => self.at_controller(order, at, inc, event),
            Event::HostAnswer {
                at,
                inc,
                rpc,
                answer,
            } => self.host_answered(at, inc, rpc, answer),
            Event::HostMessage { at, inc, message } => self.host_told(at, inc, message),
            Event::HostWake { at, inc, wake } => self.host_wakes(at, inc, wake),
            Event::Runner {
                at,
                inc,
                runner,
                replica,
                step,
            } => self.runner_steps(at, inc, runner, replica, step),
            Event::UserNext => self.user_next(),
            Event::UserAnswer { call, answer } => self.user_answered(call, answer),
            Event::UserTimeout { call, attempt } => self.user_times_out(call, attempt),
            Event::Fault => self.fault_due(),
            Event::Mend(mend) => self.mend(mend),
        }
    }

    fn at_controller(&mut self, order: u64, at: usize, inc: u64, event: Event) {
        if self.controllers[at].inc != inc {
            return;
        }
        if let Some(until) = self.controllers[at].frozen_until.filter(|t| *t > self.now) {
            // It reads this when it goes on, in the order in which it came.
            self.queue.insert((until, order), event);
            self.read_late = self.read_late.max(until);
            return;
        }
        match event {
            Event::ControllerAnswer { rpc, answer, .. } => {
                self.controller_answered(at, rpc, answer)
            }
            Event::ControllerWake { wake, .. } => self.controller_wakes(at, wake),
            Event::Heard { what, .. } => self.controller_hears(at, what),
            Event::Call { call, .. } => self.controller_called(at, call),
            _ => unreachable!("only what is for controllers"),
        }
    }

    // Lines.

    /// Whether a message gets from one node to another now.
    pub(crate) fn passes(&self, from: Node, to: Node) -> bool {
        let cut = |node| self.cuts.get(&node).copied().unwrap_or_default();
        !cut(from).out && !cut(to).inward
    }

    /// How long one message takes.
    pub(crate) fn delay(&mut self) -> u64 {
        if self.rng.per_mille(self.weather.late) {
            self.rng.between(5, self.weather.late_ms)
        } else {
            self.rng.between(1, 3)
        }
    }

    /// A message over core NATS: it may be lost, doubled, late.
    pub(crate) fn send(&mut self, from: Node, to: Node, event: Event) {
        if !self.passes(from, to) || self.rng.per_mille(self.weather.lost) {
            return;
        }
        let delay = self.delay();
        if self.rng.per_mille(self.weather.doubled) {
            let again = delay + self.rng.between(0, self.weather.late_ms);
            self.after(again, event.clone());
        }
        self.after(delay, event);
    }

    /// A message over a request's own line: late at most, unless the line is cut.
    pub(crate) fn send_once(&mut self, from: Node, to: Node, event: Event) -> bool {
        if !self.passes(from, to) || self.rng.per_mille(self.weather.store_lost) {
            return false;
        }
        let delay = self.delay();
        self.after(delay, event);
        true
    }

    /// What a node has sent to the store and what is still under way comes later.
    pub(crate) fn hold_back(&mut self, node: Node, by: u64) {
        let held = |event: &Event| matches!(event, Event::AtStore { from, .. } if *from == node);
        let keys: Vec<(u64, u64)> = self
            .queue
            .iter()
            .filter(|(_, event)| held(event))
            .map(|(key, _)| *key)
            .collect();
        for (time, order) in keys {
            if let Some(event) = self.queue.remove(&(time, order)) {
                self.queue.insert((time + by, order), event);
            }
        }
    }

    pub(crate) fn wake_controller(&mut self, at: usize, time: u64, wake: Wake) {
        let inc = self.controllers[at].inc;
        self.at(time, Event::ControllerWake { at, inc, wake });
    }

    pub(crate) fn wake_host(&mut self, at: usize, wait: u64, wake: HostWake) {
        let inc = self.hosts[at].inc;
        self.after(wait, Event::HostWake { at, inc, wake });
    }

    // Telling.

    /// Tells one line of the timeline. The words are made only when somebody reads them.
    pub(crate) fn say(&mut self, who: &str, what: impl FnOnce() -> String) {
        if self.tell {
            let time = (self.now - EPOCH) as f64 / 1_000.0;
            let what = what();
            let mut line = String::new();
            // Writing to a string cannot fail.
            let _ = write!(line, "{time:>9.3}  {who:<7} {what}");
            tell(&line);
        }
    }

    pub(crate) fn told(&self) -> bool {
        self.tell
    }

    /// A law is broken. The first one counts.
    pub(crate) fn broken(&mut self, law: Law, how: impl Into<String>) {
        let how = how.into();
        self.breaks(Broken { law, how });
    }

    pub(crate) fn breaks(&mut self, broken: Broken) {
        self.say("LAW", || broken.to_string());
        self.broken.get_or_insert(broken);
    }
}

#[allow(clippy::print_stdout, reason = "the timeline is what a replay is for")]
fn tell(line: &str) {
    println!("{line}");
}
