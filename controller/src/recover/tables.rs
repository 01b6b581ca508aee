//! What gateways are to route by in the rebuilt state.
//!
//! Gateways read every table anew when the store is whole again. A table that is missing then would
//! cost requests, so all of them are stored with the rest: made by the planner from the rebuilt state
//! and what hosts say of their replicas.

use wasmorch_api::PlacementSet;
use wasmorch_planner::{Cluster, Observation, Stored, Write};

use super::{Rebuilder, Told};

/// Routes and endpoints of everything.
pub(super) fn tables(
    writes: &[Write],
    sets: &[PlacementSet],
    hosts: &[Told],
    by: &Rebuilder,
) -> Vec<Write> {
    let mut cluster = Cluster::new(by.cluster.clone(), by.term, by.leader.clone(), by.now);
    for write in writes {
        let stored = match write {
            Write::Record(record) => Stored::Record(record.clone()),
            Write::Revision(revision) => Stored::Revision(revision.clone()),
            Write::Host(host) => Stored::Host(host.clone()),
            _ => continue,
        };
        cluster.load(stored, 1);
    }
    for set in sets {
        cluster.load(Stored::Placements(set.clone()), 1);
    }
    for told in hosts {
        cluster.observe(Observation::Heartbeat(Box::new(told.beat.clone())), by.now);
        cluster.observe(Observation::Status(told.status.clone()), by.now);
    }
    // What it would start and stop is for a leader to decide, on what it hears itself.
    let plan = cluster.plan(by.now);
    let routes = plan.routes.into_iter().map(Write::Routes);
    routes
        .chain(plan.endpoints.into_iter().map(Write::Endpoints))
        .collect()
}
