//! Laws of what waits for others and of what goes together.
//!
//! They read records as stored and what runners have truly been, never what the planner makes of them.

use wasmorch_api::record::Rollout;
use wasmorch_api::{Kind, Record, RolloutState, WorkloadKey};
use wasmorch_planner::{Plan, Write};

use super::laws::Laws;
use super::world::Fate;
use super::world::World;

/// The others of an atomic deploy that are still part of it.
fn others<'a>(laws: &'a Laws, record: &Record) -> Vec<&'a Rollout> {
    let together = record.rollout.as_ref().and_then(|one| one.together.clone());
    let with = together.into_iter().flat_map(|one| one.with);
    let known = with.filter_map(|(name, revision)| {
        let key = WorkloadKey::new(record.namespace.clone(), name);
        let rollout = laws.record(&key)?.rollout.as_ref()?;
        (rollout.revision == revision && rollout.together.is_some()).then_some(rollout)
    });
    known.collect()
}

/// How the others of its deploy stand, for people.
pub(crate) fn others_of(laws: &Laws, record: &Record) -> String {
    let others = others(laws, record).into_iter().map(|one| {
        let arrived = one.together.as_ref().is_some_and(|one| one.arrived);
        let held = one.hold.is_some();
        format!(
            ", with one {} (arrived: {arrived}, held: {held})",
            one.state
        )
    });
    others.collect()
}

impl Laws {
    fn dependencies(&self, record: &Record) -> Vec<&Record> {
        let spec = self.spec_of(&record.key(), record.asked());
        let on = spec.into_iter().flat_map(|spec| &spec.depends_on);
        let keys = on.map(|on| WorkloadKey::new(record.namespace.clone(), on.clone()));
        keys.filter_map(|key| self.record(&key)).collect()
    }

    /// Why a dependency was not ready at the moment at which a hold ended, if so.
    fn not_ready(&self, on: &Record, since: wasmorch_api::Timestamp) -> Option<&'static str> {
        if on.stopped || on.kind == Kind::Cron && on.held().is_none() {
            return None;
        }
        let rollout = on.rollout.as_ref();
        if on.active_rollout().is_some_and(|one| one.hold.is_some()) {
            return Some("is held itself");
        }
        if on.kind == Kind::Job {
            return (on.stable != Some(on.revision)).then_some("has not completed");
        }
        let arrived = rollout
            .and_then(|one| one.together.as_ref())
            .is_some_and(|one| one.arrived);
        match rollout.map(|one| one.state) {
            Some(RolloutState::Rolling) if arrived => None,
            Some(state) if !state.ended() => Some("still rolls"),
            Some(RolloutState::Completed) | None => None,
            _ if rollout.is_some_and(|one| one.started >= since) => Some("went back"),
            _ => None,
        }
        .or_else(|| {
            let one = (on.key(), on.revision);
            // Of one on every host nothing starts while no host takes anything new: by whom the leader
            // has heard of late, which is not stored.
            let every_host = self.per_host.contains(&one);
            // Where a rollout has failed and there was none to go back to, those before serve on.
            let failed = rollout.is_some_and(|one| one.state == RolloutState::Failed);
            let mut any = self.once_ready.iter();
            let before = failed && any.any(|(key, _)| *key == one.0);
            let proven = on.wanted() == 0 || every_host || before || self.once_ready.contains(&one);
            (!proven).then_some("has never been ready")
        })
    }

    /// A hold that ends before its time, in a batch that is about to be folded in.
    pub(crate) fn begun_too_soon(&self, writes: &[Write]) -> Option<String> {
        writes.iter().find_map(|write| {
            let Write::Record(after) = write else {
                return None;
            };
            let before = self.record(&after.key())?;
            let (rollout, hold) = before.held()?;
            // A restart of what has failed while it was held is a person's, and waits for nothing.
            let same = { after.rollout.as_ref() }.is_some_and(|one| one.started == rollout.started);
            let begins = same && after.held().is_none() && after.revision == rollout.revision;
            let ends = after.rollout.as_ref().is_some_and(|one| one.state.ended());
            if !begins || ends {
                return None;
            }
            let on = self.dependencies(before).into_iter();
            let mut wrong = on.filter_map(|on| Some((on, self.not_ready(on, hold.since)?)));
            let (on, why) = wrong.next()?;
            Some(format!("{} begins, and {} {why}", after.key(), on.key()))
        })
    }

    /// One has completed for good while another of its deploy has not.
    pub(crate) fn torn_apart(&self, key: &WorkloadKey) -> Option<String> {
        let record = self.record(key)?;
        let state = record.rollout.as_ref()?.state;
        let completed = |state| state == RolloutState::Completed;
        let over = |state: RolloutState| state.ended() || state == RolloutState::Reverting;
        let torn = others(self, record).into_iter().find(|other| {
            over(state) && over(other.state) && completed(state) != completed(other.state)
        })?;
        Some(format!(
            "{key} is {state}, and what was deployed with it {}",
            torn.state
        ))
    }

    /// What starts though it is held.
    pub(crate) fn starts_held(&self, plan: &Plan) -> Option<String> {
        let held = plan.start.iter().find(|start| {
            let held = self.record(&start.key).and_then(Record::held);
            held.is_some_and(|(rollout, _)| rollout.revision == start.revision)
        })?;
        Some(format!("{} starts, and is held", held.key))
    }
}

impl World {
    /// Whether a rollout may wait for others though all is well.
    pub(crate) fn may_wait(&self, record: &Record) -> bool {
        let Some(rollout) = &record.rollout else {
            return false;
        };
        if rollout.hold.is_some() {
            let mut on = self.laws.dependencies(record).into_iter();
            return match rollout.state {
                RolloutState::Rolling => on.any(|on| {
                    // Nor does what has no host to run on ever become ready.
                    let wanted = u64::from(on.wanted().max(1));
                    let ready = || self.ready_slots(&on.key(), u64::MAX);
                    let lacks = on.active_rollout().is_some() || ready() < wanted;
                    self.waits_for_a_person(on) || lacks && self.cannot_be_placed(&on.key(), wanted)
                }),
                RolloutState::Paused => true,
                _ => on.any(|on| self.is_in_trouble(on)),
            };
        }
        let arrived = rollout.together.as_ref().is_some_and(|one| one.arrived);
        let mut with = others(&self.laws, record).into_iter();
        // One of the others waits for a person, or for somebody who does.
        let baked = |one: &&Rollout| one.canary.as_ref().is_some_and(|step| step.baked);
        arrived
            && with
                .any(|one| one.state == RolloutState::Paused || one.hold.is_some() || baked(&one))
    }

    fn waits_for_a_person(&self, on: &Record) -> bool {
        let state = on.rollout.as_ref().map(|one| one.state);
        let job = on.kind == Kind::Job && on.runs().next().is_some();
        let waits = on.held().is_some() && self.may_wait(on);
        let canaries = self.awaits_a_person(on).is_some();
        state == Some(RolloutState::Paused) || job || waits || canaries
    }

    fn is_in_trouble(&self, on: &Record) -> bool {
        let state = on.rollout.as_ref().map(|one| one.state);
        let fate = self.target_fate(&on.key());
        self.waits_for_a_person(on)
            || fate != Some(Fate::Good)
            || on.held().is_some()
            || state.is_some_and(|state| state != RolloutState::Completed)
            || on.kind == Kind::Job && on.stable != Some(on.revision)
            || self.cannot_be_placed(&on.key(), u64::from(on.wanted()))
            || self.waits_for_a_lost_host(&on.key())
    }
}
