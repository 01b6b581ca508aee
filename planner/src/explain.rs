//! Why something could not be placed, in words and in numbers.

use std::collections::BTreeMap;

use wasmorch_api::messages::Unplaced;
use wasmorch_api::{Name, WorkloadKey};

use crate::place::{Ranking, Removed};

/// So many fixes are named, and of one so many steps.
const FIXES: usize = 5;
const STEPS: usize = 3;

/// Sums up the filters' own explanations for so many slots.
pub(crate) fn unplaced(key: &WorkloadKey, slots: u32, ranking: &Ranking) -> Unplaced {
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

/// A slot waits because a host may still run what must not run twice.
pub(crate) fn held_up(key: &WorkloadKey, trouble: &mut Option<Unplaced>, host: &str) {
    let trouble = trouble.get_or_insert_with(|| Unplaced {
        workload: key.to_string(),
        slots: 1,
        evaluated: 1,
        ..Unplaced::default()
    });
    let filter = format!("may still run on {host}");
    trouble.filtered.insert(filter, 1);
    trouble.fix.insert(
        0,
        format!("bring {host} back, or `wasmorch host-rm {host}` if nothing runs there any more"),
    );
}

/// `2 slots: 3 hosts looked at: 2 cordoned, 1 memory`.
pub(crate) fn one_line(trouble: &Unplaced) -> String {
    let slots = if trouble.slots == 1 {
        "1 slot".into()
    } else {
        format!("{} slots", trouble.slots)
    };
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
