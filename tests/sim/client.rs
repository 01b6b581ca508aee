//! The user: deploys, scales, removes, cordons, and asks again until there is an answer.
//!
//! Owns what can be asked for (when it is, say `wishes`) and how a leader carries it out (the planner's commands, with the memory of
//! requests that `controller/src/control_loop/execute.rs` has). What was acknowledged is `oracle`'s.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde_json::{Value, json};
use wasmorch_api::messages::{
    ChangeRequest, DeployReply, QuotaRequest, RolloutAction, RolloutRequest,
};
use wasmorch_api::{
    ApiError, Digest, ErrorCode, HostId, Kind, Name, PlacementNumber, RequestId, Timestamp,
    WorkloadKey, WorkloadSpec,
};
use wasmorch_planner::commands::{self, Call, DeployInput};
use wasmorch_planner::{Cluster, Write};

use super::oracle::Oracle;
use super::rng::Rng;
use super::weather::Weather;
use super::wire::{Event, Node};
use super::world::World;

/// Without an answer it is asked again after this.
const PATIENCE: u64 = 4_000;
/// After a refusal that says "try again".
const AGAIN: u64 = 1_000;

/// What is asked.
#[derive(Debug, Clone)]
pub(crate) enum Ask {
    Deploy(Box<WorkloadSpec>, Kind),
    /// Several at once; atomic or not.
    Manifest(Vec<(WorkloadSpec, Kind)>, bool),
    Scale(u32),
    Stop,
    Start,
    Restart,
    Rm,
    Rollback,
    Rollout(RolloutAction),
    Cordon(HostId),
    Uncordon(HostId),
    /// With a deadline in milliseconds.
    Drain(HostId, Option<u64>),
    CancelDrain(HostId),
    HostRm(HostId),
    /// Replicas that the namespace may have; `None`: no limit.
    Quota(Option<u64>),
    /// So many moves at most.
    Rebalance(u32),
}

/// One request.
#[derive(Debug, Clone)]
pub(crate) struct UserCall {
    pub(crate) id: u64,
    pub(crate) key: WorkloadKey,
    pub(crate) ask: Ask,
}

/// A request without an answer yet.
#[derive(Debug, Clone)]
struct Open {
    call: UserCall,
    attempt: u32,
}

/// The user.
pub(crate) struct User {
    pub(super) names: Vec<(WorkloadKey, Kind)>,
    /// Those that have one replica on every host, most of the time.
    pub(super) per_host: BTreeSet<WorkloadKey>,
    /// What host requests go by.
    pub(super) hosts: WorkloadKey,
    next: u64,
    pub(super) artifacts: u64,
    /// What it will ask next: to remove a workload that it has stopped, or to deploy it again.
    pub(super) then: VecDeque<(WorkloadKey, Kind, bool)>,
    open: BTreeMap<u64, Open>,
    pub(crate) oracle: Oracle,
}

type Done = Result<(Vec<Write>, Value), ApiError>;

impl UserCall {
    /// The workloads that it is about.
    pub(crate) fn keys(&self) -> Vec<WorkloadKey> {
        match &self.ask {
            Ask::Manifest(all, _) => { all.iter() }
                .map(|(spec, _)| WorkloadKey::new(self.key.namespace.clone(), spec.name.clone()))
                .collect(),
            _ => vec![self.key.clone()],
        }
    }

    /// Carries it out on a leader's state: what to store, and the answer after that.
    pub(crate) fn execute(&self, cluster: &Cluster, now: Timestamp) -> Done {
        let id: RequestId = format!("r{}", self.id).parse().expect("an id");
        let call = Call {
            namespace: self.key.namespace.clone(),
            now,
            wall: cluster.wall(now),
            request_id: Some(id),
            by: "sim".into(),
        };
        let keys = self.keys().into_iter();
        let first = keys.filter_map(|key| commands::answered(cluster, &key, self.verb(), &call));
        let first: Vec<Value> = first.collect();
        if !first.is_empty() {
            return Ok((Vec::new(), self.remembered(first)));
        }
        let workload = self.key.name.clone();
        let change = |desired| ChangeRequest {
            workload: workload.clone(),
            desired,
            args: None,
            data: false,
            request_id: None,
            by: None,
        };
        let rollout = |action| RolloutRequest {
            workload: workload.clone(),
            to: None,
            action,
            request_id: None,
            by: None,
        };
        let done = match &self.ask {
            Ask::Deploy(spec, kind) => {
                let input = DeployInput {
                    workloads: vec![(spec.as_ref().clone(), *kind)],
                    if_index: None,
                    ..DeployInput::default()
                };
                let done = commands::deploy(cluster, &input, &call)?;
                return Ok((done.writes, deployed(&done.reply)));
            }
            Ask::Manifest(all, atomic) => {
                let input = DeployInput {
                    workloads: all.clone(),
                    if_index: None,
                    atomic: *atomic,
                    ..DeployInput::default()
                };
                let done = commands::deploy(cluster, &input, &call)?;
                return Ok((done.writes, deployed(&done.reply)));
            }
            Ask::Scale(desired) => commands::scale(cluster, &change(Some(*desired)), &call)?,
            Ask::Stop => commands::stop(cluster, &change(None), &call)?,
            Ask::Start => commands::start(cluster, &change(None), &call)?,
            Ask::Restart => commands::restart(cluster, &change(None), &call)?,
            Ask::Rm => {
                // With its data, if nothing of it runs.
                let mut rm = change(None);
                rm.data = self.id.is_multiple_of(2);
                commands::rm(cluster, &rm, &call).or_else(|refused| {
                    rm.data = false;
                    let busy = refused.code == wasmorch_api::ErrorCode::Conflict;
                    let kept = busy.then(|| commands::rm(cluster, &rm, &call));
                    kept.unwrap_or(Err(refused))
                })?
            }
            Ask::Rollback => {
                let done = commands::rollback(cluster, &rollout(None), &call)?;
                return Ok((done.writes, deployed(&done.reply)));
            }
            Ask::Rollout(action) => {
                let done = commands::rollout(cluster, &rollout(Some(*action)), &call)?;
                return Ok((done.writes, Value::Null));
            }
            Ask::Cordon(host)
            | Ask::Uncordon(host)
            | Ask::Drain(host, _)
            | Ask::CancelDrain(host)
            | Ask::HostRm(host) => return self.on_host(cluster, host.as_str(), &call),
            Ask::Quota(replicas) => {
                let request = QuotaRequest {
                    replicas: *replicas,
                    clear: true,
                    ..QuotaRequest::default()
                };
                let done = commands::quota(cluster, &request, &call)?;
                return Ok((done.writes, Value::Null));
            }
            Ask::Rebalance(most) => {
                let done = commands::rebalance(cluster, Some(*most), None, now)?;
                let moves = done.reply.moves.len();
                return Ok((done.writes, json!(format!("{moves} moves"))));
            }
        };
        Ok((done.writes, Value::Null))
    }

    fn on_host(&self, cluster: &Cluster, host: &str, call: &Call) -> Done {
        let now = call.now;
        let done = match &self.ask {
            Ask::Cordon(_) => commands::cordon(cluster, host, now)?,
            Ask::Uncordon(_) => commands::uncordon(cluster, host, now)?,
            Ask::CancelDrain(_) => commands::cancel_drain(cluster, host, now)?,
            Ask::Drain(_, deadline) => {
                let deadline = deadline.map(std::time::Duration::from_millis);
                commands::drain(cluster, host, deadline, now)?
            }
            _ => commands::host_rm(cluster, host, now)?,
        };
        Ok((done.writes, Value::Null))
    }

    /// No workload's record keeps its answer: the controller does, in the store.
    pub(crate) fn leaves_no_record(&self) -> bool {
        matches!(
            self.ask,
            Ask::Rm
                | Ask::Cordon(_)
                | Ask::Uncordon(_)
                | Ask::Drain(..)
                | Ask::CancelDrain(_)
                | Ask::HostRm(_)
                | Ask::Quota(_)
                | Ask::Rebalance(_)
        )
    }

    fn verb(&self) -> &'static str {
        match self.ask {
            Ask::Deploy(..) | Ask::Manifest(..) => "deploy",
            Ask::Scale(_) => "scale",
            Ask::Stop => "stop",
            Ask::Start => "start",
            Ask::Restart => "restart",
            Ask::Rm => "rm",
            Ask::Rollback => "rollback",
            Ask::Rollout(_) => "rollout",
            Ask::Cordon(_) => "cordon",
            Ask::Uncordon(_) => "uncordon",
            Ask::Drain(..) | Ask::CancelDrain(_) => "drain",
            Ask::HostRm(_) => "host-rm",
            Ask::Quota(_) => "quota",
            Ask::Rebalance(_) => "rebalance",
        }
    }

    fn remembered(&self, first: Vec<Value>) -> Value {
        if !matches!(
            self.ask,
            Ask::Deploy(..) | Ask::Manifest(..) | Ask::Rollback
        ) {
            return Value::Null;
        }
        let replies =
            { first.into_iter() }.filter_map(|one| serde_json::from_value::<DeployReply>(one).ok());
        let workloads = replies.flat_map(|reply| reply.workloads).collect();
        deployed(&DeployReply {
            index: 0,
            workloads,
        })
    }

    pub(crate) fn words(&self) -> String {
        match &self.ask {
            Ask::Deploy(spec, kind) => {
                let count = match spec.per_host() {
                    true => "one per host".to_owned(),
                    false => spec.replicas_named().unwrap_or(1).to_string(),
                };
                let artifact = spec.artifact.as_ref().map_or("none", Digest::short);
                format!(
                    "r{} deploy {} ({kind}, {count} of {artifact})",
                    self.id, self.key
                )
            }
            Ask::Manifest(all, atomic) => {
                let each = all.iter().map(|(spec, kind)| {
                    let artifact = spec.artifact.as_ref().map_or("none", Digest::short);
                    let on: Vec<&str> = spec.depends_on.iter().map(Name::as_str).collect();
                    format!("{} ({kind}, {artifact}, after {on:?})", spec.name)
                });
                let each: Vec<String> = each.collect();
                let how = if *atomic { "atomic" } else { "together" };
                format!("r{} deploy {how}: {}", self.id, each.join(", "))
            }
            other => format!("r{} {other:?} {}", self.id, self.key),
        }
    }
}

/// The revisions that an answer names, by workload.
fn deployed(reply: &DeployReply) -> Value {
    let all = reply.workloads.iter();
    let all = all.map(|one| (one.name.to_string(), json!(one.revision.0)));
    Value::Object(all.collect())
}

fn name(text: &str) -> Name {
    text.parse().expect("a name")
}

impl User {
    pub(crate) fn new(weather: &Weather, rng: &mut Rng) -> Self {
        let kinds = [
            Kind::Http,
            Kind::Http,
            Kind::Service,
            Kind::Messages,
            Kind::Job,
            Kind::Job,
            Kind::Cron,
        ];
        let names: Vec<(WorkloadKey, Kind)> = (1..=weather.workloads)
            .map(|n| {
                (
                    WorkloadKey::new(name("ns"), name(&format!("w{n}"))),
                    *rng.pick(&kinds),
                )
            })
            .collect();
        let per_host = names
            .iter()
            .filter(|(_, kind)| !kind.ends() && rng.one_in(4));
        let per_host = per_host.map(|(key, _)| key.clone()).collect();
        Self {
            names,
            per_host,
            hosts: WorkloadKey::new(name("ns"), name("hosts")),
            next: 0,
            artifacts: 0,
            then: VecDeque::new(),
            open: BTreeMap::new(),
            oracle: Oracle::default(),
        }
    }

    pub(crate) fn has_cron(&self) -> bool {
        self.names.iter().any(|(_, kind)| *kind == Kind::Cron)
    }

    pub(crate) fn waits(&self) -> bool {
        !self.open.is_empty()
    }

    pub(crate) fn workloads(&self) -> Vec<(WorkloadKey, Kind)> {
        self.names.clone()
    }

    pub(super) fn is_open(&self, key: &WorkloadKey) -> bool {
        self.open
            .values()
            .any(|open| open.call.keys().contains(key))
    }
}

impl World {
    pub(crate) fn user_next(&mut self) {
        if self.healed {
            return;
        }
        let wait = self.rng.between(200, self.weather.call_every_ms);
        self.after(wait, Event::UserNext);
        let Some((key, ask)) = self.user_wishes() else {
            return;
        };
        self.user_calls(key, ask);
    }

    /// When all is well again nothing is to wait for a quota: that would excuse whatever does. In some worlds
    /// it stays, and is to explain what waits.
    pub(crate) fn user_lifts_quota(&mut self) {
        if self.laws.quota.is_some() && !self.rules.keep_quota() {
            self.user_calls(self.user.hosts.clone(), Ask::Quota(None));
        }
    }

    fn user_calls(&mut self, key: WorkloadKey, ask: Ask) {
        let id = self.user.next + 1;
        let call = UserCall { id, key, ask };
        if call.keys().iter().any(|key| self.user.is_open(key)) {
            return;
        }
        self.user.next = id;
        let words = call.words();
        self.say("user", || words);
        let newest = self.newest_placement(&call.key);
        self.user.oracle.asked(&call, newest);
        let open = Open { call, attempt: 0 };
        self.user.open.insert(id, open);
        self.user_asks(id);
    }

    /// The newest placement of a workload that has a replica anywhere.
    fn newest_placement(&self, key: &WorkloadKey) -> Option<PlacementNumber> {
        let ups = self.hosts.iter().filter_map(|host| host.up.as_ref());
        let all = ups.flat_map(|up| up.runner.keys());
        let mine = all.filter(|one| one.workload == *key);
        mine.map(|one| one.id.placement).max()
    }

    /// To whoever leads, or believes so.
    fn user_asks(&mut self, id: u64) {
        let Some(open) = self.user.open.get_mut(&id) else {
            return;
        };
        open.attempt += 1;
        let (call, attempt) = (open.call.clone(), open.attempt);
        for at in 0..self.controllers.len() {
            if self.controllers[at].leads().is_some() {
                let inc = self.controllers[at].inc;
                let call = call.clone();
                let event = Event::Call { at, inc, call };
                self.send_once(Node::User, Node::Controller(at), event);
            }
        }
        self.after(PATIENCE, Event::UserTimeout { call: id, attempt });
    }

    pub(crate) fn user_times_out(&mut self, id: u64, attempt: u32) {
        if self
            .user
            .open
            .get(&id)
            .is_some_and(|open| open.attempt == attempt)
        {
            self.user_asks(id);
        }
    }

    pub(crate) fn answer_user(
        &mut self,
        at: usize,
        call: &UserCall,
        answer: Result<Value, ApiError>,
    ) {
        let words = match &answer {
            Ok(value) => format!("answers r{}: {value}", call.id),
            Err(refusal) => format!("refuses r{}: {}", call.id, refusal.what),
        };
        self.say_controller(at, || words);
        let call = call.id;
        let event = Event::UserAnswer { call, answer };
        self.send_once(Node::Controller(at), Node::User, event);
    }

    pub(crate) fn user_answered(&mut self, id: u64, answer: Result<Value, ApiError>) {
        let Some(open) = self.user.open.get(&id).cloned() else {
            return;
        };
        let again =
            |error: &ApiError| matches!(error.code, ErrorCode::Unavailable | ErrorCode::Frozen);
        if answer.as_ref().is_err_and(again) {
            let attempt = open.attempt;
            self.after(AGAIN, Event::UserTimeout { call: id, attempt });
            return;
        }
        self.user.open.remove(&id);
        let repeated = open.attempt > 1;
        let words = format!(
            "r{id} is {}",
            if answer.is_ok() { "done" } else { "refused" }
        );
        self.say("user", || words);
        self.user.oracle.answered(&open.call, &answer, repeated);
        for key in open.call.keys() {
            self.law_of_what_was_acknowledged(&key);
        }
    }
}
