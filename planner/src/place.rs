//! Where a replica goes: filters that can explain themselves, then scores.
//!
//! Rule: of the hosts that pass every filter, the one with the highest total wins. The total is the
//! sum of `spread` (fewer replicas of the workload under the same label value is better), `affinity`
//! (the weights that match), `free` (the share of its capacity that is left) and `failed` (a penalty
//! where this slot failed lately). Ties break by the host's name, then by its id.
//! Known limit: one replica at a time against every host; counts per host class come with the
//! planner at scale.

use std::collections::BTreeMap;

use wasmorch_api::spec::{Constraint, LabelTest};
use wasmorch_api::status::{Capacity, HostState};
use wasmorch_api::{ByteSize, HostId, Name, WorkloadKey, WorkloadSpec};

use crate::cluster::{Cluster, Host};
use crate::planted::{self, Bug};

/// What is booked on each host, kept up to date through one plan.
#[derive(Debug, Clone, Default)]
pub(crate) struct Books {
    used: BTreeMap<HostId, Capacity>,
    /// Placements of each workload by host.
    counts: BTreeMap<WorkloadKey, BTreeMap<HostId, u32>>,
}

impl Books {
    pub(crate) fn of(cluster: &Cluster) -> Self {
        let mut books = Self::default();
        for (key, workload) in &cluster.workloads {
            for placed in workload.placements.values() {
                if let Some(revision) = workload.revisions.get(&placed.revision) {
                    books.add(key, &placed.host, &revision.spec);
                }
            }
        }
        books
    }

    pub(crate) fn add(&mut self, key: &WorkloadKey, host: &HostId, spec: &WorkloadSpec) {
        let used = self.used.entry(host.clone()).or_default();
        let reserve = &spec.resources.reserve;
        used.memory_bytes = used.memory_bytes.saturating_add(reserve.memory.0);
        used.cpu_millis = used.cpu_millis.saturating_add(reserve.cpu.0);
        used.replicas += 1;
        *self
            .counts
            .entry(key.clone())
            .or_default()
            .entry(host.clone())
            .or_default() += 1;
    }

    pub(crate) fn remove(&mut self, key: &WorkloadKey, host: &HostId, spec: &WorkloadSpec) {
        if let Some(used) = self.used.get_mut(host) {
            let reserve = &spec.resources.reserve;
            used.memory_bytes = used.memory_bytes.saturating_sub(reserve.memory.0);
            used.cpu_millis = used.cpu_millis.saturating_sub(reserve.cpu.0);
            used.replicas = used.replicas.saturating_sub(1);
        }
        if let Some(count) = self
            .counts
            .get_mut(key)
            .and_then(|hosts| hosts.get_mut(host))
        {
            *count = count.saturating_sub(1);
        }
    }

    pub(crate) fn used(&self, host: &HostId) -> Capacity {
        self.used.get(host).copied().unwrap_or_default()
    }

    fn count(&self, key: &WorkloadKey, host: &HostId) -> u32 {
        self.counts
            .get(key)
            .and_then(|hosts| hosts.get(host))
            .copied()
            .unwrap_or(0)
    }
}

/// Why a host cannot take a replica: the filter that removed it, what it lacks, what would help.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Removed {
    pub(crate) filter: String,
    pub(crate) lacking: Option<(&'static str, u64)>,
    pub(crate) fix: String,
}

/// A host that can, and how well.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Scored {
    pub(crate) host: HostId,
    pub(crate) name: Name,
    pub(crate) total: i64,
    pub(crate) parts: BTreeMap<&'static str, i64>,
}

/// The outcome for one replica.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ranking {
    /// Best first.
    pub(crate) fits: Vec<Scored>,
    pub(crate) removed: Vec<(Name, Removed)>,
}

/// Ranks every host for one more replica of `spec`. `failed` are hosts where the slot failed lately.
pub(crate) fn rank(
    cluster: &Cluster,
    books: &Books,
    key: &WorkloadKey,
    spec: &WorkloadSpec,
    failed: &[HostId],
) -> Ranking {
    let mut ranking = Ranking::default();
    for (id, host) in &cluster.hosts {
        match filter(cluster, books, key, spec, id, host) {
            Some(removed) => ranking.removed.push((host.info().name.clone(), removed)),
            None => ranking
                .fits
                .push(score(cluster, books, key, spec, id, host, failed)),
        }
    }
    ranking.fits.sort_by(|a, b| {
        b.total
            .cmp(&a.total)
            .then_with(|| a.name.cmp(&b.name))
            .then_with(|| a.host.cmp(&b.host))
    });
    ranking
}

fn filter(
    cluster: &Cluster,
    books: &Books,
    key: &WorkloadKey,
    spec: &WorkloadSpec,
    id: &HostId,
    host: &Host,
) -> Option<Removed> {
    let name = &host.info().name;
    let removed = |filter: &str, fix: String| {
        Some(Removed {
            filter: filter.to_owned(),
            lacking: None,
            fix,
        })
    };
    if host.state != HostState::Alive {
        return removed(host.state.as_str(), format!("bring {name} back"));
    }
    if !host.known() {
        return removed("not heard yet", format!("wait for {name} to report"));
    }
    if host.record.cordoned && !planted::is(Bug::CordonIgnored) {
        return removed("cordoned", format!("uncordon {name}"));
    }
    for taint in &host.info().taints {
        let tolerated = spec
            .tolerate
            .iter()
            .any(|tolerated| tolerated == taint || taint.split('=').next() == Some(tolerated));
        if !tolerated {
            let filter = format!("taint {taint}");
            return Some(Removed {
                filter,
                lacking: None,
                fix: format!("tolerate = [\"{taint}\"]"),
            });
        }
    }
    for constraint in &spec.constraints {
        if let Some(removed) = against(cluster, books, key, id, host, constraint) {
            return Some(removed);
        }
    }
    capacity(books.used(id), host, spec)
}

/// Booked reserve against capacity, dimension by dimension.
fn capacity(used: Capacity, host: &Host, spec: &WorkloadSpec) -> Option<Removed> {
    let has = host.capacity();
    let name = &host.info().name;
    let reserve = &spec.resources.reserve;
    let dimensions = [
        (
            "memory",
            used.memory_bytes,
            reserve.memory.0,
            has.memory_bytes,
        ),
        ("cpu", used.cpu_millis, reserve.cpu.0, has.cpu_millis),
        ("replicas", used.replicas, 1, has.replicas),
    ];
    dimensions
        .into_iter()
        .find_map(|(dimension, used, wants, has)| {
            let lacks = used.saturating_add(wants).saturating_sub(has);
            (lacks > 0 && wants > 0).then(|| {
                let amount = match dimension {
                    "memory" => ByteSize(lacks).approximate(),
                    "cpu" => format!("{lacks}m cpu"),
                    _ => format!("{lacks} replicas"),
                };
                let fix = format!("free {amount} on {name}, or lower resources.reserve");
                Removed {
                    filter: dimension.to_owned(),
                    lacking: Some((dimension, lacks)),
                    fix,
                }
            })
        })
}

fn label<'a>(host: &'a Host, name: &str) -> Option<&'a str> {
    if name == "host" {
        return Some(host.info().name.as_str());
    }
    host.info().labels.get(name).map(String::as_str)
}

fn against(
    cluster: &Cluster,
    books: &Books,
    key: &WorkloadKey,
    id: &HostId,
    host: &Host,
    constraint: &Constraint,
) -> Option<Removed> {
    match constraint {
        Constraint::Label { label: name, test } => {
            let value = label(host, name);
            (!passes(test, value)).then(|| {
                let words = words(name, test);
                let fix = format!("remove the constraint {words}, or label a host");
                Removed {
                    filter: format!("constraint {words}"),
                    lacking: None,
                    fix,
                }
            })
        }
        Constraint::Distinct { distinct, max } => {
            let mine = if distinct == "host" {
                Some(id.as_str())
            } else {
                label(host, distinct)
            };
            let Some(mine) = mine else {
                let filter = format!("distinct {distinct}");
                let fix = format!("label {} with {distinct}", host.info().name);
                return Some(Removed {
                    filter,
                    lacking: None,
                    fix,
                });
            };
            let there: u32 = cluster
                .hosts
                .iter()
                .filter(|(other, host)| {
                    let value = if distinct == "host" {
                        Some(other.as_str())
                    } else {
                        label(host, distinct)
                    };
                    value == Some(mine)
                })
                .map(|(other, _)| books.count(key, other))
                .sum();
            (there >= *max).then(|| Removed {
                filter: format!("distinct {distinct}"),
                lacking: None,
                fix: format!("add a host with another {distinct}, or raise max"),
            })
        }
    }
}

/// Whether a label's value (`None`: the host has no such label) passes.
pub(crate) fn passes(test: &LabelTest, value: Option<&str>) -> bool {
    match test {
        LabelTest::Eq(wanted) => value == Some(wanted),
        LabelTest::Ne(unwanted) => value != Some(unwanted),
        LabelTest::In(set) => value.is_some_and(|value| set.iter().any(|one| one == value)),
        LabelTest::NotIn(set) => !value.is_some_and(|value| set.iter().any(|one| one == value)),
        LabelTest::Matches(pattern) => value.is_some_and(|value| glob(pattern, value)),
        LabelTest::Exists(wanted) => value.is_some() == *wanted,
    }
}

/// `*` stands for any run of characters. Linear in text times stars: no backtracking blow-up.
fn glob(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else {
        return false;
    };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else {
        return rest.is_empty();
    };
    for part in parts {
        let Some(at) = rest.find(part) else {
            return false;
        };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

fn words(name: &str, test: &LabelTest) -> String {
    match test {
        LabelTest::Eq(value) => format!("{name}={value}"),
        LabelTest::Ne(value) => format!("{name}!={value}"),
        LabelTest::In(set) => format!("{name} in {}", set.join("|")),
        LabelTest::NotIn(set) => format!("{name} not in {}", set.join("|")),
        LabelTest::Matches(pattern) => format!("{name} matches {pattern}"),
        LabelTest::Exists(true) => format!("{name} exists"),
        LabelTest::Exists(false) => format!("{name} does not exist"),
    }
}

fn score(
    cluster: &Cluster,
    books: &Books,
    key: &WorkloadKey,
    spec: &WorkloadSpec,
    id: &HostId,
    host: &Host,
    failed: &[HostId],
) -> Scored {
    let mut parts = BTreeMap::new();
    // A replica more under the same value weighs more than anything but a matching affinity of 100.
    let crowd: i64 = spec
        .spread
        .iter()
        .filter_map(|name| label(host, name).map(|value| (name, value)))
        .map(|(name, value)| {
            cluster
                .hosts
                .iter()
                .filter(|(other, host)| {
                    if name == "host" {
                        *other == id
                    } else {
                        label(host, name) == Some(value)
                    }
                })
                .map(|(other, _)| i64::from(books.count(key, other)))
                .sum::<i64>()
        })
        .sum();
    parts.insert("spread", -100 * crowd);
    let affinity: i64 = spec
        .affinity
        .iter()
        .filter(|wish| passes(&wish.test, label(host, &wish.label)))
        .map(|wish| i64::from(wish.weight))
        .sum();
    if affinity != 0 {
        parts.insert("affinity", affinity);
    }
    parts.insert("free", free_percent(books.used(id), host.capacity()) / 10);
    if failed.contains(id) {
        parts.insert("failed", -1_000);
    }
    Scored {
        host: id.clone(),
        name: host.info().name.clone(),
        total: parts.values().sum(),
        parts,
    }
}

/// The scarcest dimension's free share, 0 to 100.
fn free_percent(used: Capacity, has: Capacity) -> i64 {
    let share = |used: u64, has: u64| {
        let free = u128::from(has.saturating_sub(used)) * 100;
        free.checked_div(u128::from(has))
            .map_or(0, |share| i64::try_from(share).unwrap_or(100))
    };
    share(used.memory_bytes, has.memory_bytes)
        .min(share(used.cpu_millis, has.cpu_millis))
        .min(share(used.replicas, has.replicas))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs() {
        for (pattern, text, fits) in [
            ("eu-*", "eu-west", true),
            ("*", "", true),
            ("a*b*c", "aXbYc", true),
            ("a*b*c", "aXc", false),
            ("abc", "abcd", false),
            ("a*a", "a", false),
            ("*west", "eu-west", true),
        ] {
            assert_eq!(glob(pattern, text), fits, "{pattern} {text}");
        }
    }

    #[test]
    fn the_six_operators() {
        let set = || vec!["a".to_owned(), "b".to_owned()];
        for (test, a, c, none) in [
            (LabelTest::Eq("a".into()), true, false, false),
            (LabelTest::Ne("a".into()), false, true, true),
            (LabelTest::In(set()), true, false, false),
            (LabelTest::NotIn(set()), false, true, true),
            (LabelTest::Exists(true), true, true, false),
            (LabelTest::Exists(false), false, false, true),
        ] {
            assert_eq!(passes(&test, Some("a")), a, "{test:?}");
            assert_eq!(passes(&test, Some("c")), c, "{test:?}");
            assert_eq!(passes(&test, None), none, "{test:?}");
        }
    }
}
