//! Placement sets: all that one host shall run, complete every time.
//!
//! Owns the shape of `pub.placements.<host>`. A set refers to revisions by number (the host fetches
//! each once) so that its size grows with slots, not with specs.
//!
//! A missing or deleted set means hold; only an explicit empty set stops.

use std::fmt;
use std::sync::Arc;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::ids::{
    ClusterId, HostId, LeaderId, Name, PlacementNumber, RevisionNumber, Slot, Term, WorkloadKey,
};
use crate::time::Timestamp;

/// All of a host's placements.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlacementSet {
    /// The cluster it belongs to; a host of another cluster ignores it.
    pub cluster: ClusterId,
    /// The writer's term; a host obeys the highest and refuses a lower one.
    pub term: Term,
    /// The writer; a host refuses an equal term from another leader.
    pub leader: LeaderId,
    /// The host it is for.
    pub host: HostId,
    /// Slots by revision.
    pub groups: Vec<PlacementGroup>,
    /// Data of removed workloads that go from this host (`rm --data`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub removals: Vec<Removal>,
}

/// What a removed workload kept on a host, which removes it once: it remembers how far it has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removal {
    /// Which.
    #[serde(flatten)]
    pub id: RemovalId,
    /// Its containers on disk, as [`crate::stores::on_disk`] names them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub containers: Vec<String>,
}

/// What tells one removal from another.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RemovalId {
    /// Whose data.
    pub workload: WorkloadKey,
    /// What placements below this number have left. Later ones are a new workload's of that name, and
    /// start after it is gone.
    pub before: PlacementNumber,
    /// When the workload was removed. Numbers alone begin anew in a store that was lost.
    pub at: Timestamp,
}

/// The slots of one revision on a host.
///
/// Encoded as `{"workload":"default/web","revision":3,"slots":[[0,17]]}`: a set is one message, and a host
/// holds as many workloads as fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlacementGroup {
    /// The namespace.
    pub namespace: Name,
    /// The workload.
    pub workload: Name,
    /// The revision they run.
    pub revision: RevisionNumber,
    /// The slots.
    pub slots: Vec<PlacedSlot>,
}

impl PlacementGroup {
    /// The workload's full name.
    pub fn key(&self) -> WorkloadKey {
        WorkloadKey::new(self.namespace.clone(), self.workload.clone())
    }
}

#[derive(Serialize)]
struct EncodedGroup<'a> {
    /// `namespace/name`.
    workload: fmt::Arguments<'a>,
    revision: RevisionNumber,
    slots: &'a [PlacedSlot],
}

/// Also as the version before wrote it: the workload's name alone, its namespace beside it.
#[derive(Deserialize)]
struct DecodedGroup {
    namespace: Option<Name>,
    workload: String,
    revision: RevisionNumber,
    slots: Vec<PlacedSlot>,
}

impl Serialize for PlacementGroup {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        EncodedGroup {
            workload: format_args!("{}/{}", self.namespace, self.workload),
            revision: self.revision,
            slots: &self.slots,
        }
        .serialize(to)
    }
}

impl<'de> Deserialize<'de> for PlacementGroup {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let decoded = DecodedGroup::deserialize(from)?;
        let name = |text: &str| text.parse::<Name>().map_err(D::Error::custom);
        let (namespace, workload) = match decoded.namespace {
            Some(namespace) => (namespace, name(&decoded.workload)?),
            None => {
                let names = decoded.workload.split_once('/');
                let (namespace, workload) =
                    names.ok_or_else(|| D::Error::custom("a workload is `namespace/name`"))?;
                (name(namespace)?, name(workload)?)
            }
        };
        Ok(Self {
            namespace,
            workload,
            revision: decoded.revision,
            slots: decoded.slots,
        })
    }
}

/// One placement. Encoded as `[slot, placement]`, or as an object when there is more to say.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(from = "EncodedSlot")]
pub struct PlacedSlot {
    /// The seat.
    pub slot: Slot,
    /// The leader's number for this placement.
    pub placement: PlacementNumber,
    /// It is told to rest: to be prepared, and started only when a request wakes it.
    pub standby: bool,
    /// Arguments in place of the spec's (a job's run). Shared: a leader holds millions of slots, nearly
    /// all without.
    pub args: Option<Arc<Vec<String>>>,
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum EncodedSlot {
    Plain(Slot, PlacementNumber),
    Whole {
        slot: Slot,
        placement: PlacementNumber,
        #[serde(default, skip_serializing_if = "crate::is_default")]
        standby: bool,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        args: Option<Arc<Vec<String>>>,
    },
}

impl From<EncodedSlot> for PlacedSlot {
    fn from(encoded: EncodedSlot) -> Self {
        let (slot, placement, standby, args) = match encoded {
            EncodedSlot::Plain(slot, placement) => (slot, placement, false, None),
            EncodedSlot::Whole {
                slot,
                placement,
                standby,
                args,
            } => (slot, placement, standby, args),
        };
        Self {
            slot,
            placement,
            standby,
            args,
        }
    }
}

impl Serialize for PlacedSlot {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let (slot, placement) = (self.slot, self.placement);
        let encoded = match (self.standby, &self.args) {
            (false, None) => EncodedSlot::Plain(slot, placement),
            (standby, args) => EncodedSlot::Whole {
                slot,
                placement,
                standby,
                args: args.clone(),
            },
        };
        encoded.serialize(to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_there_is_to_say_is_said_short() {
        let slot = |slot, standby| PlacedSlot {
            slot: Slot(slot),
            placement: PlacementNumber(17),
            standby,
            args: None,
        };
        let job = PlacedSlot {
            args: Some(Arc::new(vec!["--all".into()])),
            ..slot(2, false)
        };
        let group = PlacementGroup {
            namespace: Name::default(),
            workload: "web".parse().unwrap(),
            revision: RevisionNumber(3),
            slots: vec![slot(0, false), slot(1, true), job],
        };
        let text = serde_json::to_string(&group).unwrap();
        let expected = concat!(
            r#"{"workload":"default/web","revision":3,"slots":[[0,17],"#,
            r#"{"slot":1,"placement":17,"standby":true},"#,
            r#"{"slot":2,"placement":17,"args":["--all"]}]}"#
        );
        assert_eq!(text, expected);
        assert_eq!(
            serde_json::from_str::<PlacementGroup>(&text).unwrap(),
            group
        );
        let before = r#"{"namespace":"default","workload":"web","revision":3,"slots":[{"slot":0,"placement":17}]}"#;
        let decoded: PlacementGroup = serde_json::from_str(before).unwrap();
        assert_eq!(
            (decoded.key(), &decoded.slots[..]),
            (group.key(), &group.slots[..1])
        );
        let nameless = text.replace("default/", "");
        assert!(serde_json::from_str::<PlacementGroup>(&nameless).is_err());
    }
}
