//! A workload's spec: what the user asked for, with every default filled in.
//!
//! Owns the shape and the defaults of `[[workload]]` (docs/reference.md). Reading one from a
//! person's manifest or request, with every mistake reported, is `manifest`'s; here serde is the
//! lenient form in which a spec is stored and read back between our own parts.
//!
//! Invariant: the system never edits a spec. How many replicas are wanted right now lives in the
//! workload's record.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::ids::{Digest, Name};
use crate::messages::STOP_GRACE;
use crate::units::HumanDuration;

mod bindings;
mod lifecycle;
mod placing;
mod resources;
mod scale;

pub use bindings::{Bindings, Sockets, StoreBinding, Subscription, Volume};
pub use lifecycle::{
    Canary, FailWhen, Health, OnFailure, Probe, Promote, StatusRange, Update, UpdateOrder,
};
pub use placing::{Affinity, Constraint, Disconnect, LabelTest, Reconcile};
pub use resources::{InstanceReuse, Reserve, Resources};
pub use scale::{Measure, Scale, scale_panic, scale_tolerance, scale_window};

/// What a workload does, from its exports or as the manifest says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Answers HTTP requests.
    Http,
    /// Handles messages of NATS subjects.
    Messages,
    /// Runs for ever.
    Service,
    /// Runs to completion.
    Job,
    /// A job at set times.
    Cron,
}

impl Kind {
    /// Every kind, in the order of the docs.
    pub const ALL: [Self; 5] = [
        Self::Http,
        Self::Messages,
        Self::Service,
        Self::Job,
        Self::Cron,
    ];

    /// The word for it in manifests, JSON and listings.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Messages => "messages",
            Self::Service => "service",
            Self::Job => "job",
            Self::Cron => "cron",
        }
    }

    /// Whether a replica of it ends by itself when all is well.
    pub const fn ends(self) -> bool {
        matches!(self, Self::Job | Self::Cron)
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

/// One workload as asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct WorkloadSpec {
    /// Its name in its namespace.
    pub name: Name,
    /// The component's bytes. `None` only between reading a manifest and uploading its file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub artifact: Option<Digest>,
    /// What it does; `None` until it has been taken from the component's exports.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<Kind>,
    /// Arguments, for service, job and cron.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// Workloads of the same namespace that must be ready first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub depends_on: Vec<Name>,
    /// `host/path` routes besides `<name>.<namespace>.<domain>`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<String>,
    /// How many; `None` leaves what the record says (1 for a new workload).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replicas: Option<Replicas>,
    /// Autoscaling; excludes `replicas`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scale: Option<Scale>,
    /// Environment variables.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub environment: BTreeMap<String, String>,
    /// Values of `wasi:config`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub config: BTreeMap<String, String>,
    /// Limits, and what placement books.
    pub resources: Resources,
    /// Reuse of instances.
    pub instance: InstanceReuse,
    /// What a host does when a replica ends.
    pub restart: Restart,
    /// Where it may run.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub constraints: Vec<Constraint>,
    /// Where it would rather run.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub affinity: Vec<Affinity>,
    /// Taints that it accepts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tolerate: Vec<String>,
    /// Labels (or `host`) that replicas are spread over.
    pub spread: Vec<String>,
    /// Larger goes first.
    pub priority: u32,
    /// Replicas kept through drains and pre-emption.
    pub min_available: u32,
    /// What happens when its host is silent.
    pub disconnect: Disconnect,
    /// When a replica counts as ready.
    pub health: Health,
    /// How a new revision replaces the old.
    pub update: Update,
    /// Its capabilities. Nothing is granted by default.
    #[serde(skip_serializing_if = "Bindings::is_empty")]
    pub bindings: Bindings,
    /// Cron only: when.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schedule: Option<String>,
    /// Cron only: the zone of `schedule`; UTC unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timezone: Option<String>,
    /// Cron only: what happens when the last run still runs; `skip` unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overlap: Option<Overlap>,
    /// Cron only: a run missed by no more than this is made up for; 1h unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub catch_up: Option<HumanDuration>,
    /// Job and cron: how often and how many at once.
    pub job: Job,
}

impl Default for WorkloadSpec {
    fn default() -> Self {
        Self {
            name: Name::default(),
            artifact: None,
            kind: None,
            args: Vec::new(),
            depends_on: Vec::new(),
            routes: Vec::new(),
            replicas: None,
            scale: None,
            environment: BTreeMap::new(),
            config: BTreeMap::new(),
            resources: Resources::default(),
            instance: InstanceReuse::default(),
            restart: Restart::default(),
            constraints: Vec::new(),
            affinity: Vec::new(),
            tolerate: Vec::new(),
            spread: vec!["host".into(), "zone".into()],
            priority: 50,
            min_available: 0,
            disconnect: Disconnect::default(),
            health: Health::default(),
            update: Update::default(),
            bindings: Bindings::default(),
            schedule: None,
            timezone: None,
            overlap: None,
            catch_up: None,
            job: Job::default(),
        }
    }
}

impl WorkloadSpec {
    /// The part that makes a revision: all but how many are wanted. That there is one on every host
    /// is part of it: nobody scales it, and what goes back to it goes back to that.
    #[must_use]
    pub fn without_desired(&self) -> Self {
        Self {
            replicas: self.replicas.filter(|_| self.per_host()),
            ..self.clone()
        }
    }

    /// Whether it wants one on every host.
    pub fn per_host(&self) -> bool {
        matches!(self.replicas, Some(Replicas::PerHost(_)))
    }

    /// How many replicas this spec names, if it names any.
    pub fn replicas_named(&self) -> Option<u32> {
        match self.replicas {
            Some(Replicas::Count(count)) => Some(count),
            _ => None,
        }
    }

    /// How many are wanted once this is deployed where `before` were: as many as it names; with `scale`
    /// as many as before, within its bounds.
    pub fn desired_after(&self, before: u32) -> u32 {
        let kept = self.scale.as_ref().map(|scale| scale.within(before));
        self.replicas_named().or(kept).unwrap_or(before)
    }

    /// Whether no two replicas of one slot may ever run at once.
    pub fn runs_once(&self) -> bool {
        let mut volumes = self.bindings.volume.values();
        self.disconnect.exclusive || volumes.any(|volume| volume.on_host_loss == "new")
    }

    /// What its host ends because no leader has heard it for `stop_after` drains for so long: half of what is left
    /// until `lost_after` at the most, for the other half is for what takes longer than it should.
    pub fn drain_alone(&self) -> Duration {
        let disconnect = &self.disconnect;
        let stop_after = disconnect.stop_after.unwrap_or_default();
        let left = disconnect.lost_after.0.saturating_sub(stop_after.0);
        self.update.drain.0.min(left / 2)
    }

    /// What must not run twice has ended by itself so long after the last heartbeat of its host that a leader
    /// has heard. Zero: this may run twice.
    pub fn ended_alone(&self) -> Duration {
        let stop_after = self.disconnect.stop_after.unwrap_or_default();
        match self.runs_once() {
            true => stop_after.0 + self.drain_alone() + STOP_GRACE,
            false => Duration::ZERO,
        }
    }

    /// How many replicas rest while none is wanted, so that a request wakes one; without `scale.min = 0`
    /// none does.
    pub fn standbys(&self) -> u32 {
        let to_zero = { self.scale.as_ref() }.filter(|scale| scale.min == 0);
        to_zero.map_or(0, |scale| STANDBYS.min(scale.max))
    }

    /// The restart policy in force: jobs retry on failure unless told otherwise.
    pub fn restart_policy(&self) -> RestartPolicy {
        self.restart.policy.unwrap_or(match self.kind {
            Some(kind) if kind.ends() => RestartPolicy::OnFailure,
            _ => RestartPolicy::Always,
        })
    }
}

/// One more than one: a host may be lost just before a request comes.
const STANDBYS: u32 = 2;

/// `replicas = 3` or `replicas = "per-host"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Replicas {
    /// So many.
    Count(u32),
    /// One on every host that fits.
    PerHost(PerHost),
}

/// The word `per-host`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PerHost {
    /// The only value.
    #[serde(rename = "per-host")]
    PerHost,
}

/// When a host starts a replica again by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestartPolicy {
    /// Whenever it ends.
    Always,
    /// When it failed.
    OnFailure,
    /// Not at all.
    Never,
}

/// `restart = { .. }`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Restart {
    /// `None`: `on-failure` for jobs, else `always`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<RestartPolicy>,
    /// Before the second start; doubles.
    pub backoff: HumanDuration,
    /// Never longer.
    pub backoff_max: HumanDuration,
    /// Starts on one host before the leader moves the slot.
    pub starts_per_host: u32,
}

impl Default for Restart {
    fn default() -> Self {
        Self {
            policy: None,
            backoff: HumanDuration::secs(1),
            backoff_max: HumanDuration::secs(300),
            starts_per_host: 3,
        }
    }
}

/// What a cron workload does when its last run still runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Overlap {
    /// Leave this run out.
    #[default]
    Skip,
    /// Run both.
    Allow,
    /// End the old one.
    Replace,
}

/// `job = { .. }`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Job {
    /// Successful ends wanted.
    pub completions: u32,
    /// At once.
    pub parallelism: u32,
    /// Tries of one completion.
    pub attempts: u32,
    /// Ended replicas kept for looking at.
    pub keep: u32,
}

impl Default for Job {
    fn default() -> Self {
        Self {
            completions: 1,
            parallelism: 1,
            attempts: 3,
            keep: 10,
        }
    }
}

impl Job {
    /// Replicas that a run has at once: never more than completions are wanted.
    #[must_use]
    pub fn seats(&self) -> u32 {
        self.parallelism.min(self.completions)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spec_survives_the_store() {
        let spec = WorkloadSpec {
            constraints: vec![
                Constraint::Label {
                    label: "zone".into(),
                    test: LabelTest::In(vec!["a".into()]),
                },
                Constraint::Distinct {
                    distinct: "host".into(),
                    max: 1,
                },
            ],
            replicas: Some(Replicas::PerHost(PerHost::PerHost)),
            health: Health {
                ready: None,
                ..Health::default()
            },
            ..WorkloadSpec::default()
        };
        let json = serde_json::to_string(&spec).unwrap();
        assert!(
            json.contains(r#""ready":false"#),
            "as in a manifest: {json}"
        );
        assert_eq!(serde_json::from_str::<WorkloadSpec>(&json).unwrap(), spec);
        // Version N reads what N-1 wrote: absent fields are defaults, unknown ones are ignored.
        let old: WorkloadSpec =
            serde_json::from_str(r#"{"name":"web","from_the_future":1}"#).unwrap();
        assert_eq!(old.priority, 50);
    }
}
