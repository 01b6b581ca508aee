//! The scores: how good a host is for one replica more, part by part.
//!
//! Owns what each part counts for, as the rule says it. Whether the host may have it at all is `filters`'.

use std::collections::{BTreeMap, BTreeSet};

use wasmorch_api::{HostId, WorkloadSpec};

use super::labels::passes;
use super::{CROWD, HOST, Scored, Standpoint, Under, label_of};
use crate::booked::{Booked, FULL};
use crate::cached;
use crate::cluster::Host;
use crate::pool::Class;

/// The weights that match in a class, but for those on the name.
pub(crate) fn class_affinity(spec: &WorkloadSpec, class: &Class) -> i64 {
    let wishes = spec.affinity.iter().filter(|wish| wish.label != HOST);
    wishes
        .filter(|wish| {
            passes(
                &wish.test,
                class.labels.get(&wish.label).map(String::as_str),
            )
        })
        .map(|wish| i64::from(wish.weight))
        .sum()
}

/// The weights that match a name.
pub(crate) fn name_affinity(spec: &WorkloadSpec, name: &str) -> i64 {
    let wishes = spec.affinity.iter().filter(|wish| wish.label == HOST);
    wishes
        .filter(|wish| passes(&wish.test, Some(name)))
        .map(|wish| i64::from(wish.weight))
        .sum()
}

pub(super) fn score(
    on: &Standpoint<'_>,
    under: &Under<'_>,
    id: &HostId,
    host: &Host,
    failed: &[HostId],
) -> Scored {
    let mut parts = BTreeMap::new();
    let goes = on.goes.and_then(|id| Some((id, on.cluster.hosts.get(id)?)));
    let crowd: i64 = on
        .spec
        .spread
        .iter()
        .collect::<BTreeSet<_>>()
        .into_iter()
        .map(|label| {
            let (count, goes) = if label == HOST {
                ((on.count)(id, host), on.goes == Some(id))
            } else {
                let value = label_of(on.cluster, host, label);
                let same =
                    |(_, other)| value.is_some() && label_of(on.cluster, other, label) == value;
                (
                    value.map_or(0, |value| under.count(label, value)),
                    goes.is_some_and(same),
                )
            };
            i64::from(count.saturating_sub(u32::from(goes)))
        })
        .sum();
    parts.insert("spread", -CROWD * crowd);
    let class = on.cluster.classes.get(host.class);
    let affinity = class.map_or(0, |class| class_affinity(on.spec, class))
        + name_affinity(on.spec, host.info().name.as_str());
    if affinity != 0 {
        parts.insert("affinity", affinity);
    }
    let here = || (on.count)(id, host) > 0;
    if cached::lies_on(on.cluster, (on.key, on.spec), host.number) && !here() {
        parts.insert("cached", cached::CACHED);
    }
    let load = (on.used)(id, host).load(Booked::of_host(host));
    let pack = on.spec.spread.is_empty();
    if pack {
        parts.insert("packed", i64::from(load / (FULL / 10)));
    } else {
        parts.insert("free", i64::from((FULL - load) / (FULL / 10)));
    }
    if failed.contains(id) {
        parts.insert("failed", FAILED);
    }
    Scored {
        host: id.clone(),
        name: host.info().name.clone(),
        total: parts.values().sum(),
        load: if pack { -(load as i32) } else { load as i32 },
        parts,
    }
}

/// A host where the slot failed is taken only when no other has room: shown as more than a crowd weighs.
const FAILED: i64 = -1_000_000;
