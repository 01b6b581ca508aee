//! How to reach the cluster's NATS server, as plain data: connecting is each shell's own link.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Where the server is and as whom to come.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NatsOptions {
    /// One URL or several with commas: `nats://127.0.0.1:4222`.
    pub url: String,
    /// A credentials file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub creds: Option<PathBuf>,
    /// The JetStream domain, behind a leaf node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub js_domain: Option<String>,
}
