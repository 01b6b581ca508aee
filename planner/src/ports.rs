//! Ports of hosts: two replicas that listen on the same one cannot be on one host.
//!
//! Owns who holds which port. What a workload listens on is in its spec (`bindings.sockets.listen`);
//! what a host listens on itself, in what it says of itself.
//!
//! Rule: a port is taken by whatever a host's set names, also while that is to be stopped; by what has
//! left the set and has not ended; by what this plan starts there; and by the host's own listeners. It
//! is never taken from another, whatever the priorities: it would be free only once that has ended, in
//! a later plan.
//!
//! No counter is kept but which workloads listen on a port at all: they are few, and what they hold is
//! read from the sets.
//!
//! Known limits: what ends of a workload that was removed holds its port unseen, and hosts of one
//! machine (`up --hosts N`) share its ports unseen. Who starts there meanwhile fails, and starts again
//! by its restart policy.

use std::collections::{BTreeMap, BTreeSet};

use wasmorch_api::{HostId, HostInfo, PlacementNumber, Revision, WorkloadKey, WorkloadSpec};

use crate::cluster::{Cluster, Host, Workload};
use crate::place::{Effort, Removed};
use crate::planted::{self, Bug};

/// The ports that a replica listens on.
pub(crate) fn of(spec: &WorkloadSpec) -> &[u16] {
    let sockets = spec.bindings.sockets.as_ref();
    sockets.map_or(&[], |sockets| &sockets.listen)
}

/// Which workloads listen on a port, at any of their revisions.
#[derive(Debug, Clone, Default)]
pub(crate) struct Listeners {
    by_port: BTreeMap<u16, BTreeSet<WorkloadKey>>,
    /// In an excerpt of the state: what the others hold.
    others: BTreeMap<(u16, HostId), WorkloadKey>,
}

impl Listeners {
    pub(crate) fn note(&mut self, revision: &Revision) {
        for port in of(&revision.spec) {
            let keys = self.by_port.entry(*port).or_default();
            keys.insert(revision.key());
        }
    }

    pub(crate) fn forget(&mut self, key: &WorkloadKey) {
        self.by_port.retain(|_, keys| {
            keys.remove(key);
            !keys.is_empty()
        });
    }
}

/// What one plan has decided about ports, beyond what the sets say.
#[derive(Debug, Clone, Default)]
pub(crate) struct Claims(BTreeMap<HostId, BTreeMap<u16, Option<WorkloadKey>>>);

impl Claims {
    /// It starts there.
    pub(crate) fn take(&mut self, host: &HostId, ports: &[u16], key: &WorkloadKey) {
        for port in ports {
            let here = self.0.entry(host.clone()).or_default();
            here.insert(*port, Some(key.clone()));
        }
    }

    /// What held them there has ended for good.
    pub(crate) fn give_back(&mut self, host: &HostId, ports: &[u16]) {
        for port in ports {
            self.0.entry(host.clone()).or_default().insert(*port, None);
        }
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }
}

/// From where ports are looked at: with a plan's decisions so far, and without one placement.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct View<'a> {
    pub(crate) claims: Option<&'a Claims>,
    pub(crate) without: Option<(&'a WorkloadKey, PlacementNumber)>,
}

/// Who has a port.
enum Holder<'a> {
    Host,
    Workload(&'a WorkloadKey),
}

/// Whether all of these are free on a host.
pub(crate) fn free(cluster: &Cluster, view: View<'_>, id: &HostId, ports: &[u16]) -> bool {
    if ports.is_empty() || planted::is(Bug::PortsIgnored) {
        return true;
    }
    let Some(host) = cluster.hosts.get(id) else {
        return false;
    };
    let mut ports = ports.iter();
    ports.all(|port| holder(cluster, view, id, host, *port).is_none())
}

/// What a host is refused for, port by port.
pub(crate) fn against<'a>(
    cluster: &'a Cluster,
    view: View<'a>,
    (id, host): (&'a HostId, &'a Host),
    spec: &'a WorkloadSpec,
) -> impl Iterator<Item = Removed> + 'a {
    let name = &host.info().name;
    of(spec).iter().filter_map(move |port| {
        let who = match holder(cluster, view, id, host, *port)? {
            Holder::Host => "the host itself".to_owned(),
            Holder::Workload(key) => key.to_string(),
        };
        Some(Removed {
            filter: format!("port {port} taken"),
            lacking: None,
            fix: format!(
                "port {port} is taken on {name} by {who}: add a host, or listen on another port"
            ),
            effort: (Effort::Spec, 0),
        })
    })
}

fn holder<'a>(
    cluster: &'a Cluster,
    view: View<'a>,
    id: &HostId,
    host: &Host,
    port: u16,
) -> Option<Holder<'a>> {
    let claims = view.claims.and_then(|claims| claims.0.get(id)?.get(&port));
    match claims {
        Some(Some(key)) => return Some(Holder::Workload(key)),
        Some(None) => return None,
        None => {}
    }
    if own(host.info()).any(|own| own == port) {
        return Some(Holder::Host);
    }
    let listeners = &cluster.listeners;
    let mut keys = listeners.by_port.get(&port).into_iter().flatten();
    let here = keys.find(|key| {
        let workload = cluster.workloads.get(*key);
        workload.is_some_and(|one| has(one, (key, port), (id, host), view))
    });
    if let Some(key) = here {
        return Some(Holder::Workload(key));
    }
    let others = &listeners.others;
    if others.is_empty() {
        return None;
    }
    others.get(&(port, id.clone())).map(Holder::Workload)
}

/// Whether a workload has the port there: by the set, or since it has not ended yet.
fn has(
    workload: &Workload,
    (key, port): (&WorkloadKey, u16),
    (id, host): (&HostId, &Host),
    view: View<'_>,
) -> bool {
    let listens = |number| {
        let revision = workload.revisions.get(&number);
        revision.is_some_and(|revision| of(&revision.spec).contains(&port))
    };
    let left_out = |number| view.without == Some((key, number));
    let placed = host.groups_of(key).iter().any(|group| {
        let mut slots = group.slots.iter();
        listens(group.revision) && slots.any(|slot| !left_out(slot.placement))
    });
    let ending = || {
        let reports = workload.leaving.iter();
        reports
            .filter_map(|number| workload.reports.get(number))
            .any(|known| {
                known.host == *id && !known.status.state.ended() && listens(known.status.revision)
            })
    };
    placed || ending()
}

/// What the host listens on itself.
fn own(info: &HostInfo) -> impl Iterator<Item = u16> + '_ {
    let addresses = [
        Some(info.http.as_str()),
        Some(&info.admin),
        info.peer.as_deref(),
    ];
    let ports = addresses.into_iter().flatten();
    ports.filter_map(|address| address.rsplit_once(':')?.1.parse().ok())
}

impl Cluster {
    /// For an excerpt: which ports workloads other than these hold.
    pub(crate) fn listeners_without(&self, keys: &[WorkloadKey]) -> Listeners {
        let mut out = Listeners::default();
        for (port, all) in &self.listeners.by_port {
            let (mine, others): (Vec<_>, Vec<_>) = all.iter().partition(|key| keys.contains(key));
            if !mine.is_empty() {
                let mine = mine.into_iter().cloned();
                out.by_port.insert(*port, mine.collect());
            }
            for key in others {
                let Some(workload) = self.workloads.get(key) else {
                    continue;
                };
                let reports = { workload.leaving.iter() }
                    .filter_map(|number| workload.reports.get(number))
                    .map(|known| &known.host);
                let placed = workload.placements.values().map(|placed| &placed.host);
                let hosts: BTreeSet<&HostId> = placed.chain(reports).collect();
                for id in hosts {
                    let host = self.hosts.get(id);
                    let there = (key, *port);
                    if host.is_some_and(|host| has(workload, there, (id, host), View::default())) {
                        out.others.insert((*port, id.clone()), key.clone());
                    }
                }
            }
        }
        out
    }
}
