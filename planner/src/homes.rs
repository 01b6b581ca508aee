//! Slots stay with the host that has their data.
//!
//! The first host of a slot with volumes is its *home*, kept in the record: whatever replaces the replica
//! goes there. While the home is silent, full or cordoned the slot waits (`on_host_loss = "wait"`),
//! and says for whom. Removing the host (`host-rm`) gives its volumes up, and the slot goes on
//! elsewhere with empty ones. With `on_host_loss = "new"` a host has given them up by being dead for `lost_after`:
//! then nothing runs there any more, the slot begins anew elsewhere, and that is its home from then on. What lies on the
//! lost host stays there.
//!
//! A blob store on disk belongs to its host, and many slots share it: a slot goes back there while that
//! host takes it, whatever other hosts score, and on with what another has when it does not (silent, full,
//! cordoned, or it failed there). That other one is its home from then on.
//!
//! Nothing else that a workload keeps is nearer to one host than to another.

use std::collections::BTreeSet;

use wasmorch_api::status::HostState;
use wasmorch_api::{HostId, Record, Slot, WorkloadSpec};

use crate::cluster::{Cluster, Host, Workload};
use crate::pool::Rank;
use crate::slots::{Pass, Seat, Standing};

/// Whether slots of this workload have a home.
pub(crate) fn has_volumes(spec: &WorkloadSpec) -> bool {
    !spec.bindings.volume.is_empty()
}

/// Whether a slot may go on with empty volumes when its host is lost. One volume that is waited for is
/// enough to wait.
pub(crate) fn begins_anew(spec: &WorkloadSpec) -> bool {
    let mut volumes = spec.bindings.volume.values();
    has_volumes(spec) && volumes.all(|volume| volume.on_host_loss == "new")
}

/// Whether slots of this workload find on one host what they do not on another.
pub(crate) fn has_data(spec: &WorkloadSpec) -> bool {
    has_volumes(spec) || on_disk(spec)
}

fn on_disk(spec: &WorkloadSpec) -> bool {
    let mut stores = spec.bindings.blobstore.values();
    stores.any(|store| store.backend == "disk")
}

/// The host that has a slot's volumes, unless it has been removed or is lost.
fn home_of<'a>(
    cluster: &Cluster,
    spec: &WorkloadSpec,
    record: &'a Record,
    slot: Slot,
    lost: impl FnOnce(&HostId, &Host) -> bool,
) -> Option<&'a HostId> {
    let home = record.homes.get(&slot).filter(|_| has_volumes(spec))?;
    let host = cluster.hosts.get(home)?;
    (!lost(home, host)).then_some(home)
}

/// The only hosts where a workload's empty slots may go, for whoever asks why; `None`: anywhere.
pub(crate) fn awaited(cluster: &Cluster, workload: &Workload) -> Option<BTreeSet<HostId>> {
    let spec = &workload
        .target()
        .map(|target| &target.spec)
        .filter(|spec| has_volumes(spec))?;
    let lives = |number| {
        let placed = workload.placements.get(&number);
        let host = placed.and_then(|placed| cluster.hosts.get(&placed.host));
        host.is_some_and(|host| host.state != HostState::Dead)
    };
    // With one on every host its slots go by hosts.
    let last = u64::from(workload.record.seats(spec)) * u64::from(!workload.per_host());
    let empty = (1..=last)
        .map(Slot)
        .filter(|slot| !workload.numbers_of(*slot).any(lives));
    only(empty.map(|slot| home(cluster, workload, slot)))
}

/// Where a slot of a workload has its volumes, for whoever asks why.
pub(crate) fn home<'a>(
    cluster: &Cluster,
    workload: &'a Workload,
    slot: Slot,
) -> Option<&'a HostId> {
    let spec = &workload.target()?.spec;
    let lost_after = spec.disconnect.lost_after.0;
    home_of(cluster, spec, &workload.record, slot, |_, host| {
        begins_anew(spec) && host.surely_silent(lost_after, cluster.ticked)
    })
}

/// All of these; `None` when there are none, or one of them may be any host.
fn only<'a>(homes: impl Iterator<Item = Option<&'a HostId>>) -> Option<BTreeSet<HostId>> {
    let homes: Option<BTreeSet<HostId>> = homes.map(Option::<&HostId>::cloned).collect();
    homes.filter(|homes| !homes.is_empty())
}

impl Pass<'_> {
    /// The host that has the slot's volumes.
    pub(crate) fn home(&self, slot: Slot) -> Option<&HostId> {
        let spec = &self.target.spec;
        home_of(self.cluster, spec, &self.record, slot, |home, host| {
            self.gives_up(slot, home) && host.surely_silent(self.lost_after(), self.now)
        })
    }

    /// Wanted slots in which nothing is, or may come back.
    fn empty(&self) -> impl Iterator<Item = Slot> + '_ {
        let gone = |seat: &Seat| seat.standing == Standing::Gone;
        let wanted = self.wanted().into_iter();
        wanted.filter(move |slot| self.seats_of(*slot).all(gone))
    }

    /// The hosts that have volumes of empty slots, and whether each of these has one.
    pub(crate) fn awaited_homes(&self) -> (BTreeSet<HostId>, bool) {
        let mut homes = BTreeSet::new();
        let mut all = true;
        if has_volumes(&self.target.spec) {
            for slot in self.empty() {
                let home = self.home(slot);
                all &= home.is_some();
                homes.extend(home.cloned());
            }
        }
        (homes, all)
    }

    /// Whether the slot may begin anew elsewhere once its home is lost: not while a revision that says
    /// otherwise may still run there, and ends for nobody's silence.
    fn gives_up(&self, slot: Slot, home: &HostId) -> bool {
        let mut there = self.seats_of(slot).filter(|seat| seat.placed.host == *home);
        let anew = |seat: &Seat| {
            let revision = self.workload.revisions.get(&seat.placed.revision);
            revision.is_some_and(|revision| begins_anew(&revision.spec))
        };
        begins_anew(&self.target.spec) && there.all(anew)
    }

    /// Where the slot may go: home when it has one, else to the best host.
    pub(crate) fn seat_for(
        &mut self,
        slot: Slot,
        args: Option<&Vec<String>>,
        failed: &BTreeSet<Rank>,
    ) -> Option<Rank> {
        let Some(home) = self.home(slot).cloned() else {
            let near = self.near(slot, args, failed);
            let goes = self.goes(slot);
            return near.or_else(|| self.best(args, failed, goes.as_ref()));
        };
        let dead = self
            .cluster
            .hosts
            .get(&home)
            .and_then(|host| host.dead_since);
        if let Some(since) = dead.filter(|_| self.gives_up(slot, &home)) {
            self.wake(since.after(self.lost_after()));
        }
        let rank = self.pool.usable(&home)?;
        let (fill, ground, pool) = self.filling(args);
        fill.admits(&ground, pool, rank).then_some(rank)
    }

    /// The host with the blobs that the slot has found so far, if it may go there.
    fn near(
        &mut self,
        slot: Slot,
        args: Option<&Vec<String>>,
        failed: &BTreeSet<Rank>,
    ) -> Option<Rank> {
        if !on_disk(&self.target.spec) {
            return None;
        }
        let home = self.record.homes.get(&slot)?;
        let rank = self.pool.usable(home).filter(|at| !failed.contains(at))?;
        let (fill, ground, pool) = self.filling(args);
        fill.admits(&ground, pool, rank).then_some(rank)
    }

    /// Slots that run somewhere without a home are at home there: a store that was rebuilt from
    /// hosts knows of none.
    pub(crate) fn adopt_homes(&mut self) {
        if !has_data(&self.target.spec) {
            return;
        }
        let hosts: Vec<(Slot, HostId)> = self
            .seats
            .values()
            .filter(|seat| !self.record.homes.contains_key(&seat.placed.slot))
            .map(|seat| (seat.placed.slot, seat.placed.host.clone()))
            .collect();
        for (slot, host) in hosts {
            self.record.homes.entry(slot).or_insert(host);
        }
    }

    /// Remembers where the slot's data are.
    pub(crate) fn settle(&mut self, slot: Slot, host: &HostId) {
        // A canary leaves the slot's data where they are.
        let on_trial = self.record.on_trial() == Some(self.record.revision);
        if has_data(&self.target.spec) && !on_trial && self.record.homes.get(&slot) != Some(host) {
            self.record.homes.insert(slot, host.clone());
        }
    }

    /// Whether a seat on a dead host stays there, since its volumes do; it counts as unplaced.
    pub(crate) fn stays_home(&mut self, seat: &Seat) -> bool {
        let slot = seat.placed.slot;
        let wanted = self.wants(slot);
        let alone = self.seats_of(slot).nth(1).is_none();
        let stays = wanted && alone && self.home(slot) == Some(&seat.placed.host);
        self.unplaced += u32::from(stays);
        stays
    }
}
