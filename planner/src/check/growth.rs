//! What only grows: terms, sequences, and the numbers that a record gives away.
//!
//! The store's fence keeps a deposed leader from writing; this keeps one that leads from writing over what
//! it cannot know: a set of a later leader, or one that a host holds and this state does not.

use std::collections::BTreeSet;

use wasmorch_api::HostId;

use super::BrokenRule;
use crate::cluster::Cluster;
use crate::plan::Plan;

/// What is stored where the plan writes is not of a later term, the hosts it touches hold nothing later
/// than what was stored for them, and no number that a record has given away is given away again.
pub(super) fn only_grow<'a>(
    cluster: &Cluster,
    plan: &'a Plan,
    starts: impl Iterator<Item = &'a HostId>,
    broken: &mut Vec<BrokenRule>,
) {
    let mut touched: BTreeSet<&HostId> = starts.collect();
    touched.extend(plan.stop.iter().map(|stop| &stop.host));
    touched.extend(plan.shift.iter().map(|shift| &shift.host));
    touched.extend(&plan.stale_sets);
    for id in touched {
        let Some(host) = cluster.hosts().get(id) else {
            continue;
        };
        let Some(set) = &host.set else { continue };
        if set.term > cluster.term {
            broken.push(BrokenRule::LaterTerm {
                host: id.clone(),
                stored: set.term,
                ours: cluster.term,
            });
        }
        if host.applied > host.set_sequence {
            broken.push(BrokenRule::HoldsLater {
                host: id.clone(),
                applied: host.applied,
                stored: host.set_sequence,
            });
        }
    }
    for after in &plan.update {
        let key = after.key();
        let Some(workload) = cluster.workload(&key) else {
            continue;
        };
        let before = &workload.record;
        let counters = [
            (
                "next placement",
                before.next_placement.0,
                after.next_placement.0,
            ),
            ("newest revision", before.newest.0, after.newest.0),
        ];
        for (what, from, to) in counters.into_iter().filter(|(_, from, to)| to < from) {
            broken.push(BrokenRule::Falls {
                workload: key.clone(),
                what,
                from,
                to,
            });
        }
    }
}
