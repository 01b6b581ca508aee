//! `health` and `update`: when a replica is well, and how one revision follows another.

use serde::{Deserialize, Serialize};

use super::Kind;
use crate::units::{HumanDuration, Share};

/// An HTTP probe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Probe {
    /// Asked with GET.
    pub path: String,
    /// Statuses that pass, `100-499` or `200`; `None`: 100-499 without redirects, which prove
    /// nothing of where they lead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<StatusRange>,
    /// Between two probes.
    pub interval: HumanDuration,
    /// For one answer.
    pub timeout: HumanDuration,
    /// In a row to become ready.
    pub pass: u32,
    /// In a row to lose it.
    pub fail: u32,
}

impl Default for Probe {
    fn default() -> Self {
        Self {
            path: "/".into(),
            status: None,
            interval: HumanDuration::millis(500),
            timeout: HumanDuration::secs(1),
            pass: 1,
            fail: 3,
        }
    }
}

impl Probe {
    /// What a status has to be within.
    pub fn wanted(&self) -> StatusRange {
        self.status.unwrap_or(StatusRange { from: 100, to: 499 })
    }
}

/// A range of HTTP statuses, both ends included. Written `100-499`, or `200` for one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatusRange {
    /// The lowest that passes.
    pub from: u16,
    /// The highest that passes.
    pub to: u16,
}

impl StatusRange {
    /// Whether this status passes.
    pub fn contains(self, status: u16) -> bool {
        (self.from..=self.to).contains(&status)
    }
}

impl std::str::FromStr for StatusRange {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let error = || format!("`{text}` is not a range of statuses: write it like 200-399");
        let (from, to) = text.split_once('-').unwrap_or((text, text));
        let parse = |part: &str| {
            part.trim()
                .parse::<u16>()
                .ok()
                .filter(|n| (100..=599).contains(n))
        };
        let (from, to) = (parse(from).ok_or_else(error)?, parse(to).ok_or_else(error)?);
        if from > to {
            Err(error())
        } else {
            Ok(Self { from, to })
        }
    }
}

impl std::fmt::Display for StatusRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.from == self.to {
            write!(f, "{}", self.from)
        } else {
            write!(f, "{}-{}", self.from, self.to)
        }
    }
}

impl Serialize for StatusRange {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for StatusRange {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// `health = { .. }`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Health {
    /// A failing probe is forgiven this long after a start.
    pub start_grace: HumanDuration,
    /// `None` (`ready = false`): instance and route only.
    #[serde(with = "probe_or_false")]
    pub ready: Option<Probe>,
    /// Restarts a replica that fails it; none by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub live: Option<Probe>,
}

impl Default for Health {
    fn default() -> Self {
        Self {
            start_grace: HumanDuration::secs(10),
            ready: Some(Probe::default()),
            live: None,
        }
    }
}

/// No probe is written `false`, as in a manifest; `null` reads the same.
mod probe_or_false {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::Probe;

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Form {
        Flag(bool),
        Probe(Probe),
    }

    pub(super) fn serialize<S: Serializer>(
        probe: &Option<Probe>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        match probe {
            Some(probe) => probe.serialize(to),
            None => to.serialize_bool(false),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<Probe>, D::Error> {
        Ok(match Option::<Form>::deserialize(from)? {
            Some(Form::Probe(probe)) => Some(probe),
            Some(Form::Flag(true)) => Some(Probe::default()),
            Some(Form::Flag(false)) | None => None,
        })
    }
}

/// Which side of a replacement comes first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UpdateOrder {
    /// The new one is ready before the old one stops.
    #[default]
    StartFirst,
    /// The old one has stopped before the new one starts.
    StopFirst,
}

/// What a failed rollout does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnFailure {
    /// Back to the last good revision.
    #[default]
    Revert,
    /// Stay, and wait for a person.
    Pause,
}

/// `[workload.update]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Update {
    /// So many above desired.
    pub max_surge: u32,
    /// So many below desired.
    pub max_unavailable: u32,
    /// Ready this long before it counts.
    pub min_ready: HumanDuration,
    /// Without progress for this long, the rollout has failed.
    pub progress_deadline: HumanDuration,
    /// Which side comes first.
    pub order: UpdateOrder,
    /// One value of this label after the other.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// In-flight work may finish this long.
    pub drain: HumanDuration,
    /// What a failed rollout does.
    pub on_failure: OnFailure,
    /// Judges the new revision by its answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fail_when: Option<FailWhen>,
    /// A few first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub canary: Option<Canary>,
}

impl Update {
    /// How a new revision's answers are judged: those of http workloads always are.
    #[must_use]
    pub fn judged_by(&self, kind: Kind) -> Option<FailWhen> {
        let named = self.fail_when.clone();
        (kind == Kind::Http).then(|| named.unwrap_or_default())
    }
}

impl Default for Update {
    fn default() -> Self {
        Self {
            max_surge: 1,
            max_unavailable: 0,
            min_ready: HumanDuration::secs(1),
            progress_deadline: HumanDuration::secs(120),
            order: UpdateOrder::StartFirst,
            by: None,
            drain: HumanDuration::secs(30),
            on_failure: OnFailure::Revert,
            fail_when: None,
            canary: None,
        }
    }
}

/// `fail_when = { errors, min_requests, p99 }`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FailWhen {
    /// Share of failed requests.
    pub errors: Share,
    /// Judged from so many on.
    pub min_requests: u32,
    /// Slower than this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p99: Option<HumanDuration>,
}

impl Default for FailWhen {
    fn default() -> Self {
        Self {
            errors: Share(10_000),
            min_requests: 20,
            p99: None,
        }
    }
}

/// `canary = { .. }`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Canary {
    /// So many new replicas.
    pub replicas: u32,
    /// So many percent of requests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub percent: Option<u32>,
    /// Watched this long.
    pub bake: HumanDuration,
    /// By itself, or by `rollout promote`.
    pub promote: Promote,
}

impl Default for Canary {
    fn default() -> Self {
        Self {
            replicas: 1,
            percent: None,
            bake: HumanDuration::secs(300),
            promote: Promote::Auto,
        }
    }
}

/// Who ends a canary.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Promote {
    /// The leader, after `bake`.
    #[default]
    Auto,
    /// A person.
    Manual,
}
