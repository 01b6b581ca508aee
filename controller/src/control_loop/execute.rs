//! One call on the cluster's state: what to store, what to say, what to answer.
//!
//! Pure: the planner's commands and queries behind the API's verbs, and the shape of each answer.

use std::collections::BTreeSet;
use std::ops::Bound;
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;
use wasmorch_api::messages::{
    ChangeReply, DeployReply, DeployRequest, Deployed, HistoryRequest, HostRequest, ListRequest,
    StatusReply, VersionReply, WhyRequest,
};
use wasmorch_api::{ApiError, ErrorCode, Name, ReplicaId, Timestamp, VERSION, WorkloadKey, stores};
use wasmorch_planner::commands::{self, Call, DeployInput, Outcome};
use wasmorch_planner::{Cluster, EventDraft, Write, preview, queries, why};

use crate::api::{ApiCall, Reply, Request, Verb, page};

/// A call that was understood and passed every check.
#[derive(Debug)]
pub(super) struct Done {
    /// What to store, whole, before the answer.
    pub(super) writes: Vec<Write>,
    /// What to say aloud after that.
    pub(super) events: Vec<EventDraft>,
    /// The answer.
    pub(super) answer: Pending,
}

/// An answer, as far as it is known before the store has acknowledged.
#[derive(Debug)]
pub(super) enum Pending {
    /// All of it.
    Ready(Reply),
    /// It needs the index of these records after the commit.
    Deploy(DeployReply, Vec<WorkloadKey>),
}

impl Pending {
    /// The answer, once the writes are committed.
    pub(super) fn finish(self, cluster: &Cluster) -> Reply {
        match self {
            Self::Ready(reply) => reply,
            Self::Deploy(mut reply, keys) => {
                reply.index = queries::index(cluster, keys);
                Reply::new(body(&reply))
            }
        }
    }
}

fn body<T: Serialize>(reply: &T) -> Vec<u8> {
    serde_json::to_vec(reply).expect("our own types have string keys and serialise")
}

/// Carries a call out on the state, without changing it. While the cluster is frozen every write is
/// refused as that: a wiped store would answer "no such workload" of one that runs.
pub(super) fn execute(
    cluster: &Cluster,
    frozen: Option<&str>,
    asked: &ApiCall,
    now: Timestamp,
) -> Result<Done, ApiError> {
    match (frozen, carry_out(cluster, asked, now)) {
        (Some(why), outcome) if asked.verb.writes() => outcome
            .ok()
            .filter(|done| done.writes.is_empty())
            .ok_or_else(|| is_frozen(why)),
        (_, outcome) => outcome,
    }
}

fn is_frozen(why: &str) -> ApiError {
    ApiError::new(
        ErrorCode::Frozen,
        "the cluster is frozen: nothing is changed",
        why,
        "what runs goes on; bring the store's data back and restart NATS, or rebuild it from the hosts: `wasmorch recover`",
    )
}

fn carry_out(cluster: &Cluster, asked: &ApiCall, now: Timestamp) -> Result<Done, ApiError> {
    let (request_id, by) = asked.request.caller();
    let call = Call {
        namespace: asked.namespace.clone().unwrap_or_default(),
        now,
        wall: cluster.wall(now),
        request_id: request_id.cloned(),
        by: by.unwrap_or("unknown").to_owned(),
    };
    Ok(match &asked.request {
        Request::Deploy(request) => deploy(cluster, asked, request, &call)?,
        Request::List(request) if asked.verb == Verb::Hosts => ready(hosts(cluster, request, now)),
        Request::List(request) => ready(list(cluster, asked.namespace.as_ref(), request)?),
        Request::Status(request) => {
            let key = WorkloadKey::new(call.namespace.clone(), request.workload.clone());
            let reply = queries::status(cluster, &key, request.all);
            status(reply.ok_or_else(|| no_workload(cluster, &key))?)?
        }
        Request::History(request) => {
            let key = WorkloadKey::new(call.namespace.clone(), request.workload.clone());
            ready(history(cluster, &key, request)?)
        }
        Request::Change(request) => {
            let key = WorkloadKey::new(call.namespace.clone(), request.workload.clone());
            if let Some(first) = commands::answered(cluster, &key, asked.verb.as_str(), &call) {
                return Ok(value(&first));
            }
            settled(match asked.verb {
                Verb::Scale => commands::scale(cluster, request, &call),
                Verb::Stop => commands::stop(cluster, request, &call),
                Verb::Start => commands::start(cluster, request, &call),
                Verb::Restart => commands::restart(cluster, request, &call),
                _ => commands::rm(cluster, request, &call),
            }?)
        }
        Request::Rollout(request) => {
            let key = WorkloadKey::new(call.namespace.clone(), request.workload.clone());
            if let Some(first) = commands::answered(cluster, &key, asked.verb.as_str(), &call) {
                return Ok(value(&first));
            }
            if asked.verb == Verb::Rollout {
                settled(commands::rollout(cluster, request, &call)?)
            } else {
                let Outcome {
                    writes,
                    events,
                    reply,
                } = commands::rollback(cluster, request, &call)?;
                Done {
                    writes,
                    events,
                    answer: Pending::Deploy(reply, vec![key]),
                }
            }
        }
        Request::Why(request) => why(cluster, request, &call)?,
        Request::Quota(request) => settled(commands::quota(cluster, request, &call)?),
        Request::Host(request) => host(cluster, asked.verb, request, now)?,
        // It takes longer than a turn: the loop has it.
        Request::Recover(_) => return Err(not_yet("this", "ask the leader")),
        Request::Nothing => value(&VersionReply {
            version: VERSION.to_owned(),
            term: cluster.term,
            leader: cluster.leader.clone(),
        }),
    })
}

/// The durable consumers that go with a workload when it is removed: stream and name.
pub(super) fn consumers(cluster: &Cluster, asked: &ApiCall) -> Vec<(String, String)> {
    let (Verb::Rm, Request::Change(request)) = (asked.verb, &asked.request) else {
        return Vec::new();
    };
    let namespace = asked.namespace.clone().unwrap_or_default();
    let key = WorkloadKey::new(namespace, request.workload.clone());
    let workload = cluster.workload(&key);
    let revisions = workload.into_iter().flat_map(|one| one.revisions.values());
    let mut consumers: Vec<(String, String)> = revisions
        .flat_map(|revision| &revision.spec.bindings.subscribe)
        .filter_map(|subscription| {
            let stream = subscription.stream.clone()?;
            let own = || stores::durable_name(&key, &stream);
            let name = subscription.durable.clone().unwrap_or_else(own);
            Some((stream, name))
        })
        .collect();
    consumers.sort();
    consumers.dedup();
    consumers
}

/// The streams that go with a workload when it is removed with its data.
pub(super) fn streams(cluster: &Cluster, asked: &ApiCall) -> BTreeSet<String> {
    match (asked.verb, &asked.request) {
        (Verb::Rm, Request::Change(request)) if request.data => {
            let namespace = asked.namespace.clone().unwrap_or_default();
            commands::streams(
                cluster,
                &WorkloadKey::new(namespace, request.workload.clone()),
            )
        }
        _ => BTreeSet::new(),
    }
}

/// The answer to `rm` with what could not be removed.
pub(super) fn with_kept(reply: Reply, left: Vec<String>) -> Reply {
    if left.is_empty() {
        return reply;
    }
    match serde_json::from_slice::<ChangeReply>(&reply.body) {
        Ok(mut change) => {
            change.kept.extend(left);
            Reply::new(body(&change))
        }
        _ => reply,
    }
}

fn ready(body: Vec<u8>) -> Done {
    let answer = Pending::Ready(Reply::new(body));
    Done {
        writes: Vec::new(),
        events: Vec::new(),
        answer,
    }
}

fn value<T: Serialize>(reply: &T) -> Done {
    ready(body(reply))
}

fn settled<R: Serialize>(outcome: Outcome<R>) -> Done {
    let answer = Pending::Ready(Reply::new(body(&outcome.reply)));
    Done {
        writes: outcome.writes,
        events: outcome.events,
        answer,
    }
}

fn deploy(
    cluster: &Cluster,
    asked: &ApiCall,
    request: &DeployRequest,
    call: &Call,
) -> Result<Done, ApiError> {
    let input = DeployInput {
        workloads: asked.workloads.clone(),
        if_index: request.if_index,
        features: asked.features.clone(),
        atomic: request.atomic,
    };
    if asked.verb == Verb::Plan {
        let preview = preview::of_deploy(cluster, &input, call)?;
        return Ok(ready(page::fits(body(&preview))?));
    }
    let keys: Vec<WorkloadKey> = input
        .workloads
        .iter()
        .map(|(spec, _)| WorkloadKey::new(call.namespace.clone(), spec.name.clone()))
        .collect();
    if let Some(first) = first_deploy(cluster, &keys, call) {
        let answer = Pending::Deploy(first, keys);
        return Ok(Done {
            writes: Vec::new(),
            events: Vec::new(),
            answer,
        });
    }
    let Outcome {
        writes,
        events,
        reply,
    } = commands::deploy(cluster, &input, call)?;
    Ok(Done {
        writes,
        events,
        answer: Pending::Deploy(reply, keys),
    })
}

/// The first answer to a repeated deploy: kept with each workload that it changed; the others were
/// as asked and still are what they were.
fn first_deploy(cluster: &Cluster, keys: &[WorkloadKey], call: &Call) -> Option<DeployReply> {
    let kept: Vec<Option<Deployed>> = keys
        .iter()
        .map(|key| {
            let reply = commands::answered(cluster, key, "deploy", call)?;
            let reply: DeployReply = serde_json::from_value(reply).ok()?;
            reply
                .workloads
                .into_iter()
                .find(|deployed| deployed.name == key.name)
        })
        .collect();
    if kept.iter().all(Option::is_none) {
        return None;
    }
    let unchanged = |key: &WorkloadKey| {
        let workload = cluster.workload(key)?;
        let urls = queries::summary(cluster, key, workload).urls;
        let revision = workload.record.asked();
        Some(Deployed {
            name: key.name.clone(),
            revision,
            changed: false,
            rollout: None,
            urls,
        })
    };
    let workloads = keys
        .iter()
        .zip(kept)
        .filter_map(|(key, kept)| kept.or_else(|| unchanged(key)))
        .collect();
    Some(DeployReply {
        index: 0,
        workloads,
    })
}

fn list(
    cluster: &Cluster,
    namespace: Option<&Name>,
    request: &ListRequest,
) -> Result<Vec<u8>, ApiError> {
    let after = request.cursor.as_deref().map(list_cursor).transpose()?;
    let from = after.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
    let items = cluster
        .workloads()
        .range::<WorkloadKey, _>((from, Bound::Unbounded))
        .filter(|(key, _)| namespace.is_none_or(|namespace| key.namespace == *namespace))
        .map(|(key, workload)| (key.to_string(), queries::summary(cluster, key, workload)));
    Ok(page::page(request, items))
}

fn list_cursor(cursor: &str) -> Result<WorkloadKey, ApiError> {
    let key = cursor.split_once('/').and_then(|(namespace, name)| {
        Some(WorkloadKey::new(
            namespace.parse().ok()?,
            name.parse().ok()?,
        ))
    });
    key.ok_or_else(foreign_cursor)
}

fn foreign_cursor() -> ApiError {
    ApiError::new(
        ErrorCode::Invalid,
        "the cursor is not one of this list",
        "",
        "pass the `next` of the page before, or none for the first page",
    )
}

fn hosts(cluster: &Cluster, request: &ListRequest, now: Timestamp) -> Vec<u8> {
    let items = queries::hosts(cluster, now)
        .into_iter()
        .map(|host| (format!("{}/{}", host.name, host.id), host))
        .skip_while(|(cursor, _)| {
            // Sorted by name, then id; `/` sorts before all that a name is made of but `-`, so the
            // parts are compared apart.
            request
                .cursor
                .as_deref()
                .is_some_and(|after| cursor.split_once('/') <= after.split_once('/'))
        });
    page::page(request, items)
}

fn status(reply: StatusReply) -> Result<Done, ApiError> {
    let (body, left_out) = page::status(reply)?;
    Ok(Done {
        writes: Vec::new(),
        events: Vec::new(),
        answer: Pending::Ready(Reply { body, left_out }),
    })
}

/// Newest first, so a cursor is the last revision that was told of.
fn history(
    cluster: &Cluster,
    key: &WorkloadKey,
    request: &HistoryRequest,
) -> Result<Vec<u8>, ApiError> {
    let before = request.cursor.as_deref().map(|cursor| {
        let revision = cursor.parse::<u64>();
        revision.map_err(|_| foreign_cursor())
    });
    let before = before.transpose()?.unwrap_or(u64::MAX);
    let items = queries::history(cluster, key).ok_or_else(|| no_workload(cluster, key))?;
    let items = { items.into_iter() }.filter(|item| item.revision.0 < before);
    let list = ListRequest {
        limit: request.limit,
        cursor: None,
    };
    let items = items.map(|item| (item.revision.to_string(), item));
    Ok(page::page(&list, items))
}

fn no_workload(cluster: &Cluster, key: &WorkloadKey) -> ApiError {
    let elsewhere = cluster
        .workloads()
        .keys()
        .find(|other| other.name == key.name);
    let fix = match elsewhere {
        Some(other) => format!("there is one in namespace {}: pass -n {0}", other.namespace),
        None => "list what there is: `wasmorch ps -A`".to_owned(),
    };
    let what = format!("no workload {} in namespace {}", key.name, key.namespace);
    ApiError::new(ErrorCode::NotFound, what, "", fix)
}

fn why(cluster: &Cluster, request: &WhyRequest, call: &Call) -> Result<Done, ApiError> {
    let invalid =
        |what: String, fix: &str| ApiError::new(ErrorCode::Invalid, what, String::new(), fix);
    let key = |name: &Name| WorkloadKey::new(call.namespace.clone(), name.clone());
    let story: Value = match (&request.workload, &request.host, &request.replica) {
        (None, Some(host), None) => why::host(cluster, host, call.now)?,
        (Some(name), None, None) => {
            let story = why::workload(cluster, &key(name));
            story.ok_or_else(|| no_workload(cluster, &key(name)))?
        }
        (named, None, Some(replica)) => {
            let (name, id) = match (named, replica.split_once('/')) {
                (None, Some((name, id))) => (name.parse::<Name>().ok(), id),
                (named, _) => (named.clone(), replica.as_str()),
            };
            let (Some(name), Ok(id)) = (name, id.parse::<ReplicaId>()) else {
                let what = format!("`{replica}` names no replica of a workload");
                return Err(invalid(what, "write WORKLOAD/REPLICA, as `ps` shows it"));
            };
            let key = key(&name);
            if cluster.workload(&key).is_none() {
                return Err(no_workload(cluster, &key));
            }
            why::replica(cluster, &key, id).ok_or_else(|| {
                let what = format!("no replica {name}/{id} is known");
                let why = "ended ones are remembered for a while only";
                let fix = format!("see `wasmorch ps {name} --all` and `wasmorch events`");
                ApiError::new(ErrorCode::NotFound, what, why, fix)
            })?
        }
        _ => {
            let what = "why names not exactly one thing".to_owned();
            return Err(invalid(what, "pass one of `workload`, `host`, `replica`"));
        }
    };
    Ok(ready(page::fits(body(&story))?))
}

fn host(
    cluster: &Cluster,
    verb: Verb,
    request: &HostRequest,
    now: Timestamp,
) -> Result<Done, ApiError> {
    let named = || {
        request.host.as_deref().ok_or_else(|| {
            let what = format!("{} names no host", verb.as_str());
            ApiError::new(ErrorCode::Invalid, what, "", "pass `host`: a name or an id")
        })
    };
    match verb {
        Verb::Cordon => Ok(settled(commands::cordon(cluster, named()?, now)?)),
        Verb::Uncordon => Ok(settled(commands::uncordon(cluster, named()?, now)?)),
        Verb::HostRm => Ok(settled(commands::host_rm(cluster, named()?, now)?)),
        Verb::Drain if request.cancel => {
            Ok(settled(commands::cancel_drain(cluster, named()?, now)?))
        }
        Verb::Drain => {
            let deadline = request.deadline_ms.map(Duration::from_millis);
            Ok(settled(commands::drain(cluster, named()?, deadline, now)?))
        }
        _ => Ok(settled(commands::rebalance(
            cluster,
            request.max_moves,
            request.cursor.as_deref(),
            now,
        )?)),
    }
}

fn not_yet(verb: &str, instead: &str) -> ApiError {
    let what = format!("{verb} is not in this version yet");
    ApiError::new(ErrorCode::Invalid, what, "", instead)
}
