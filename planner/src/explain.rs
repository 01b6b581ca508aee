//! Why something could not be placed, in words and in numbers.
//!
//! Owns what a pass leaves of slots that it could not place, and what is said of them. A plan keeps no more than
//! the pass alone knows: what every host lacks is found when somebody asks, and costs a look at each.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use wasmorch_api::messages::Unplaced;
use wasmorch_api::status::HostState;
use wasmorch_api::units::HumanDuration;
use wasmorch_api::{HostId, Name, PlacementNumber, Revision, Slot, WorkloadKey};

use crate::booked::Booked;
use crate::cluster::{Cluster, Host};
use crate::homes;
use crate::place::{self, Ranking, Removed, Standpoint};
use crate::ports;

/// So many fixes are named, and of one so many steps.
const FIXES: usize = 5;
const STEPS: usize = 3;
/// So many homes are named.
const HOMES_SAID: usize = 3;

/// A host that may still run what must not run twice, by its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HeldUp {
    pub(crate) host: String,
    /// It speaks, by another start than the one that may run it: so long after that was last heard it no longer does.
    pub(crate) anew: Option<Duration>,
}

/// Slots that could not be placed when their workload was last planned.
#[derive(Debug, Clone)]
pub(crate) struct Trouble {
    /// For so many no place was found.
    pub(crate) in_vain: u32,
    /// What the last of them was to run.
    pub(crate) asked: Arc<Revision>,
    /// What the namespace's quota lacks: it bars every host.
    pub(crate) quota: Option<Removed>,
    /// The hosts that have volumes of empty slots.
    pub(crate) homes: BTreeSet<HostId>,
    /// And each of the slots has one.
    pub(crate) all_at_home: bool,
    /// A slot waits for this host, which may still run what must not run twice.
    pub(crate) held_up: Option<HeldUp>,
}

/// What is said of a workload's slots that wait, as everything stands now.
pub(crate) fn unplaced(cluster: &Cluster, key: &WorkloadKey) -> Option<Unplaced> {
    let trouble = cluster.workload(key)?.unplaced.as_ref()?;
    look(cluster, key, For::Waiting(trouble), |on, _| {
        trouble.told(on)
    })
}

impl Trouble {
    /// How many slots wait.
    pub(crate) fn slots(&self) -> u32 {
        self.in_vain.max(u32::from(self.held_up.is_some()))
    }

    /// The only hosts where they may go; `None`: anywhere.
    pub(crate) fn only_homes(&self) -> Option<&BTreeSet<HostId>> {
        Some(&self.homes).filter(|homes| self.all_at_home && !homes.is_empty())
    }

    /// Why hosts cannot take them, from where hosts are looked at for one.
    pub(crate) fn told(&self, on: &Standpoint<'_>) -> Unplaced {
        let mut unplaced = match self.in_vain {
            0 => Unplaced {
                evaluated: 1,
                ..self.untold(on.key)
            },
            many => {
                let mut ranking = place::rank(on, &[]);
                if let Some(quota) = &self.quota {
                    ranking.bar(quota);
                }
                summed_up(on.key, many, &ranking)
            }
        };
        self.name_homes(on.cluster, &mut unplaced);
        if let Some(HeldUp { host, anew }) = &self.held_up {
            let filter = format!("may still run on {host}");
            unplaced.filtered.insert(filter, 1);
            let fix = match anew {
                None => format!(
                    "bring {host} back, or `wasmorch host-rm {host}` if nothing runs there any more"
                ),
                Some(within) => format!(
                    "wait: {host} has started anew, and what must not run twice waits until what its earlier \
                     start ran has surely ended, {} after that was last heard at most",
                    HumanDuration(*within)
                ),
            };
            unplaced.fix.insert(0, fix);
        }
        unplaced
    }

    /// The same without a look at any host, when too many would look at all of them at once.
    pub(crate) fn one_of_many(&self, key: &WorkloadKey) -> (String, Unplaced) {
        let see = format!("see `wasmorch why {}`", key.name);
        let slots = counted(self.slots());
        let reason = format!("{slots} cannot be placed, among those of many workloads: {see}");
        let fix = vec![see];
        let untold = self.untold(key);
        (reason, Unplaced { fix, ..untold })
    }

    fn untold(&self, key: &WorkloadKey) -> Unplaced {
        Unplaced {
            workload: key.to_string(),
            slots: self.slots(),
            ..Unplaced::default()
        }
    }

    /// Names the homes that slots wait for, and what each of them takes, first.
    fn name_homes(&self, cluster: &Cluster, unplaced: &mut Unplaced) {
        let hosts = self.homes.iter().filter_map(|home| cluster.hosts.get(home));
        let barred = hosts.filter_map(|host| Some((host, place::state(host)?.fix)));
        for (host, fix) in barred.take(HOMES_SAID) {
            unplaced.fix.retain(|one| *one != fix);
            let mut said = format!("{fix}: it has the volumes");
            if host.state != HostState::Alive {
                let name = &host.info().name;
                said.push_str(&format!("; `wasmorch host-rm {name}` gives them up"));
            }
            unplaced.fix.insert(0, said);
        }
    }
}

/// What hosts are looked at for.
#[derive(Clone, Copy)]
pub(crate) enum For<'a> {
    /// A replica more; in this slot, where another may be that it takes the place of.
    OneMore(Option<Slot>),
    /// A replica in a slot that waits.
    Waiting(&'a Trouble),
    /// One that is there already.
    Placed(PlacementNumber),
}

/// Looks at hosts for one replica. `failed` are those where its slot failed lately.
pub(crate) fn look<T>(
    cluster: &Cluster,
    key: &WorkloadKey,
    wanted: For<'_>,
    look: impl FnOnce(&Standpoint<'_>, &[HostId]) -> T,
) -> Option<T> {
    let workload = cluster.workload(key)?;
    let target = match wanted {
        For::Waiting(trouble) => &trouble.asked,
        For::OneMore(_) | For::Placed(_) => workload.target()?,
    };
    let (less, slot) = match wanted {
        For::OneMore(slot) => (None, slot),
        For::Waiting(_) => (None, None),
        For::Placed(number) => {
            let placed = workload.placements.get(&number);
            (Some(number), placed.map(|placed| placed.slot))
        }
    };
    let mut others = slot.into_iter().flat_map(|slot| workload.numbers_of(slot));
    let goes = others.find(|number| Some(*number) != less);
    let goes = goes.and_then(|number| workload.placements.get(&number));
    let placed = less.and_then(|number| workload.placements.get(&number));
    let there = |id: &_| placed.is_some_and(|placed| placed.host == *id);
    let booked = placed.map(|placed| {
        let args = placed.args.as_deref();
        Booked::of(key, &target.spec, args)
    });
    // What is lost and waits for its host counts for nothing meanwhile.
    let lost_after = target.spec.disconnect.lost_after.0;
    let lost =
        |host: &Host| !lost_after.is_zero() && host.surely_silent(lost_after, cluster.ticked);
    let homes = match (wanted, placed) {
        (For::Waiting(trouble), _) => trouble.only_homes().cloned(),
        (_, None) => homes::awaited(cluster, workload),
        (_, Some(placed)) => {
            let home = homes::home(cluster, workload, placed.slot);
            home.map(|home| BTreeSet::from([home.clone()]))
        }
    };
    let on = Standpoint {
        cluster,
        key,
        spec: &target.spec,
        features: &target.features,
        used: &|id, host| match booked.filter(|_| there(id)) {
            Some(booked) => host.booked.minus(booked),
            None => host.booked,
        },
        count: &|id, host| match lost(host) {
            true => 0,
            false => host.count_of(key).saturating_sub(u32::from(there(id))),
        },
        ports: ports::View {
            claims: None,
            without: less.map(|number| (key, number)),
        },
        homes: homes.as_ref(),
        goes: goes
            .map(|placed| &placed.host)
            .filter(|id| !cluster.hosts.get(*id).is_some_and(lost)),
    };
    let slot = placed.map(|placed| placed.slot);
    let failed = slot.map(|slot| workload.failed_on(slot, workload.record.revision));
    let failed: Vec<_> = failed.into_iter().flatten().cloned().collect();
    Some(look(&on, &failed))
}

/// Sums up the filters' own explanations for so many slots.
pub(crate) fn summed_up(key: &WorkloadKey, slots: u32, ranking: &Ranking) -> Unplaced {
    let mut filtered: BTreeMap<String, u32> = BTreeMap::new();
    let mut lacking: BTreeMap<String, u64> = BTreeMap::new();
    let mut fix: Vec<String> = Vec::new();
    for (_, removed) in &ranking.removed {
        if let Some(first) = removed.first() {
            *filtered.entry(first.filter.clone()).or_default() += 1;
        }
        // A host that is barred for another reason would not help with more room.
        let only_room = removed.iter().all(|one| one.lacking.is_some());
        let lacks = removed.iter().filter_map(|one| one.lacking);
        for (dimension, amount) in lacks.filter(|_| only_room) {
            // The nearest host is the one that lacks least.
            lacking
                .entry(dimension.to_owned())
                .and_modify(|least| *least = (*least).min(amount))
                .or_insert(amount);
        }
    }
    // The nearest fix is of a host that fails least, and of these what takes least.
    let mut nearest: Vec<&(Name, Vec<Removed>)> = ranking.removed.iter().collect();
    nearest.sort_by_key(|(name, removed)| {
        let hardest = removed.iter().map(|one| one.effort).max();
        (removed.len(), hardest, name)
    });
    for (_, removed) in nearest {
        let steps = removed.iter().take(STEPS).map(|one| &*one.fix);
        let steps: Vec<&str> = steps.filter(|fix| !fix.is_empty()).collect();
        let mut steps = steps.join("; and ");
        if removed.len() > STEPS {
            steps.push_str("; and more");
        }
        if !steps.is_empty() && !fix.contains(&steps) {
            fix.push(steps);
        }
        if fix.len() == FIXES {
            break;
        }
    }
    if ranking.removed.is_empty() && ranking.fits.is_empty() {
        fix.push("start a host: `wasmorch host`".to_owned());
    }
    Unplaced {
        workload: key.to_string(),
        slots,
        evaluated: u32::try_from(ranking.removed.len() + ranking.fits.len()).unwrap_or(u32::MAX),
        filtered,
        lacking,
        fix,
    }
}

/// `2 slots: 3 hosts looked at: 2 cordoned, 1 memory`.
pub(crate) fn one_line(trouble: &Unplaced) -> String {
    let slots = counted(trouble.slots);
    if trouble.evaluated == 0 {
        return format!("{slots} cannot be placed: no host is known");
    }
    let filters: Vec<String> = trouble
        .filtered
        .iter()
        .map(|(filter, count)| format!("{count} {filter}"))
        .collect();
    let hosts = if trouble.evaluated == 1 {
        "host"
    } else {
        "hosts"
    };
    format!(
        "{slots} cannot be placed: of {} {hosts}: {}",
        trouble.evaluated,
        filters.join(", ")
    )
}

fn counted(slots: u32) -> String {
    match slots {
        1 => "1 slot".to_owned(),
        many => format!("{many} slots"),
    }
}
