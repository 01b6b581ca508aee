//! What was acknowledged, and what may therefore be stored.
//!
//! Owns the user's memory. For each workload one request is open at a time, so what is stored is
//! either what was last acknowledged or that with the open request carried out.

use std::collections::BTreeMap;

use serde_json::Value;
use wasmorch_api::messages::RolloutAction;
use wasmorch_api::{
    ApiError, Digest, ErrorCode, HostId, Kind, PlacementNumber, Record, RevisionNumber,
    RolloutState, WorkloadKey, WorkloadSpec,
};

use super::client::{Ask, UserCall};

/// What the user may rely on for one workload.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Expect {
    exists: bool,
    desired: u32,
    stopped: bool,
    /// A revision had one on every host, or followed its load: the leader has the count, also after
    /// going back to it.
    moves: bool,
    /// A job: going back changes its seats.
    ends: bool,
    /// Gone back since it was to run: what an atomic deploy that failed holds at zero stays there.
    went_back: bool,
    /// The revision that was asked for last, by a deploy or a rollback; `None`: what was asked since may have
    /// changed it.
    revision: Option<RevisionNumber>,
}

/// The user's memory.
#[derive(Debug, Default)]
pub(crate) struct Oracle {
    acked: BTreeMap<WorkloadKey, Expect>,
    open: BTreeMap<WorkloadKey, Ask>,
    /// Refused to one copy of the request; another may be on its way yet.
    refused: BTreeMap<WorkloadKey, Ask>,
    /// The highest revision that an answer named.
    newest: BTreeMap<WorkloadKey, u64>,
    /// Acknowledged revisions of workloads that are there; the one asked for last, and all.
    revisions: BTreeMap<WorkloadKey, (u64, Digest)>,
    digests: BTreeMap<(WorkloadKey, u64), Digest>,
    /// What ran when a restart was asked for, until there is an answer.
    restarting: BTreeMap<WorkloadKey, PlacementNumber>,
    /// No placement up to this one is left by an acknowledged restart.
    restarted: BTreeMap<WorkloadKey, PlacementNumber>,
    cordoned: BTreeMap<HostId, bool>,
    drained: BTreeMap<HostId, bool>,
    /// The store lost what it had acknowledged: nothing can be relied on.
    pub(crate) void: bool,
}

impl Expect {
    fn after(&self, ask: &Ask) -> Self {
        let mut after = self.clone();
        let decides = matches!(ask, Ask::Deploy(..) | Ask::Start | Ask::Stop | Ask::Rm);
        after.went_back &= !decides;
        let keeps = match ask {
            Ask::Scale(_) => true,
            Ask::Rollout(action) => *action != RolloutAction::Abort,
            _ => false,
        };
        after.revision = after.revision.filter(|_| keeps);
        match ask {
            Ask::Deploy(spec, kind) => {
                after.exists = true;
                after.stopped = false;
                after.moves |= spec.per_host() || spec.scale.is_some();
                after.ends = kind.ends();
                after.desired = if kind.ends() {
                    spec.job.seats()
                } else {
                    spec.replicas_named().unwrap_or(1)
                };
            }
            _ if !self.exists => {}
            Ask::Scale(desired) => after.desired = *desired,
            Ask::Stop => after.stopped = true,
            Ask::Start => after.stopped = false,
            Ask::Rollback => after.went_back |= !self.stopped,
            Ask::Rm => after = Self::default(),
            _ => {}
        }
        after
    }

    fn is(&self, record: Option<&Record>) -> bool {
        match record {
            None => !self.exists,
            Some(record) => {
                let loose = self.moves || self.ends;
                let desired = loose || self.desired == record.desired_asked();
                let held = undone(record) || self.went_back && record.stopped;
                // A job that fails goes back without a rollout.
                let asked = { self.revision.filter(|_| !self.ends) }
                    .is_none_or(|number| is_asked(record, number));
                self.exists && desired && asked && (self.stopped == record.stopped || held)
            }
        }
    }
}

/// Whether a revision is what a record wants, or says that it has gone back from it.
fn is_asked(record: &Record, number: RevisionNumber) -> bool {
    let rollout = record.rollout.as_ref();
    let back = rollout
        .filter(|one| one.revision == number)
        .is_some_and(|one| {
            one.state == RolloutState::Reverting
                || one.state.ended() && one.state != RolloutState::Completed
        });
    record.asked() == number || back
}

/// A request for several workloads as one for each.
fn apart(call: &UserCall) -> Vec<UserCall> {
    let Ask::Manifest(all, _) = &call.ask else {
        return vec![call.clone()];
    };
    let one = |(spec, kind): &(WorkloadSpec, Kind)| UserCall {
        id: call.id,
        key: WorkloadKey::new(call.key.namespace.clone(), spec.name.clone()),
        ask: Ask::Deploy(Box::new(spec.clone()), *kind),
    };
    all.iter().map(one).collect()
}

/// It was new with an atomic deploy that failed: held at zero.
fn undone(record: &Record) -> bool {
    let rollout = record.rollout.as_ref();
    let over = rollout.is_some_and(|one| {
        one.together.is_some() && one.state.ended() && one.state != RolloutState::Completed
    });
    record.stopped && over
}

impl Oracle {
    pub(crate) fn exists(&self, key: &WorkloadKey) -> bool {
        self.acked.get(key).is_some_and(|expect| expect.exists)
    }

    /// `newest`: the newest placement that runs then.
    pub(crate) fn asked(&mut self, call: &UserCall, newest: Option<PlacementNumber>) {
        if let (Ask::Restart, Some(newest)) = (&call.ask, newest) {
            self.restarting.insert(call.key.clone(), newest);
        }
        for one in apart(call) {
            self.open.insert(one.key, one.ask);
        }
    }

    pub(crate) fn answered(
        &mut self,
        call: &UserCall,
        answer: &Result<Value, ApiError>,
        repeated: bool,
    ) {
        for one in apart(call) {
            self.answered_one(&one, answer, repeated);
        }
    }

    fn answered_one(&mut self, call: &UserCall, answer: &Result<Value, ApiError>, repeated: bool) {
        self.open.remove(&call.key);
        let restarting = self.restarting.remove(&call.key);
        let gone = |error: &ApiError| error.code == ErrorCode::NotFound;
        // The first try removed it, and its answer was lost.
        let removed = matches!(call.ask, Ask::Rm) && repeated && answer.as_ref().is_err_and(gone);
        if answer.is_err() && !removed {
            if repeated {
                self.refused.insert(call.key.clone(), call.ask.clone());
            }
            return;
        }
        match &call.ask {
            Ask::Cordon(host) => {
                self.cordoned.insert(host.clone(), true);
                return;
            }
            Ask::Uncordon(host) => {
                self.cordoned.insert(host.clone(), false);
                self.drained.insert(host.clone(), false);
                return;
            }
            Ask::Drain(host, _) => {
                self.drained.insert(host.clone(), true);
                return;
            }
            Ask::CancelDrain(host) => {
                self.drained.insert(host.clone(), false);
                return;
            }
            Ask::HostRm(host) => {
                self.cordoned.remove(host);
                self.drained.remove(host);
                return;
            }
            _ => {}
        }
        let expect = self.acked.entry(call.key.clone()).or_default();
        *expect = expect.after(&call.ask);
        let revision = |reply: &Value| reply[call.key.name.as_str()].as_u64().unwrap_or(0);
        match (&call.ask, answer) {
            (Ask::Deploy(spec, _), Ok(reply)) => {
                let revision = revision(reply);
                expect.revision = Some(RevisionNumber(revision));
                let newest = self.newest.entry(call.key.clone()).or_default();
                *newest = (*newest).max(revision);
                if let Some(digest) = &spec.artifact {
                    self.revisions
                        .insert(call.key.clone(), (revision, digest.clone()));
                    self.digests
                        .insert((call.key.clone(), revision), digest.clone());
                }
            }
            (Ask::Rollback, Ok(reply)) => {
                let revision = revision(reply);
                expect.revision = Some(RevisionNumber(revision));
                // What it was when it was deployed.
                let first = self.digests.get(&(call.key.clone(), revision));
                if let Some(digest) = first {
                    self.revisions
                        .insert(call.key.clone(), (revision, digest.clone()));
                }
            }
            (Ask::Restart, _) => {
                self.restarted
                    .extend(restarting.map(|last| (call.key.clone(), last)));
            }
            (Ask::Rm, _) => {
                self.revisions.remove(&call.key);
                self.restarted.remove(&call.key);
            }
            _ => {}
        }
    }

    /// What is wrong with a stored record (`None`: there is none), if anything.
    pub(crate) fn wrong(&self, key: &WorkloadKey, record: Option<&Record>) -> Option<String> {
        if self.void {
            return None;
        }
        let acked = self.acked.get(key).cloned().unwrap_or_default();
        let open = self.open.get(key).map(|ask| acked.after(ask));
        let late = self.refused.get(key).map(|ask| acked.after(ask));
        let either = [&open, &late].into_iter().flatten();
        if !acked.is(record) && !{ either }.any(|expect| expect.is(record)) {
            let stored = record.map(|record| (record.desired, record.stopped));
            return Some(format!(
                "what was acknowledged of {key} is lost: {acked:?}, or {open:?}; stored (desired, stopped) {stored:?}"
            ));
        }
        let newest = self.newest.get(key).copied().unwrap_or(0);
        match record {
            Some(record) if record.newest.0 < newest => Some(format!(
                "{key}: revision {newest} was acknowledged, the newest stored is {}",
                record.newest
            )),
            _ => None,
        }
    }

    /// The last placement from before a restart that was acknowledged.
    pub(crate) fn restarted_after(&self, key: &WorkloadKey) -> Option<PlacementNumber> {
        self.restarted.get(key).copied().filter(|_| !self.void)
    }

    /// A revision that must be there.
    pub(crate) fn revision(&self, key: &WorkloadKey) -> Option<&(u64, Digest)> {
        let removing = matches!(self.open.get(key), Some(Ask::Rm));
        self.revisions.get(key).filter(|_| !self.void && !removing)
    }

    /// Whether a host is known to be cordoned or not, and drained or not; `None`: unknown.
    pub(crate) fn closed(&self, host: &HostId) -> (Option<bool>, Option<bool>) {
        let touches = |ask: &Ask| match ask {
            Ask::Cordon(one)
            | Ask::Uncordon(one)
            | Ask::HostRm(one)
            | Ask::Drain(one, _)
            | Ask::CancelDrain(one) => one == host,
            _ => false,
        };
        if self.void || self.open.values().any(touches) {
            return (None, None);
        }
        let (cordoned, drained) = (self.cordoned.get(host), self.drained.get(host));
        (cordoned.copied(), drained.copied())
    }
}
