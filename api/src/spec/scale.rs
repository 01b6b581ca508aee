//! `scale`: how many replicas a workload may have, and what each of them should carry.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::units::{HumanDuration, Share};

/// Autoscaling bounds and aim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scale {
    /// Never fewer.
    pub min: u32,
    /// Never more.
    pub max: u32,
    /// What one replica should carry: `concurrency`, `requests_per_second`, `cpu` or `pending`.
    pub target: BTreeMap<String, u32>,
    /// The stable window.
    #[serde(default = "scale_window")]
    pub window: HumanDuration,
    /// The panic window.
    #[serde(default = "scale_panic")]
    pub panic: HumanDuration,
    /// No change within this share of the target.
    #[serde(default = "scale_tolerance")]
    pub tolerance: Share,
}

/// What the autoscaler looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Measure {
    /// Requests or messages in hand.
    Concurrency,
    /// Requests taken in a second.
    RequestsPerSecond,
    /// Percent of `resources.cpu`.
    Cpu,
    /// Messages that wait in a stream.
    Pending,
}

impl Measure {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::Concurrency,
        Self::RequestsPerSecond,
        Self::Cpu,
        Self::Pending,
    ];

    /// The key under `scale.target`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Concurrency => "concurrency",
            Self::RequestsPerSecond => "requests_per_second",
            Self::Cpu => "cpu",
            Self::Pending => "pending",
        }
    }
}

impl Scale {
    /// What it follows, and how much of that one replica should carry.
    pub fn follows(&self) -> Option<(Measure, u32)> {
        let of = |measure: Measure| Some((measure, *self.target.get(measure.as_str())?));
        Measure::ALL.into_iter().find_map(of)
    }

    /// The count next to this one that its bounds allow.
    pub fn within(&self, count: u32) -> u32 {
        count.max(self.min).min(self.max)
    }
}

/// Default `scale.window`.
pub fn scale_window() -> HumanDuration {
    HumanDuration::secs(30)
}

/// Default `scale.panic`.
pub fn scale_panic() -> HumanDuration {
    HumanDuration::secs(6)
}

/// Default `scale.tolerance`.
pub fn scale_tolerance() -> Share {
    Share(10_000)
}
