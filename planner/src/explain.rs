//! Why something could not be placed, in words and in numbers.

use std::collections::BTreeMap;

use wasmorch_api::WorkloadKey;
use wasmorch_api::messages::Unplaced;

use crate::place::Ranking;

/// Sums up the filters' own explanations for so many slots.
pub(crate) fn unplaced(key: &WorkloadKey, slots: u32, ranking: &Ranking) -> Unplaced {
    let mut filtered: BTreeMap<String, u32> = BTreeMap::new();
    let mut lacking: BTreeMap<String, u64> = BTreeMap::new();
    let mut fix: Vec<String> = Vec::new();
    for (_, removed) in &ranking.removed {
        *filtered.entry(removed.filter.clone()).or_default() += 1;
        if let Some((dimension, amount)) = removed.lacking {
            // The nearest host is the one that lacks least.
            lacking
                .entry(dimension.to_owned())
                .and_modify(|least| *least = (*least).min(amount))
                .or_insert(amount);
        }
        if !fix.contains(&removed.fix) {
            fix.push(removed.fix.clone());
        }
    }
    if ranking.removed.is_empty() && ranking.fits.is_empty() {
        fix.push("start a host: `wasmorch host`".to_owned());
    }
    fix.truncate(5);
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
