//! What a record keeps of a rollout: how far it is, and what it waits for.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::ids::{Name, RevisionNumber};
use crate::time::Timestamp;

/// Where a rollout stands.
///
/// ```text
/// [canary > baking >] rolling > completed
///    any of them > paused (and back) | reverting > reverted | failed
///    any of them > aborted
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RolloutState {
    /// Replacing slots.
    Rolling,
    /// Placing the canaries.
    Canary,
    /// Watching the canaries.
    Baking,
    /// Waiting for a person.
    Paused,
    /// Going back to the last good revision.
    Reverting,
    /// Done: every slot runs the revision.
    Completed,
    /// Went back.
    Reverted,
    /// Went back because a person said so.
    Aborted,
    /// Could not be completed, and there is nothing to go back to, or going back failed too.
    Failed,
}

impl RolloutState {
    /// Whether nothing more happens by itself.
    pub const fn ended(self) -> bool {
        matches!(
            self,
            Self::Completed | Self::Reverted | Self::Aborted | Self::Failed
        )
    }

    /// The word in JSON and listings.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Rolling => "rolling",
            Self::Canary => "canary",
            Self::Baking => "baking",
            Self::Paused => "paused",
            Self::Reverting => "reverting",
            Self::Completed => "completed",
            Self::Reverted => "reverted",
            Self::Aborted => "aborted",
            Self::Failed => "failed",
        }
    }
}

impl std::fmt::Display for RolloutState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

/// One movement from a revision to another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rollout {
    /// Where to.
    pub revision: RevisionNumber,
    /// Where from; `None` for a first revision.
    #[serde(default)]
    pub from: Option<RevisionNumber>,
    /// Where it stands.
    pub state: RolloutState,
    /// When it began.
    pub started: Timestamp,
    /// Without progress until then, it has failed.
    pub deadline: Timestamp,
    /// The most slots seen ready at the new revision: growing is progress.
    #[serde(default)]
    pub best: u32,
    /// The revision is to prove itself on canaries, beside the record's own; `None`: it has none, or
    /// they were promoted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary: Option<CanaryStep>,
    /// Why it paused, reverted or failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// It has not begun: what the workload depends on is not ready yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold: Option<Hold>,
    /// The others of an atomic deploy, which complete or go back with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub together: Option<Together>,
}

impl Rollout {
    /// One that begins now, and fails when it comes no further for as long as `patience`.
    pub fn begin(
        revision: RevisionNumber,
        from: Option<RevisionNumber>,
        now: Timestamp,
        patience: Duration,
    ) -> Self {
        Self {
            revision,
            from,
            state: RolloutState::Rolling,
            started: now,
            deadline: now.after(patience),
            best: 0,
            canary: None,
            reason: None,
            hold: None,
            together: None,
        }
    }
}

/// A rollout that waits for other workloads. Meanwhile the record's `revision` is still the one that
/// serves; it is the rollout's own when nothing did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    /// Rollouts of others that began before are not its concern: what serves after them will do.
    pub since: Timestamp,
    /// How many replicas are wanted once it begins.
    pub desired: u32,
    /// What it waits for will not come by itself: it has failed when nothing changes until then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
}

/// A workload's part in an atomic deploy. The others are known by the revisions that it gave them: no
/// revision number is given twice, and whoever rolls to another one has left.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Together {
    /// The others.
    pub with: BTreeMap<Name, RevisionNumber>,
    /// Every slot has been available at the revision: it waits for the others.
    #[serde(default)]
    pub arrived: bool,
    /// Nothing of it ran before: it goes back to nothing.
    #[serde(default)]
    pub from_nothing: bool,
    /// How many replicas it goes back to, when it has become a kind that has none to count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub desired: Option<u32>,
}

/// How far canaries have come.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CanaryStep {
    /// All of them have been available since; `None`: not all are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub baking_since: Option<Timestamp>,
    /// They have been watched for as long as was asked, and wait for a person.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub baked: bool,
}
