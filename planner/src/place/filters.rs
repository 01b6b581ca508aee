//! The filters: what a host is refused for, what it lacks, and what would help.
//!
//! Owns one refusal after the other, of a host by itself and of all hosts of a class at once. Which of the
//! hosts that pass is the best is `scores`'.

use std::collections::{BTreeMap, BTreeSet};

use wasmorch_api::spec::{Constraint, LabelTest};
use wasmorch_api::status::HostState;
use wasmorch_api::{ByteSize, HostId, WorkloadSpec, features};

use super::labels::{passes, words};
use super::{Effort, HOST, Removed, Standpoint, Under, label_of};
use crate::booked::Booked;
use crate::cluster::{Cluster, Host};
use crate::planted::{self, Bug};
use crate::pool::Class;
use crate::ports;

/// Of one host no more is told: with a thousand constraints, nobody reads them all.
const FAILS_KEPT: usize = 8;

/// A share of this is a whole.
const WHOLE: u128 = 1_000_000;

/// All filters, with what they have found of classes.
pub(super) struct Filters<'a> {
    on: &'a Standpoint<'a>,
    wants: Booked,
    needs: Vec<String>,
    classes: BTreeMap<u32, Vec<Removed>>,
    elsewhere: Option<Removed>,
}

impl<'a> Filters<'a> {
    pub(super) fn new(on: &'a Standpoint<'a>) -> Self {
        Self {
            on,
            wants: Booked::of(on.key, on.spec, None),
            needs: needs(on.spec, on.features),
            classes: BTreeMap::new(),
            elsewhere: on.homes.map(|homes| elsewhere(on.cluster, homes)),
        }
    }

    pub(super) fn against(&mut self, under: &Under<'_>, id: &HostId, host: &Host) -> Vec<Removed> {
        let on = self.on;
        if on.homes.is_some_and(|homes| !homes.contains(id)) {
            // Whatever else it fails, nothing there would help.
            return self.elsewhere.iter().cloned().collect();
        }
        let mut removed: Vec<Removed> = state(host).into_iter().collect();
        if on.spec.runs_once() && host.boots.doubled() {
            let fix = format!(
                "stop one of the two daemons that speak as {}",
                host.info().name
            );
            removed.push(self::removed("two daemons speak as it", Effort::Wait, fix));
        }
        let class = self.classes.entry(host.class).or_insert_with(|| {
            let class = on.cluster.classes.get(host.class);
            let class = class.into_iter();
            let all = class.flat_map(|class| all_against_class(on.spec, &self.needs, class));
            all.take(FAILS_KEPT).collect()
        });
        removed.extend(class.iter().cloned());
        removed.extend(against_host(on, under, id, host));
        removed.extend(ports::against(on.cluster, on.ports, (id, host), on.spec));
        removed.extend(capacity((on.used)(id, host), host, self.wants));
        removed
    }
}

/// Why a host that is none of the homes is none.
fn elsewhere(cluster: &Cluster, homes: &BTreeSet<HostId>) -> Removed {
    let mut names = homes.iter().filter_map(|home| cluster.hosts.get(home));
    let filter = match (names.next(), names.next()) {
        (Some(home), None) => format!("volumes are on {}", home.info().name),
        _ => "volumes are on other hosts".to_owned(),
    };
    // What helps is a matter of the home.
    removed(&filter, Effort::Spec, String::new())
}

fn removed(filter: &str, effort: Effort, fix: String) -> Removed {
    Removed {
        filter: filter.to_owned(),
        lacking: None,
        fix,
        effort: (effort, 0),
    }
}

/// Whether a host is there to be had.
pub(crate) fn state(host: &Host) -> Option<Removed> {
    let name = &host.info().name;
    if host.state != HostState::Alive {
        let fix = format!("bring {name} back");
        return Some(removed(host.state.as_str(), Effort::Wait, fix));
    }
    if !host.known() {
        let fix = format!("wait for {name} to report");
        return Some(removed("not heard yet", Effort::Wait, fix));
    }
    if !host.takes_new() && !planted::is(Bug::CordonIgnored) {
        let filter = if host.record.cordoned {
            "cordoned"
        } else {
            "draining"
        };
        return Some(removed(filter, Effort::Command, format!("uncordon {name}")));
    }
    None
}

/// Whether all hosts of a class are refused.
pub(crate) fn is_against_class(spec: &WorkloadSpec, needs: &[String], class: &Class) -> bool {
    all_against_class(spec, needs, class).next().is_some()
}

/// What a revision needs that some hosts may lack: its stores' backends, and what its component needs.
pub(crate) fn needs(spec: &WorkloadSpec, component: &[String]) -> Vec<String> {
    let mut needs = features::of_spec(spec);
    needs.extend_from_slice(component);
    needs
}

/// What all hosts of a class are refused for.
fn all_against_class<'a>(
    spec: &'a WorkloadSpec,
    needs: &'a [String],
    class: &'a Class,
) -> impl Iterator<Item = Removed> + 'a {
    let lacks = needs.iter().filter(|one| !class.features.contains(one));
    let lacks = lacks.map(|feature| {
        let fix = format!("upgrade wasmorch on a host without {feature}, or add one that has it");
        removed(&format!("without {feature}"), Effort::Wait, fix)
    });
    let tolerated = |taint: &str| {
        let mut tolerate = spec.tolerate.iter();
        tolerate.any(|one| one == taint || taint.split('=').next() == Some(one))
    };
    let taints = class.taints.iter().filter(move |taint| !tolerated(taint));
    let taints = taints.map(|taint| {
        let fix = format!("tolerate = [\"{taint}\"]");
        removed(&format!("taint {taint}"), Effort::Spec, fix)
    });
    let constraints = spec.constraints.iter();
    let constraints = constraints.filter_map(|constraint| match constraint {
        Constraint::Label { label, test } => {
            let unmet_here =
                label != HOST && !passes(test, class.labels.get(label).map(String::as_str));
            let unmet_here = unmet_here && !planted::is(Bug::ConstraintsIgnored);
            unmet_here.then(|| unmet(label, test))
        }
        Constraint::Distinct { distinct, .. } => {
            let without = distinct != HOST && !class.labels.contains_key(distinct);
            without.then(|| {
                let fix = format!("label a host with {distinct}");
                removed(&format!("distinct {distinct}"), Effort::Spec, fix)
            })
        }
    });
    lacks.chain(taints).chain(constraints)
}

fn unmet(label: &str, test: &LabelTest) -> Removed {
    let words = words(label, test);
    removed(
        &format!("constraint {words}"),
        Effort::Spec,
        format!("remove the constraint {words}, or label a host"),
    )
}

/// Whether a host's name passes a constraint on it; one on another label always does.
pub(crate) fn name_passes(constraint: &Constraint, name: &str) -> bool {
    match constraint {
        Constraint::Label { label, test } if label == HOST => passes(test, Some(name)),
        _ => true,
    }
}

/// What one host is refused for by itself: its name, and what it has of the workload already.
fn against_host(
    on: &Standpoint<'_>,
    under: &Under<'_>,
    id: &HostId,
    host: &Host,
) -> Option<Removed> {
    let name = host.info().name.as_str();
    if on.spec.per_host() && (on.count)(id, host) > 0 {
        return Some(removed("has one already", Effort::Spec, String::new()));
    }
    for constraint in &on.spec.constraints {
        match constraint {
            Constraint::Label { label, test } if !name_passes(constraint, name) => {
                return Some(unmet(label, test));
            }
            Constraint::Distinct { distinct, max } => {
                let there = if distinct == HOST {
                    (on.count)(id, host)
                } else {
                    let value = label_of(on.cluster, host, distinct);
                    value.map_or(0, |value| under.count(distinct, value))
                };
                if there >= *max {
                    return Some(removed(
                        &format!("distinct {distinct}"),
                        Effort::Spec,
                        format!("add a host with another {distinct}, or raise max"),
                    ));
                }
            }
            Constraint::Label { .. } => {}
        }
    }
    None
}

/// Booked reserve against capacity, dimension by dimension.
fn capacity(used: Booked, host: &Host, wants: Booked) -> impl Iterator<Item = Removed> {
    let name = &host.info().name;
    let dimensions = used.dimensions(wants, Booked::of_host(host));
    dimensions
        .into_iter()
        .filter_map(move |(dimension, used, wants, has)| {
            let lacks = used.saturating_add(wants).saturating_sub(has);
            (lacks > 0 && wants > 0).then(|| {
                let amount = match dimension {
                    "memory" => ByteSize(lacks).approximate().replace(".0 ", " "),
                    "cpu" => format!("{lacks}m cpu"),
                    "replicas" => format!("{lacks} replicas"),
                    _ => format!("{lacks} bytes of its placement set"),
                };
                let fix = match dimension {
                    "memory" | "cpu" => {
                        format!("free {amount} on {name}, or lower resources.reserve")
                    }
                    _ => format!("free {amount} on {name}, or add a host"),
                };
                Removed {
                    filter: dimension.to_owned(),
                    lacking: Some((dimension, lacks)),
                    fix,
                    effort: (Effort::Room, share(lacks, wants)),
                }
            })
        })
}

/// What is lacking of what is asked for: bytes and millicores compare as such only.
fn share(lacks: u64, wants: u64) -> u64 {
    let share = u128::from(lacks) * WHOLE / u128::from(wants.max(1));
    u64::try_from(share).unwrap_or(u64::MAX)
}
