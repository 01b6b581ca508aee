//! What users ask for: each command is a pure step from the state to writes and an answer.
//!
//! Owns the checks that need the cluster's state (does it exist, is a rollout in the way, does a
//! route collide) and the record's transitions. Checks of the spec alone are `api`'s.
//! Nothing is changed here: the shell stores the writes, then commits them to the state.

mod change;
mod data;
mod deploy;
mod differences;
mod hosts;
mod quota;
mod rebalance;
mod revise;
mod routes;

pub use change::{restart, rm, scale, start, stop};
pub use data::streams;
pub use deploy::{DeployInput, deploy};
pub(crate) use deploy::{Holding, deploy_as, take_runs};
pub(crate) use differences::{Difference, changes};
pub(crate) use hosts::find_host;
pub use hosts::{cancel_drain, cordon, drain, host_rm, uncordon};
pub use quota::quota;
pub use rebalance::{rebalance, rebalance_within};
pub(crate) use revise::ends;
pub use revise::{rollback, rollout};

use serde::Serialize;
use wasmorch_api::record::Answered;
use wasmorch_api::{ApiError, ErrorCode, Name, Record, RequestId, Timestamp, WorkloadKey};

use crate::atomic;
use crate::cluster::{Cluster, Workload};
use crate::write::{EventDraft, Write};

/// Who calls, where, and when.
#[derive(Debug, Clone)]
pub struct Call {
    /// The namespace in the subject.
    pub namespace: Name,
    /// The time.
    pub now: Timestamp,
    /// What clocks show then ([`Cluster::wall`]).
    pub wall: Timestamp,
    /// The write's id: a repeat gets the first answer.
    pub request_id: Option<RequestId>,
    /// Who, for `history`.
    pub by: String,
}

impl Call {
    pub(crate) fn key_of(&self, name: &Name) -> WorkloadKey {
        self.key(name)
    }

    fn key(&self, name: &Name) -> WorkloadKey {
        WorkloadKey::new(self.namespace.clone(), name.clone())
    }
}

/// What a command leads to. Without writes nothing has changed, and the answer says so.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome<R> {
    /// What to store, whole.
    pub writes: Vec<Write>,
    /// What to say aloud once it is stored.
    pub events: Vec<EventDraft>,
    /// The answer, once it is stored.
    pub reply: R,
}

/// Repeats of a write are recognised for so long.
const REMEMBER_MS: u64 = 10 * 60 * 1_000;
/// And so many of them for each workload.
const REMEMBER_MOST: usize = 20;

/// The first answer to a repeated write, if this is one.
pub fn answered(
    cluster: &Cluster,
    key: &WorkloadKey,
    verb: &str,
    call: &Call,
) -> Option<serde_json::Value> {
    let id = call.request_id.as_ref()?;
    let known = cluster.workload(key).map(|one| &one.record.answered);
    let answered = known.or_else(|| cluster.removed.get(key).map(|one| &one.answered))?;
    answered
        .iter()
        .find(|one| one.request_id == *id && one.verb == verb)
        .filter(|one| call.now.since(one.at).as_millis() as u64 <= REMEMBER_MS)
        .map(|one| one.reply.clone())
}

/// Keeps the answer with the record, in the same batch as what it answers.
fn remember<R: Serialize>(record: &mut Record, verb: &str, call: &Call, reply: &R) {
    let Some(id) = &call.request_id else { return };
    let now = call.now;
    record
        .answered
        .retain(|one| now.since(one.at).as_millis() as u64 <= REMEMBER_MS);
    if record.answered.len() >= REMEMBER_MOST {
        record.answered.remove(0);
    }
    record.answered.push(Answered {
        request_id: id.clone(),
        verb: verb.to_owned(),
        at: now,
        reply: serde_json::to_value(reply).unwrap_or_default(),
    });
}

/// Takes the others of its atomic deploy back, when a change takes one out that has failed and they have
/// not followed yet.
fn leave(
    cluster: &Cluster,
    workload: &Workload,
    call: &Call,
    writes: &mut Vec<Write>,
    events: &mut Vec<EventDraft>,
) {
    for (record, event) in atomic::leave(cluster, workload, call.now) {
        writes.push(Write::Record(Box::new(record)));
        events.extend(event);
    }
}

fn find<'a>(cluster: &'a Cluster, key: &WorkloadKey) -> Result<&'a Workload, ApiError> {
    cluster.workload(key).ok_or_else(|| not_found(cluster, key))
}

/// Names the nearest workload, or says how to list them.
fn not_found(cluster: &Cluster, key: &WorkloadKey) -> ApiError {
    let elsewhere = cluster
        .workloads()
        .keys()
        .find(|other| other.name == key.name);
    let fix = match elsewhere {
        Some(other) => format!("there is one in namespace {}: pass -n {0}", other.namespace),
        None => "list what there is: `wasmorch ps -A`".to_owned(),
    };
    ApiError::new(
        ErrorCode::NotFound,
        format!("no workload {} in namespace {}", key.name, key.namespace),
        "",
        fix,
    )
}
