//! Events: what happened, when, to what, and why (docs/reference.md, "Events").

use serde::{Deserialize, Serialize};

use crate::ids::{HostId, Name, ReplicaId, RevisionNumber, Term};
use crate::time::Timestamp;

macro_rules! event_kinds {
    ($($variant:ident => $word:literal),* $(,)?) => {
        /// What kind of event; the word is the last token of its subject.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum EventKind {
            $(#[doc = $word] #[serde(rename = $word)] $variant,)*
        }
        impl EventKind {
            /// Every kind.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];
            /// The word in subjects and JSON.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)* }
            }
        }
    };
}

event_kinds! {
    Deployed => "deployed", Scaled => "scaled", Stopped => "stopped", Started => "started",
    Removed => "removed", Unplaced => "unplaced", Placed => "placed",
    ReplicaReady => "replica-ready", ReplicaFailed => "replica-failed",
    ReplicaRejected => "replica-rejected", ReplicaLost => "replica-lost",
    ReplicaStopped => "replica-stopped", ReplicaPreempted => "replica-preempted",
    CrashLoop => "crash-loop", JobCompleted => "job-completed", JobFailed => "job-failed",
    CronSkipped => "cron-skipped", RolloutStarted => "rollout-started",
    RolloutPaused => "rollout-paused", RolloutPromoted => "rollout-promoted",
    RolloutCompleted => "rollout-completed", RolloutReverted => "rollout-reverted",
    RolloutAborted => "rollout-aborted", RolloutFailed => "rollout-failed",
    HostJoined => "host-joined", HostSuspect => "host-suspect", HostDead => "host-dead",
    HostReturned => "host-returned", HostCordoned => "host-cordoned",
    HostDraining => "host-draining", HostDrained => "host-drained",
    LeaderElected => "leader-elected", AlarmFrozen => "alarm-frozen",
    AlarmMassSilence => "alarm-mass-silence", AlarmPlanRefused => "alarm-plan-refused",
    AlarmStaleTerm => "alarm-stale-term", AlarmDuplicateHost => "alarm-duplicate-host",
    AlarmFull => "alarm-full",
}

/// One event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Unique within the cluster: `<term>-<count>`.
    pub id: String,
    /// When.
    pub at: Timestamp,
    /// The leader's term.
    pub term: Term,
    /// What.
    pub kind: EventKind,
    /// Where; `_` for the whole cluster.
    pub namespace: String,
    /// The workload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload: Option<Name>,
    /// The replica.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replica: Option<ReplicaId>,
    /// The host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostId>,
    /// The revision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<RevisionNumber>,
    /// Why, in a few words.
    pub reason: String,
    /// More, for machines.
    #[serde(default, skip_serializing_if = "serde_json::Value::is_null")]
    pub detail: serde_json::Value,
}
