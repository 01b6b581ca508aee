//! When the laws expect nothing to be placed, or nothing better than what is there.
//!
//! Owns the excuses: each is generous, since whoever takes one is not looked at.

use std::collections::BTreeMap;

use wasmorch_api::subjects::key;
use wasmorch_api::{HostId, Revision, RolloutState, WorkloadKey};

use super::world::{Fate, World};

impl World {
    /// Whether that a workload is well means that what is wanted of it runs, and no excuse was taken.
    pub(crate) fn is_judged(&self, key: &WorkloadKey) -> bool {
        let Some(record) = self.laws.record(key) else {
            return false;
        };
        let wanted = u64::from(record.wanted());
        let state = record.rollout.as_ref().map(|rollout| rollout.state);
        let per_host = self.laws.is_per_host(key);
        self.target_fate(key) == Some(Fate::Good)
            && wanted > 0
            && !record.kind.ends()
            && record.held().is_none()
            && state != Some(RolloutState::Paused)
            && self.awaits_a_person(record).is_none()
            && !self.waits_for_a_lost_host(key)
            && (per_host || self.slots_placed(key).len() as u64 >= wanted)
            && !self.is_short(key, if per_host { 0 } else { wanted })
    }

    /// Nothing is to be expected to have a place.
    pub(crate) fn cannot_be_placed(&self, key: &WorkloadKey, wanted: u64) -> bool {
        self.is_short(key, wanted) || self.rules_are_narrow(key)
    }

    /// Fewer hosts than its constraint asks for, or no host at all.
    fn is_short(&self, key: &WorkloadKey, wanted: u64) -> bool {
        let open = self
            .hosts
            .iter()
            .enumerate()
            .filter(|(at, host)| host.up.is_some() && self.can_run(*at, key))
            .filter(|(_, host)| self.takes_new(&host.id))
            .count() as u64;
        let spread = self
            .laws
            .record(key)
            .and_then(|record| {
                self.store
                    .bucket
                    .value(&key::revision(key, record.revision))
            })
            .and_then(|value| serde_json::from_slice::<Revision>(&value).ok())
            .is_some_and(|revision| !revision.spec.constraints.is_empty());
        // A successor needs a seat beside the one that it replaces.
        let seats = if spread {
            open * 2
        } else {
            open * self.weather.room
        };
        let total: u64 = self
            .laws
            .records
            .values()
            .map(|record| u64::from(record.wanted()) + 2)
            .sum();
        // What waits for its quota is not held against anyone.
        self.ports_are_short(key, open)
            || self.a_zone_is_short(key)
            || self.waits_at_home(key)
            || self.laws.quota.is_some()
            || wanted + 2 > seats
            || total > open * self.weather.room
    }

    /// It asks for room or for labels in a way that numbers of hosts alone do not tell, and no host has a
    /// place for one more.
    fn rules_are_narrow(&self, key: &WorkloadKey) -> bool {
        self.rules.are_there() && self.who_could_take(key).is_none()
    }

    /// A slot's volumes lie on a host that is there and takes nothing new: it waits for that one.
    pub(crate) fn waits_at_home(&self, key: &WorkloadKey) -> bool {
        let keeps = { self.target_spec(key) }.is_some_and(|spec| !spec.bindings.volume.is_empty());
        let homes = self.laws.record(key).map(|record| &record.homes);
        let mut homes = homes.into_iter().flatten().map(|(_, home)| home);
        keeps && homes.any(|home| !self.takes_new(home))
    }

    /// Nobody has told it to take nothing.
    pub(crate) fn takes_new(&self, host: &HostId) -> bool {
        let known = self.laws.host(host);
        known.is_none_or(|known| !known.cordoned && known.drain.is_none())
    }

    /// With `replace = false` what a host held that never comes back stays there.
    pub(crate) fn waits_for_a_lost_host(&self, key: &WorkloadKey) -> bool {
        let target = self.target_spec(key);
        let waits = target.is_some_and(|spec| !spec.disconnect.replace);
        let lost = |id: &HostId| {
            let actors = self.actors_of(id);
            actors.iter().all(|at| self.hosts[*at].up.is_none())
        };
        let sets = self.laws.sets().iter();
        let mut sets = sets.filter(|(id, _)| lost(id));
        // Whichever revision it is of: the wanted one, or the one that runs there.
        let mut awaited = |group: &wasmorch_api::placement::PlacementGroup| {
            let spec = self.laws.spec_of(key, group.revision);
            group.key() == *key && (waits || spec.is_some_and(|spec| !spec.disconnect.replace))
        };
        sets.any(|(_, set)| set.groups.iter().any(&mut awaited))
    }

    /// Whether it goes on zone by zone, and a zone may have no host that can run it: what is there of an
    /// earlier revision is replaced in its own zone.
    fn a_zone_is_short(&self, key: &WorkloadKey) -> bool {
        let spec = self.laws.spec(key);
        let Some(by) = spec.and_then(|spec| spec.update.by.as_deref()) else {
            return false;
        };
        let up = (0..self.hosts.len()).filter(|at| self.hosts[*at].up.is_some());
        let mut open: BTreeMap<Option<&String>, bool> = BTreeMap::new();
        for at in up {
            if !self.can_run(at, key) {
                return true;
            }
            let host = &self.hosts[at];
            *open.entry(host.info.labels.get(by)).or_default() |= self.takes_new(&host.id);
        }
        open.values().any(|open| !open)
    }
}
