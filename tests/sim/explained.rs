//! What does not run is explained, and what is said of it is so; and what runs does not run from before a
//! restart.
//!
//! A second reading of `explain`: by sets and records as stored, by what hosts are, and by nothing of how
//! places are chosen.

use wasmorch_api::messages::Unplaced;
use wasmorch_api::{Record, Slot, WorkloadKey, WorkloadSpec};
use wasmorch_planner::{Host, queries};

use super::law::{Broken, Law};
use super::rules;
use super::world::World;

impl World {
    /// Slots without any placement: no host has a place for them that they may have, and what is said of
    /// it is so.
    pub(crate) fn slots_missing(&self, key: &WorkloadKey, record: &Record) -> Option<Broken> {
        let placed = self.slots_placed(key);
        let wanted = u64::from(record.wanted());
        let missing = (1..=wanted).filter(|slot| !placed.contains(&Slot(*slot)));
        let missing = missing.count();
        if missing == 0 {
            return None;
        }
        if !self.quota_is_used_up()
            && let Some(at) = self.who_could_take(key)
        {
            return Law::Running.by(format!(
                "{missing} slots of {key} wait, and host{at} has a place for one"
            ));
        }
        let leading = self.controllers.iter().find_map(|one| one.leads())?;
        let unplaced = queries::status(&leading.cluster, key, false)?.unplaced;
        let Some(unplaced) = unplaced else {
            return Law::Explained.by(format!(
                "{missing} slots of {key} wait, and nobody says why"
            ));
        };
        Law::Explained.by(self.untrue(key, record, &unplaced))
    }

    /// As many slots as the namespace may have, or more since it may have fewer.
    pub(crate) fn quota_is_used_up(&self) -> bool {
        let most = self.laws.quota;
        most.is_some_and(|most| self.laws.slots_held() >= most)
    }

    /// What is said of more hosts than it is true of.
    fn untrue(&self, key: &WorkloadKey, record: &Record, unplaced: &Unplaced) -> Option<String> {
        let leading = self.controllers.iter().find_map(|one| one.leads())?;
        // It may be of what runs, or of what is held or on trial.
        let specs = [record.revision, record.asked()];
        let specs = specs.map(|number| self.laws.spec_of(key, number));
        let hosts = leading.cluster.hosts();
        unplaced.filtered.iter().find_map(|(filter, said)| {
            let so = specs.iter().flatten().map(|spec| {
                let so = |host: &&Host| self.is_so(filter, host, key, spec);
                hosts.values().filter(so).count()
            });
            let so = so.max().unwrap_or(0);
            (so < *said as usize).then(|| {
                format!("of {key} it is said that {said} hosts: {filter}, which is so of {so}")
            })
        })
    }

    fn is_so(&self, filter: &str, host: &Host, key: &WorkloadKey, spec: &WorkloadSpec) -> bool {
        let info = host.info();
        let id = &host.record.host;
        let known = self.laws.host(id);
        let room = self.room(id, spec);
        if let Some(room) = room.iter().find(|room| room.dimension == filter) {
            return room.lacks();
        }
        let (word, rest) = filter.split_once(' ').unwrap_or((filter, ""));
        match word {
            "dead" | "left" => {
                let actors = self.actors_of(id);
                actors.iter().all(|at| self.hosts[*at].up.is_none())
            }
            "cordoned" => known.is_some_and(|known| known.cordoned),
            "draining" => known.is_some_and(|known| known.drain.is_some()),
            "without" => !info.features.iter().any(|one| one == rest),
            "taint" => {
                rules::taint(info, spec).is_some() && info.taints.iter().any(|one| one == rest)
            }
            "constraint" => !rules::has_labels(info, spec),
            "distinct" => !rules::has_labels(info, spec) || self.crowd(info, key, spec).is_some(),
            "has" => self.slots_on(id, key) > 0,
            "port" => self.listens_there(id, spec),
            "quota" => self.quota_is_used_up(),
            // Of what must not run twice, and of data, other laws see to it.
            "volumes" => !spec.bindings.volume.is_empty(),
            "may" => spec.runs_once(),
            _ => false,
        }
    }

    fn slots_on(&self, id: &wasmorch_api::HostId, key: &WorkloadKey) -> usize {
        let groups = self.laws.sets().get(id).into_iter();
        let groups = groups.flat_map(|set| &set.groups);
        let groups = groups.filter(|group| group.key() == *key);
        groups.map(|group| group.slots.len()).sum()
    }

    /// A replica that ran already when a restart was asked for, which has been acknowledged. On a host that
    /// takes nothing new it stays where there is one on every host.
    pub(crate) fn started_before_a_restart(&self, key: &WorkloadKey) -> Option<String> {
        let last = self.user.oracle.restarted_after(key)?;
        let stays = self.laws.is_per_host(key);
        let hosts = self.hosts.iter();
        let hosts = hosts.filter(|host| !stays || self.takes_new(&host.id));
        let ups = hosts.filter_map(|host| host.up.as_ref());
        let mut all = ups.flat_map(|up| up.runner.keys());
        let old = all.find(|one| one.workload == *key && one.id.placement <= last)?;
        Some(format!(
            "{old} runs, and {key} was restarted after placement {last}"
        ))
    }
}
