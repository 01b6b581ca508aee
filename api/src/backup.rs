//! A backup: what the store holds and hosts do not.
//!
//! Owns the file's form. It holds records, revisions, counters of what was removed, hosts and
//! namespaces as they were stored; not placements and tables (hosts hold those), nor artifacts (they
//! are named by their digests, and hosts hold those that they run).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::ids::{ClusterId, Term};
use crate::record::Record;
use crate::time::Timestamp;

/// Says what the file is, and which version of it.
pub const FORMAT: &str = "wasmorch-backup-1";

/// The file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Backup {
    /// [`FORMAT`].
    pub format: String,
    /// The cluster.
    pub cluster: ClusterId,
    /// The term in force.
    pub term: Term,
    /// When it was made, by the clock of whoever made it.
    pub at: Timestamp,
    /// Values by their store keys.
    pub keys: BTreeMap<String, Value>,
}

/// Whether a backup holds this key.
pub fn holds(key: &str) -> bool {
    ["workload.", "revision.", "removed.", "host.", "namespace."]
        .iter()
        .any(|family| key.starts_with(family))
}

impl Backup {
    /// This one, and what only `other` has of the same cluster. Of two records the one changed last.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        if other.cluster != self.cluster {
            return self;
        }
        self.term = self.term.max(other.term);
        for (key, value) in other.keys {
            let updated = |value: &Value| {
                let record = serde_json::from_value::<Record>(value.clone()).ok();
                record.map(|record| record.updated)
            };
            let known = self.keys.get(&key);
            if known.is_none_or(|known| updated(known) < updated(&value)) {
                self.keys.insert(key, value);
            }
        }
        self
    }

    /// Reads a file.
    ///
    /// # Errors
    ///
    /// Says what is wrong with it.
    pub fn read(bytes: &[u8]) -> Result<Self, String> {
        let backup: Self = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        if backup.format != FORMAT {
            let format: String = backup.format.chars().take(40).collect();
            return Err(format!(
                "its format is `{format}`, and this version reads `{FORMAT}`"
            ));
        }
        match backup.keys.keys().find(|key| !holds(key)) {
            Some(key) => Err(format!("a backup holds no `{key}`")),
            None => Ok(backup),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_backup_is_read() {
        let good = r#"{"format":"wasmorch-backup-1","cluster":"c1","term":3,"at":"2023-11-14T22:13:20Z",
            "keys":{"workload.shop.web":{}},"later":1}"#;
        assert_eq!(Backup::read(good.as_bytes()).unwrap().term, Term(3));
        let newer = good.replace("backup-1", "backup-2");
        assert!(
            Backup::read(newer.as_bytes())
                .unwrap_err()
                .contains("backup-2")
        );
        let foreign = good.replace("workload.shop.web", "pub.placements.h1");
        assert!(
            Backup::read(foreign.as_bytes())
                .unwrap_err()
                .contains("pub.placements.h1")
        );
        assert!(Backup::read(b"{}").is_err());
    }
}
