//! `constraints`, `affinity` and `disconnect`: on which hosts replicas go, and what becomes of them when one is silent.

use serde::{Deserialize, Serialize};

use crate::units::HumanDuration;

/// One condition on a host's label.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LabelTest {
    /// `eq = "ssd"`.
    Eq(String),
    /// `ne = "ssd"`.
    Ne(String),
    /// `in = ["a", "b"]`.
    In(Vec<String>),
    /// `not_in = ["a", "b"]`.
    NotIn(Vec<String>),
    /// `matches = "eu-*"`: `*` stands for any run of characters.
    Matches(String),
    /// `exists = true`.
    Exists(bool),
}

/// One placement constraint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Constraint {
    /// `{ label = "zone", in = ["a", "b"] }`.
    Label {
        /// The label.
        label: String,
        /// The condition.
        #[serde(flatten)]
        test: LabelTest,
    },
    /// `{ distinct = "host" }` or `{ distinct = "zone", max = 2 }`.
    Distinct {
        /// `host`, or a label.
        distinct: String,
        /// At most so many per value; 1 unless given.
        #[serde(default = "one")]
        max: u32,
    },
}

fn one() -> u32 {
    1
}

/// `{ label = "disk", eq = "ssd", weight = 50 }`; a negative weight repels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Affinity {
    /// The label.
    pub label: String,
    /// -100 to 100.
    pub weight: i32,
    /// The condition.
    #[serde(flatten)]
    pub test: LabelTest,
}

/// Which copy stays when a silent host returns.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reconcile {
    /// The one that was there first.
    #[default]
    KeepOriginal,
    /// The one that replaced it.
    KeepReplacement,
    /// The one that has run longer.
    LongestRunning,
    /// The one on the better host.
    BestScore,
}

/// `disconnect = { .. }`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Disconnect {
    /// Silence before the replica counts as lost, beyond the host's own detection.
    pub lost_after: HumanDuration,
    /// Whether it is replaced then.
    pub replace: bool,
    /// Which copy stays.
    pub reconcile: Reconcile,
    /// The host ends it by itself after this long without a leader.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_after: Option<HumanDuration>,
    /// Never two at once.
    pub exclusive: bool,
}

impl Default for Disconnect {
    fn default() -> Self {
        Self {
            lost_after: HumanDuration::secs(0),
            replace: true,
            reconcile: Reconcile::KeepOriginal,
            stop_after: None,
            exclusive: false,
        }
    }
}
