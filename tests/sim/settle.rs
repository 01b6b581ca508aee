//! After the storm: the cluster must come to what is wanted, within a bound, and then rest.
//!
//! Owns what "converged" means. It looks at the truth (what runners run) and at the leader's plan.

use std::collections::BTreeSet;
use std::time::Duration;

use wasmorch_api::spec::{Bindings, UpdateOrder};
use wasmorch_api::status::HostState;
use wasmorch_api::subjects::key;
use wasmorch_api::{HostId, Record, Revision, RolloutState, WorkloadKey, WorkloadSpec};
use wasmorch_planner::queries;

use super::host::Up;
use super::law::{Broken, Law};
use super::world::{Fate, World};

/// Virtual time within which everything comes right: crash loops wait up to five minutes.
const BOUND: u64 = 420_000;
/// It counts as converged when all has been well for so long.
const QUIET: u64 = 5_000;
/// Converged, nothing may be written for so long.
const REST: u64 = 4_000;

impl World {
    /// Runs to the end of the storm and until all is well; `broken` tells what was not.
    pub(crate) fn run(&mut self) {
        let end = self.now + self.weather.storm_ms;
        if !self.run_until(end) {
            return;
        }
        self.heal();
        if self.comes_to_rest() && self.one_more_silence() {
            self.comes_to_rest();
        }
    }

    /// Runs until all is well and stays so; `false`: it did not, or there is nothing to wait for.
    fn comes_to_rest(&mut self) -> bool {
        let healed = self.now;
        // Hosts that fell silent together and never come back are replaced one a minute. Those that were called
        // dead by then are on record as dead, whoever leads.
        let waits =
            |id: &HostId| { self.laws.host(id) }.is_some_and(|one| one.dead_since.is_none());
        let gone = self
            .hosts
            .iter()
            .filter(|host| host.gone && waits(&host.id));
        let gone = gone.count() as u64;
        let bound = self.now + BOUND + gone * 60_000;
        let mut trouble = None;
        let (mut written, mut since) = (self.laws.last_written, self.now);
        while self.now < bound {
            let next = self.now + 500;
            if !self.run_until(next) {
                return false;
            }
            if self.store.regressed.is_some() {
                // Law 5: what was acknowledged is gone, and it is a person's to recover it.
                if self.now > healed + 20_000 {
                    self.law_of_loss();
                    return false;
                }
                continue;
            }
            self.user_lifts_quota();
            let found = self.not_converged();
            if found != trouble {
                let words = found.as_ref().map(Broken::to_string);
                self.say("world", || words.unwrap_or_else(|| "is well".into()));
            }
            trouble = found;
            // Between two steps of a rollout the plan is empty too.
            if trouble.is_some() || self.laws.last_written != written {
                (written, since) = (self.laws.last_written, self.now);
            } else if self.now >= since + QUIET.max(self.remembers_load()) {
                break;
            }
        }
        if self.store.regressed.is_some() {
            return false;
        }
        if let Some(trouble) = trouble {
            let how = format!("after {} s of calm: {}", BOUND / 1_000, trouble.how);
            self.broken(trouble.law, how);
            return false;
        }
        self.say("world", || "has converged".into());
        self.judged |= self.laws.records.keys().any(|key| self.is_judged(key));
        let written = self.laws.last_written;
        let next = self.now + REST;
        if !self.run_until(next) {
            return false;
        }
        if self.laws.last_written != written && self.all_good() {
            let how = "it had converged, and yet something was written";
            self.broken(Law::Rests, how);
            return false;
        }
        for (key, _) in self.user.workloads() {
            self.law_of_what_was_acknowledged(&key);
        }
        true
    }

    /// No workload is tried again and again in vain, or waits for room.
    fn all_good(&self) -> bool {
        let target = |key: &WorkloadKey| self.target_fate(key);
        self.laws.records.iter().all(|(key, record)| {
            let waits = self.cannot_be_placed(key, u64::from(record.wanted()));
            target(key) == Some(Fate::Good) && !waits
        })
    }

    pub(crate) fn target_fate(&self, key: &WorkloadKey) -> Option<Fate> {
        let record = self.laws.record(key)?;
        let value = self
            .store
            .bucket
            .value(&key::revision(key, record.revision))?;
        let revision: Revision = serde_json::from_slice(&value).ok()?;
        Some(
            self.fates
                .get(&revision.artifact)
                .copied()
                .unwrap_or(Fate::Good),
        )
    }

    /// What is not yet as it should be.
    fn not_converged(&self) -> Option<Broken> {
        let at = match self.one_leads() {
            Ok(at) => at,
            Err(trouble) => return Law::Leads.by(trouble),
        };
        let leading = self.controllers[at].leads()?;
        for key in self.laws.records.keys() {
            if let Some(trouble) = self.workload_trouble(key) {
                return Some(trouble);
            }
        }
        let mut hosts = leading.cluster.hosts().values();
        if let Some(host) = hosts.find(|host| host.state == HostState::Suspect) {
            let name = &host.info().name;
            return Law::HostsSettle.by(format!("{name} is neither alive nor dead"));
        }
        let mut alive =
            { leading.cluster.hosts().values() }.filter(|host| host.state == HostState::Alive);
        // Of a host that speaks by another start than before what must not run twice waits.
        if let Some(host) = alive.find(|host| host.record.boot != host.boot) {
            let name = &host.info().name;
            return Law::HostsSettle
                .by(format!("{name} may not start yet what must not run twice"));
        }
        let trouble = Law::NothingStray.by(self.stray());
        let trouble = trouble.or_else(|| Law::Emptied.by(self.not_emptied(at)));
        let trouble = trouble.or_else(|| Law::DataGone.by(self.data_left()));
        trouble.or_else(|| Law::Rests.by(self.still_plans(at)))
    }

    /// The only leader, who has read everything and answers.
    fn one_leads(&self) -> Result<usize, String> {
        if self.user.waits() {
            return Err("a request has no answer".into());
        }
        if self.now <= self.read_late {
            return Err("a controller has not read yet what came while it was frozen".into());
        }
        let leaders: Vec<usize> = (0..self.controllers.len())
            .filter(|at| self.lease_holds(*at) && self.controllers[*at].leads().is_some())
            .collect();
        let [at] = leaders[..] else {
            return Err(format!("{} controllers lead", leaders.len()));
        };
        let leading = self.controllers[at].leads();
        match leading.and_then(|leading| leading.guard.frozen()) {
            Some(why) => Err(format!("frozen: {why}")),
            None => Ok(at),
        }
    }

    fn still_plans(&self, at: usize) -> Option<String> {
        let leading = self.controllers[at].leads()?;
        if leading.is_busy() {
            return Some("a batch is on its way".into());
        }
        if self.all_good() {
            let mut cluster = leading.cluster.clone();
            let plan = cluster.plan(self.controller_clock(at));
            let writes = cluster.writes(plan.clone());
            if !writes.is_empty() {
                let keys: Vec<String> = writes.iter().map(wasmorch_planner::Write::key).collect();
                return Some(format!("the plan is not empty: {}", keys.join(" ")));
            }
            // What only waits for its time (a lost host's replica, a crash loop) is not settled yet.
            let soon = self
                .controller_clock(at)
                .after(Duration::from_millis(QUIET + REST));
            if plan.wake_at.is_some_and(|at| at <= soon) {
                return Some("something is due soon".into());
            }
        }
        None
    }

    fn workload_trouble(&self, key: &WorkloadKey) -> Option<Broken> {
        let record = self.laws.record(key)?;
        if self.target_fate(key) != Some(Fate::Good) {
            // What cannot become ready is given up first, and what comes then is looked at.
            let moves = record.active_rollout().filter(|rollout| {
                rollout.state != RolloutState::Paused && !record.kind.ends() && record.wanted() > 0
            });
            let moves = moves.filter(|_| self.awaits_a_person(record).is_none());
            let moves = moves.filter(|_| !self.may_wait(record));
            let moves = moves.map(|rollout| format!("the rollout of {key} is {}", rollout.state));
            return Law::RolloutEnds.by(moves);
        }
        let state = record.rollout.as_ref().map(|rollout| rollout.state);
        if record.held().is_some() && !record.stopped {
            // What serves meanwhile is like any other.
            if !self.may_wait(record) {
                let how = format!("{key} is held, and all that it waits for is well");
                return Law::Dependencies.by(how);
            }
            if record.held_bare() {
                return None;
            }
        }
        if record.kind.ends() {
            return Law::RunEnds.by(self.run_trouble(key, record));
        }
        if state == Some(RolloutState::Paused) {
            // Its count goes on following the load.
            return Law::CountFollows.by(self.count_trouble(key, record, true));
        }
        // Made or given up: a move is nothing to be in the middle of.
        if let Some(one) = record.moves.first() {
            let (number, to) = (one.placement, &one.to);
            return Law::Moves.by(format!("{number} of {key} is still to move to {to}"));
        }
        let wanted = u64::from(record.wanted());
        let canaries = self.awaits_a_person(record);
        let waits = canaries.is_some() || self.may_wait(record);
        let moves = |state: &RolloutState| !state.ended() && !waits;
        if let Some(state) = state.filter(|state| moves(state) && wanted > 0) {
            let with = super::bonds::others_of(&self.laws, record);
            return Law::RolloutEnds.by(format!("the rollout of {key} is {state}{with}"));
        }
        if !record.stopped && self.laws.is_per_host(key) {
            let trouble = Law::EveryHost.by(self.hosts_trouble(key, record));
            let old = || self.started_before_a_restart(key);
            let old = || old().filter(|_| !self.cannot_be_placed(key, 0));
            return trouble.or_else(|| Law::Restarted.by(old()));
        }
        self.seats_trouble(key, record, wanted + canaries.unwrap_or(0))
    }

    /// Of what ends by itself.
    fn run_trouble(&self, key: &WorkloadKey, record: &Record) -> Option<String> {
        let due = self.laws.due(key);
        let soon = self.now + QUIET + REST + 3_000;
        if let Some(next) = due.filter(|next| *next <= soon) {
            let seen_to = record.scheduled.map_or(0, |at| at.0);
            return Some(format!("{key} is due at {next} and has seen to {seen_to}"));
        }
        let wanted = u64::from(record.desired);
        if self.cannot_be_placed(key, wanted) || self.waits_for_a_lost_host(key) {
            return None;
        }
        let goes_on = record.runs().next();
        goes_on.map(|run| format!("run {} of {key} has not ended", run.number))
    }

    /// Of what has so many seats, wherever: `there` of them with its canaries.
    fn seats_trouble(&self, key: &WorkloadKey, record: &Record, there: u64) -> Option<Broken> {
        let wanted = u64::from(record.wanted());
        let (mut running, mut slots) = (0, BTreeSet::new());
        let runs = self
            .hosts
            .iter()
            .filter_map(|host| host.up.as_ref())
            .flat_map(|up| &up.runner);
        for (replica, run) in runs.filter(|(replica, _)| replica.workload == *key) {
            running += 1;
            if run.ready && run.revision == record.revision {
                slots.insert(replica.id.slot);
            }
        }
        let spec = self.laws.spec(key);
        // At zero its standbys are there, and do not run.
        let rests = spec.filter(|spec| record.rests(spec));
        let rests = rests.map_or(0, |spec| u64::from(spec.standbys()));
        let there = there + rests;
        if slots.len() as u64 == wanted && running == there {
            let waits = self.cannot_be_placed(key, wanted);
            if let Some(old) = self.started_before_a_restart(key).filter(|_| !waits) {
                return Law::Restarted.by(old);
            }
            return Law::CountFollows.by(self.count_trouble(key, record, waits));
        }
        if self.waits_for_a_lost_host(key) {
            return None;
        }
        if let Some(trouble) = self.slots_missing(key, record) {
            return Some(trouble);
        }
        if self.cannot_be_placed(key, wanted.max(rests)) {
            let lacks = (slots.len() as u64) < wanted;
            let other = self.runs_in_its_place(key).filter(|_| lacks);
            return Law::Running.by(other);
        }
        let leading = self.controllers.iter().find_map(|one| one.leads());
        let why = leading.and_then(|leading| {
            let status = queries::status(&leading.cluster, key, false)?;
            Some(status.unplaced?.filtered)
        });
        Law::Running.by(format!(
            "{key} wants {wanted} of revision {}, {} slots are ready, {running} replicas are there; \
             hosts removed: {why:?}",
            record.revision,
            slots.len()
        ))
    }

    /// How many canaries have been watched long enough, and stay until somebody promotes them.
    pub(crate) fn awaits_a_person(&self, record: &Record) -> Option<u64> {
        let trial = record.on_trial()?;
        let rollout = record.rollout.as_ref()?;
        let baked = rollout.canary.as_ref().is_some_and(|step| step.baked);
        if !baked || rollout.state != RolloutState::Baking {
            return None;
        }
        let value = self
            .store
            .bucket
            .value(&key::revision(&record.key(), trial))?;
        let revision: Revision = serde_json::from_slice(&value).ok()?;
        let wished = revision.spec.update.canary?.replicas;
        Some(u64::from(wished.min(record.wanted())))
    }

    /// A workload that waits for room, and another that could be ended for it.
    fn runs_in_its_place(&self, key: &WorkloadKey) -> Option<String> {
        let mine = self.laws.spec(key)?;
        // A quota is a reason to wait that no other's end would mend, and rules may be others.
        let rules = !mine.constraints.is_empty() || self.rules.are_there();
        if rules || self.laws.quota.is_some() {
            return None;
        }
        // Nor a port that is taken, or a host that could not run it.
        if mine.bindings != Bindings::default() {
            return None;
        }
        let open = self.hosts.iter().filter(|host| {
            let known = self.laws.host(&host.id);
            known.is_some_and(|known| !known.cordoned && known.drain.is_none())
        });
        let runs = open.filter_map(|host| host.up.as_ref());
        let runs = runs.flat_map(|up| up.runner.keys());
        let mut others = runs.map(|replica| &replica.workload);
        let other = others.find(|other| {
            let theirs = self.laws.spec(other);
            theirs
                .is_some_and(|theirs| theirs.priority < mine.priority && theirs.min_available == 0)
        })?;
        Some(format!(
            "{key} (priority {}) waits while {other} runs",
            mine.priority
        ))
    }

    /// With one replica on every host: each that lives has its own, and as many are counted.
    fn hosts_trouble(&self, key: &WorkloadKey, record: &Record) -> Option<String> {
        let wanted = u64::from(record.wanted());
        if self.cannot_be_placed(key, 0) {
            return None;
        }
        let state = record.rollout.as_ref().map(|one| one.state);
        let failed = state == Some(RolloutState::Failed);
        let (mut there, mut without) = (0, 0);
        for (at, host) in self.hosts.iter().enumerate() {
            let Some(up) = &host.up else { continue };
            let runs = up.runner.iter();
            let runs: Vec<_> = runs.filter(|(one, _)| one.workload == *key).collect();
            let good = |run: &super::runner::Run| run.ready && run.revision == record.revision;
            let known = self.laws.host(&host.id);
            let drained = known.is_some_and(|known| known.drain.is_some());
            let cordoned = drained || known.is_some_and(|known| known.cordoned);
            // What cannot be spared yet stays on a host that is drained, and is not counted.
            there += runs.len() as u64 * u64::from(!drained);
            let as_wanted = match runs.as_slice() {
                [] if cordoned || !self.can_run(at, key) => true,
                // What came first has taken all the room there is on it, and is not moved for this.
                [] if self.is_full(at, key) && self.is_kept_out(key, up) => {
                    without += 1;
                    true
                }
                [] => false,
                // Of a first rollout that has failed, for want of room for a successor, the old ones serve.
                [(_, run)] => cordoned || good(run) || failed && run.ready,
                _ => false,
            };
            if !as_wanted {
                return Some(format!("{key}: {} has {} replicas", host.id, runs.len()));
            }
        }
        (there + without != wanted).then(|| {
            format!("{key} counts {wanted}, {there} are there, {without} hosts have no room")
        })
    }

    /// On a host that is full: nothing there could be ended for it, and the leader says that it waits.
    fn is_kept_out(&self, key: &WorkloadKey, up: &Up) -> bool {
        let Some(mine) = self.laws.spec(key) else {
            return false;
        };
        let makes_room = |other: &WorkloadKey| {
            let theirs = self.laws.spec(other);
            theirs.is_some_and(|one| one.priority < mine.priority && one.min_available == 0)
        };
        let unplaced = self.controllers.iter().find_map(|one| one.leads());
        let unplaced = unplaced.and_then(|leading| queries::status(&leading.cluster, key, false));
        let unplaced = unplaced.is_some_and(|status| status.unplaced.is_some());
        let binds = mine.bindings != Bindings::default();
        unplaced && (binds || !up.runner.keys().any(|one| makes_room(&one.workload)))
    }

    /// A host that is drained holds what could go, or anything after its deadline.
    fn not_emptied(&self, leader: usize) -> Option<String> {
        let now = self.controller_clock(leader);
        for (id, set) in self.laws.sets() {
            let drain = self.laws.host(id).and_then(|record| record.drain);
            let Some(drain) = drain else { continue };
            let overdue = drain.deadline.is_some_and(|deadline| deadline <= now);
            for group in &set.groups {
                // With `replace = false` it is waited for, drained or not; and volumes stay.
                let key = group.key();
                let waits = self.waits_for_a_lost_host(&key) || self.waits_at_home(&key);
                if !waits && (overdue || self.could_move(&key)) {
                    let slots = &group.slots;
                    return Some(format!(
                        "{id} is drained and holds {} {slots:?}",
                        group.key()
                    ));
                }
            }
            if !drain.drained && set.groups.is_empty() {
                return Some(format!("{id} is empty and does not count as drained"));
            }
        }
        None
    }

    fn could_move(&self, key: &WorkloadKey) -> bool {
        let Some(record) = self.laws.record(key) else {
            return false;
        };
        let state = record.rollout.as_ref().map(|rollout| rollout.state);
        let wanted = u64::from(record.wanted());
        let spec = self.target_spec(key);
        let held_up = spec.is_none_or(|spec| {
            let update = &spec.update;
            let stop_first = update.order == UpdateOrder::StopFirst || update.max_surge == 0;
            (stop_first || spec.per_host()) && u64::from(spec.min_available) >= wanted
        });
        !record.kind.ends()
            && state != Some(RolloutState::Paused)
            && self.target_fate(key) == Some(Fate::Good)
            && !self.cannot_be_placed(key, wanted)
            && !held_up
    }

    pub(crate) fn target_spec(&self, key: &WorkloadKey) -> Option<WorkloadSpec> {
        let record = self.laws.record(key)?;
        let key = key::revision(key, record.revision);
        let value = self.store.bucket.value(&key)?;
        let revision: Revision = serde_json::from_slice(&value).ok()?;
        Some(revision.spec)
    }

    /// Something runs that no workload wants.
    fn stray(&self) -> Option<String> {
        let runs = self
            .hosts
            .iter()
            .filter_map(|host| host.up.as_ref())
            .flat_map(|up| &up.runner);
        runs.map(|(replica, _)| replica)
            .find(|replica| !self.laws.records.contains_key(&replica.workload))
            .map(|replica| format!("{replica} runs and its workload is gone"))
    }
}
