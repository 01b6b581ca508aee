//! `bindings`: what a workload may reach, by name.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::units::ByteSize;

/// `[workload.bindings]`: the capabilities that a spec grants by name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Bindings {
    /// Outbound HTTP: `host[:port]`, `*.host`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub http: Vec<String>,
    /// Other workloads: `name` or `name.namespace`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub workloads: Vec<String>,
    /// NATS subjects it may publish to and ask.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub publish: Vec<String>,
    /// NATS subjects it handles.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub subscribe: Vec<Subscription>,
    /// Key-value stores by the name that the guest opens.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub keyvalue: BTreeMap<String, StoreBinding>,
    /// Blob stores by the name that the guest opens.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub blobstore: BTreeMap<String, StoreBinding>,
    /// Directories by volume name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub volume: BTreeMap<String, Volume>,
    /// TCP and UDP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sockets: Option<Sockets>,
}

impl Bindings {
    /// Whether a slot has a volume that it writes to.
    #[must_use]
    pub fn writes(&self) -> bool {
        self.volume.values().any(|volume| volume.mode == "rw")
    }

    /// Whether it listens on a port of its host.
    #[must_use]
    pub fn listens(&self) -> bool {
        let sockets = self.sockets.as_ref();
        sockets.is_some_and(|sockets| !sockets.listen.is_empty())
    }

    /// Whether it handles a subject whose messages nobody keeps: what comes while nobody listens is lost.
    #[must_use]
    pub fn hears_plain_subjects(&self) -> bool {
        self.subscribe.iter().any(|one| one.stream.is_none())
    }

    /// Whether nothing is granted.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// One subject a messages workload handles; more than a subject makes it a JetStream consumer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Subscription {
    /// The subject, wildcards allowed.
    pub subject: String,
    /// The stream to consume.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stream: Option<String>,
    /// The durable consumer's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub durable: Option<String>,
    /// Unacknowledged at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_in_flight: Option<u32>,
    /// Deliveries of one message.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempts: Option<u32>,
    /// Where it goes after the last attempt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dead_letter: Option<String>,
}

/// A keyvalue or blobstore binding.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StoreBinding {
    /// `jetstream`, `memory`, `redis`, `disk`, `s3`.
    pub backend: String,
    /// Backend settings: `bucket`, `container`, ...
    #[serde(flatten)]
    pub settings: BTreeMap<String, String>,
}

/// A volume binding.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Volume {
    /// Where the guest sees it.
    pub path: String,
    /// At most so large.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<ByteSize>,
    /// `ro` or `rw`.
    pub mode: String,
    /// `wait` or `new`.
    pub on_host_loss: String,
}

/// Sockets by allow-list.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Sockets {
    /// `address:port` it may reach.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub connect: Vec<String>,
    /// Ports it may listen on.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub listen: Vec<u16>,
}
