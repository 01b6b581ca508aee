//! What is booked of a host, and what there is: the dimensions of capacity, that of its placement set among them.

use wasmorch_api::{WorkloadKey, WorkloadSpec};

use crate::cluster::Host;

/// A placement set travels in one message, by default of at most 1 MiB. The rest is headroom for
/// its head and for what the estimate of a slot leaves out.
pub(crate) const SET_BYTES_MAX: u64 = (1 << 20) - (128 << 10);

/// Booked amounts, dimension by dimension.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Booked {
    pub(crate) memory_bytes: u64,
    pub(crate) cpu_millis: u64,
    pub(crate) replicas: u64,
    /// Its share of the encoded set.
    pub(crate) set_bytes: u64,
}

/// The load of a full host.
pub(crate) const FULL: u32 = 1_000_000;

/// A group without its names and slots, its revision of 8 digits.
const GROUP_BYTES: u64 = 49;
/// A slot of 6 digits, its placement's number of 12.
const SLOT_BYTES: u64 = 22;
/// What a slot that may be told to rest has besides, or one with arguments.
const WHOLE_BYTES: u64 = 40;

impl Booked {
    /// What one replica books.
    pub(crate) fn of(key: &WorkloadKey, spec: &WorkloadSpec, args: Option<&Vec<String>>) -> Self {
        let names = key.namespace.as_str().len() + key.name.as_str().len();
        let args = args.map_or(0, |args| {
            serde_json::to_vec(args).map_or(0, |json| json.len() as u64 + 8)
        });
        let whole = match args > 0 || spec.standbys() > 0 {
            true => WHOLE_BYTES,
            false => 0,
        };
        let reserve = &spec.resources.reserve;
        Self {
            memory_bytes: reserve.memory.0,
            cpu_millis: reserve.cpu.0,
            replicas: 1,
            set_bytes: GROUP_BYTES + names as u64 + SLOT_BYTES + whole + args,
        }
    }

    /// What a host has.
    pub(crate) fn of_host(host: &Host) -> Self {
        let has = host.capacity();
        Self {
            memory_bytes: has.memory_bytes,
            cpu_millis: has.cpu_millis,
            replicas: has.replicas,
            set_bytes: SET_BYTES_MAX,
        }
    }

    pub(crate) fn plus(self, more: Self) -> Self {
        self.each(more, u64::saturating_add)
    }

    pub(crate) fn minus(self, less: Self) -> Self {
        self.each(less, u64::saturating_sub)
    }

    /// The larger of both in each dimension.
    pub(crate) fn max(self, other: Self) -> Self {
        self.each(other, u64::max)
    }

    fn each(self, other: Self, with: fn(u64, u64) -> u64) -> Self {
        Self {
            memory_bytes: with(self.memory_bytes, other.memory_bytes),
            cpu_millis: with(self.cpu_millis, other.cpu_millis),
            replicas: with(self.replicas, other.replicas),
            set_bytes: with(self.set_bytes, other.set_bytes),
        }
    }

    /// By name: what is booked here, wanted, and had.
    pub(crate) fn dimensions(self, wants: Self, has: Self) -> [(&'static str, u64, u64, u64); 4] {
        [
            (
                "memory",
                self.memory_bytes,
                wants.memory_bytes,
                has.memory_bytes,
            ),
            ("cpu", self.cpu_millis, wants.cpu_millis, has.cpu_millis),
            ("replicas", self.replicas, wants.replicas, has.replicas),
            ("set size", self.set_bytes, wants.set_bytes, has.set_bytes),
        ]
    }

    /// Whether `wants` fits beside what is booked: a dimension that it does not ask for is not asked.
    pub(crate) fn fits(self, wants: Self, has: Self) -> bool {
        self.dimensions(wants, has)
            .iter()
            .all(|(_, used, wants, has)| *wants == 0 || used.saturating_add(*wants) <= *has)
    }

    /// What is lacking for `wants` beside what is booked.
    pub(crate) fn lacks(self, wants: Self, has: Self) -> Self {
        self.plus(wants).minus(has)
    }

    /// How much of what is lacking this would free, over all dimensions, in millionths.
    pub(crate) fn share_of(self, lacks: Self) -> u64 {
        let dimensions = self.dimensions(lacks, Self::default()).into_iter();
        let lacking = dimensions.filter(|(_, _, lacks, _)| *lacks > 0);
        let shares = lacking.map(|(_, freed, lacks, _)| {
            let share = u128::from(freed) * u128::from(FULL) / u128::from(lacks);
            share.min(u128::from(FULL)) as u64
        });
        shares.sum()
    }

    /// The fullest dimension's booked share in millionths. A host without cpu to book is not full.
    pub(crate) fn load(self, has: Self) -> u32 {
        let share = |used: u64, has: u64| match has {
            0 => FULL,
            has if used >= has => FULL,
            has => (u128::from(used) * u128::from(FULL) / u128::from(has)) as u32,
        };
        share(self.memory_bytes, has.memory_bytes)
            .max(share(self.cpu_millis, has.cpu_millis))
            .max(share(self.replicas, has.replicas))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use wasmorch_api::{PlacedSlot, PlacementGroup, PlacementNumber, RevisionNumber, Slot};

    use super::*;

    #[test]
    fn a_slot_takes_no_more_of_a_set_than_it_books() {
        let key = WorkloadKey::new("shop".parse().unwrap(), "orders-and-more".parse().unwrap());
        let plain = WorkloadSpec::default();
        let scale = r#"{"min": 0, "max": 3, "target": {"concurrency": 5}}"#;
        let to_zero = WorkloadSpec {
            scale: Some(serde_json::from_str(scale).unwrap()),
            ..WorkloadSpec::default()
        };
        assert!(to_zero.standbys() > 0, "it may be told to rest");
        let args = vec!["--month".to_owned(), "\"7\"".to_owned()];
        let cases = [(&plain, None), (&to_zero, None), (&plain, Some(args))];
        for (spec, args) in cases {
            let booked = Booked::of(&key, spec, args.as_ref());
            let group = PlacementGroup {
                namespace: key.namespace.clone(),
                workload: key.name.clone(),
                revision: RevisionNumber(12_345_678),
                slots: vec![PlacedSlot {
                    slot: Slot(123_456),
                    placement: PlacementNumber(123_456_789_012),
                    standby: spec.standbys() > 0,
                    args: args.map(Arc::new),
                }],
            };
            // And the comma after it.
            let encoded = serde_json::to_vec(&group).unwrap().len() as u64 + 1;
            assert!(encoded <= booked.set_bytes, "{encoded} of {booked:?}");
        }
    }
}
