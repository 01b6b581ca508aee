//! What replicas claim of their hosts beside room: ports, and features, labels and taints that some hosts
//! lack or have.
//!
//! Owns the laws of it, by the sets as stored; what runners make of two that listen on one port; and
//! when a claim explains that something is not placed.

use wasmorch_api::{HostId, PlacementNumber, WorkloadKey, WorkloadSpec, features};
use wasmorch_host::runner::protocol::ReplicaKey;
use wasmorch_planner::Plan;

use super::host::Up;
use super::rules;
use super::runner::There;
use super::world::World;

pub(crate) fn ports(spec: &WorkloadSpec) -> &[u16] {
    let sockets = spec.bindings.sockets.as_ref();
    sockets.map_or(&[], |sockets| &sockets.listen)
}

/// Whether another replica of the host listens where this one shall.
pub(crate) fn address_in_use(up: &Up, replica: &ReplicaKey) -> bool {
    let Some(mine) = up.runner.get(replica) else {
        return false;
    };
    let mut others = up.runner.iter().filter(|(other, _)| *other != replica);
    others.any(|(_, run)| {
        matches!(run.there, There::Running | There::Ending)
            && run.ports.iter().any(|port| mine.ports.contains(port))
    })
}

impl World {
    /// What a plan starts beside another that listens on the same port, or where it cannot run.
    pub(crate) fn claim_not_met(&self, plan: &Plan) -> Option<String> {
        for (at, start) in plan.start.iter().enumerate() {
            let spec = self.laws.spec_of(&start.key, start.revision)?;
            let listens = |key: &WorkloadKey, revision| {
                let other = self.laws.spec_of(key, revision);
                let mut mine = ports(spec).iter();
                other.is_some_and(|other| mine.any(|port| ports(other).contains(port)))
            };
            let stopped = |key: &WorkloadKey, number: PlacementNumber| {
                let mut stops = plan.stop.iter();
                stops.any(|stop| (&stop.key, stop.placement) == (key, number))
            };
            let set = self.laws.sets().get(&start.host);
            let mut groups = set.into_iter().flat_map(|set| &set.groups);
            let there = groups.any(|group| {
                let mut slots = group.slots.iter();
                listens(&group.key(), group.revision)
                    && slots.any(|slot| !stopped(&group.key(), slot.placement))
            });
            let mut others = plan.start[..at].iter();
            let besides =
                others.any(|other| other.host == start.host && listens(&other.key, other.revision));
            if (there || besides) && !self.laws.regressed {
                let (key, host) = (&start.key, &start.host);
                return Some(format!("{key} starts on {host}, where its port is taken"));
            }
            if !self.suits(&start.host, spec) && !self.laws.regressed {
                let (key, host) = (&start.key, &start.host);
                return Some(format!("{key} starts on {host}, which cannot run it"));
            }
        }
        None
    }

    /// Whether a host is one of those that may run it.
    pub(crate) fn suits(&self, host: &HostId, spec: &WorkloadSpec) -> bool {
        let needs = features::of_spec(spec);
        let mut hosts = self.hosts.iter().filter(|one| one.id == *host);
        hosts.all(|host| {
            needs.iter().all(|one| host.info.features.contains(one))
                && rules::taint(&host.info, spec).is_none()
                && rules::has_labels(&host.info, spec)
        })
    }

    /// Whether a host could run it at all.
    pub(crate) fn can_run(&self, at: usize, key: &WorkloadKey) -> bool {
        let spec = self.laws.spec(key);
        spec.is_none_or(|spec| self.suits(&self.hosts[at].id, spec))
    }

    /// Whether ports may keep it from a place: it listens, and with all others that ever did there are
    /// more than hosts.
    pub(crate) fn ports_are_short(&self, key: &WorkloadKey, open: u64) -> bool {
        if self
            .laws
            .spec(key)
            .is_none_or(|spec| ports(spec).is_empty())
        {
            return false;
        }
        let records = self.laws.records.iter();
        let listening = records.filter(|(key, _)| self.laws.has_listened(key));
        // A successor or two need hosts beside those that are there.
        let wanted = listening.map(|(key, record)| match self.laws.is_per_host(key) {
            true => open,
            // And its canaries, two at most.
            false => u64::from(record.wanted()) + 4,
        });
        wanted.sum::<u64>() > open
    }
}
