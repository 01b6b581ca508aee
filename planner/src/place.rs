//! Where a replica goes: the rule, the filters that can explain themselves, and the scores.
//!
//! Rule: of the hosts that pass every filter, the one with the highest total wins. The total is the
//! sum of
//!
//! - `spread`: -100 for each replica of the workload under the same value of each label in `spread`
//!   (default: `host` and `zone`); on a host without the label nothing. The replica that this one takes
//!   the place of does not count: it goes, and nothing would stay spread over a rolling update else;
//! - `affinity`: the weights that match;
//! - `cached`: 5 on a host that has started the same artifact for the workload before, and runs none of
//!   it now (`cached`);
//! - `free`: the free share of its fullest dimension (memory, cpu, replicas), 0 to 10; with
//!   `spread = []` replicas are packed: `packed`, the booked share, in its place.
//!
//! A host where the slot failed lately is taken only when no other has room. Ties break by the
//! share in millionths, then by the host's name, then by its id.
//!
//! Before any score, a slot goes where its data are (`homes`): with volumes there and nowhere else, with a
//! store on disk wherever that host takes it.
//!
//! `fill` carries this rule out on counts. What is here says it of one host at a time, for whoever
//! asks why; `World::plan` in the tests holds the two together.

mod labels;

use std::collections::{BTreeMap, BTreeSet};

use wasmorch_api::spec::{Constraint, LabelTest};
use wasmorch_api::status::HostState;
use wasmorch_api::{ByteSize, HostId, Name, WorkloadKey, WorkloadSpec, features};

use crate::booked::{Booked, FULL};
use crate::cached;
use crate::cluster::{Cluster, Host};
use crate::planted::{self, Bug};
use crate::pool::Class;
use crate::ports;

pub(crate) use labels::passes;
use labels::words;

/// The label that every host has: its name.
pub(crate) const HOST: &str = "host";
/// A replica more under the same value weighs more than anything but a matching affinity of 100.
pub(crate) const CROWD: i64 = 100;

/// Why a host cannot take a replica: the filter that removed it, what it lacks, what would help.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Removed {
    pub(crate) filter: String,
    pub(crate) lacking: Option<(&'static str, u64)>,
    pub(crate) fix: String,
    /// How far away the fix is: less is nearer. Of room, the lacking share of what is asked for, in
    /// millionths.
    pub(crate) effort: (Effort, u64),
}

/// A share of this is a whole.
const WHOLE: u128 = 1_000_000;

/// What a fix takes, the nearest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Effort {
    /// One command.
    Command,
    /// So much room.
    Room,
    /// A host that has to speak.
    Wait,
    /// Another spec.
    Spec,
}

/// A host that can, and how well.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Scored {
    pub(crate) host: HostId,
    pub(crate) name: Name,
    pub(crate) total: i64,
    /// Breaks ties: less first.
    pub(crate) load: i32,
    pub(crate) parts: BTreeMap<&'static str, i64>,
}

/// The outcome for one replica.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ranking {
    /// Best first.
    pub(crate) fits: Vec<Scored>,
    /// With everything that each one fails, the filter that removed it first.
    pub(crate) removed: Vec<(Name, Vec<Removed>)>,
}

impl Ranking {
    /// Every host is refused for this, whatever else it lacks.
    pub(crate) fn bar(&mut self, by: &Removed) {
        let fits = std::mem::take(&mut self.fits).into_iter();
        let names = fits.map(|one| one.name);
        let removed = std::mem::take(&mut self.removed).into_iter();
        let names = names.chain(removed.map(|one| one.0));
        self.removed = names.map(|name| (name, vec![by.clone()])).collect();
    }
}

/// What a ranking is made on: what is booked, and how many replicas of the workload are where.
pub(crate) struct Standpoint<'a> {
    pub(crate) cluster: &'a Cluster,
    pub(crate) key: &'a WorkloadKey,
    pub(crate) spec: &'a WorkloadSpec,
    /// What its component needs that some hosts may lack.
    pub(crate) features: &'a [String],
    pub(crate) used: &'a dyn Fn(&HostId, &Host) -> Booked,
    pub(crate) count: &'a dyn Fn(&HostId, &Host) -> u32,
    pub(crate) ports: ports::View<'a>,
    /// It goes to one of these and nowhere else: they have its volumes.
    pub(crate) homes: Option<&'a BTreeSet<HostId>>,
    /// The host of the slot's other replica, which goes when this one is there: until then it counts for
    /// filters, and for no score.
    pub(crate) goes: Option<&'a HostId>,
}

/// Ranks every host for one more replica: for people who ask why. Costs a look at every host.
/// `failed` are hosts where the slot failed lately.
pub(crate) fn rank(on: &Standpoint<'_>, failed: &[HostId]) -> Ranking {
    let mut ranking = Ranking::default();
    let under = Under::of(on);
    let mut filters = Filters::new(on);
    for (id, host) in &on.cluster.hosts {
        let removed = filters.against(&under, id, host);
        if removed.is_empty() {
            ranking.fits.push(score(on, &under, id, host, failed));
        } else {
            ranking.removed.push((host.info().name.clone(), removed));
        }
    }
    ranking.fits.sort_by(|a, b| {
        b.total
            .cmp(&a.total)
            .then_with(|| a.load.cmp(&b.load))
            .then_with(|| a.name.cmp(&b.name))
            .then_with(|| a.host.cmp(&b.host))
    });
    ranking
}

/// Whether this one host passes every filter.
pub(crate) fn fits_on(on: &Standpoint<'_>, id: &HostId) -> bool {
    let known = on.cluster.hosts.contains_key(id);
    known && against(on, id).is_empty()
}

/// What this one host fails. Looks at others only where a constraint counts them too.
pub(crate) fn against(on: &Standpoint<'_>, id: &HostId) -> Vec<Removed> {
    let host = on.cluster.hosts.get(id);
    host.map_or_else(Vec::new, |host| {
        Filters::new(on).against(&Under::distinct(on), id, host)
    })
}

/// All filters, with what they have found of classes.
struct Filters<'a> {
    on: &'a Standpoint<'a>,
    wants: Booked,
    needs: Vec<String>,
    classes: BTreeMap<u32, Vec<Removed>>,
    elsewhere: Option<Removed>,
}

impl<'a> Filters<'a> {
    fn new(on: &'a Standpoint<'a>) -> Self {
        Self {
            on,
            wants: Booked::of(on.key, on.spec, None),
            needs: needs(on.spec, on.features),
            classes: BTreeMap::new(),
            elsewhere: on.homes.map(|homes| elsewhere(on.cluster, homes)),
        }
    }

    fn against(&mut self, under: &Under<'_>, id: &HostId, host: &Host) -> Vec<Removed> {
        let on = self.on;
        if on.homes.is_some_and(|homes| !homes.contains(id)) {
            // Whatever else it fails, nothing there would help.
            return self.elsewhere.iter().cloned().collect();
        }
        let mut removed: Vec<Removed> = state(host).into_iter().collect();
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

/// How a host that is there scores, whether or not it has room for one more.
pub(crate) fn score_on(on: &Standpoint<'_>, id: &HostId) -> Option<i64> {
    let host = on.cluster.hosts.get(id)?;
    let scored = state(host).is_none();
    scored.then(|| score(on, &Under::of(on), id, host, &[]).total)
}

/// Of one host no more is told: with a thousand constraints, nobody reads them all.
const FAILS_KEPT: usize = 8;

/// Replicas of the workload under each value of the labels that its spec counts by.
struct Under<'a>(BTreeMap<(&'a str, &'a str), u32>);

impl<'a> Under<'a> {
    fn of(on: &Standpoint<'a>) -> Self {
        Self::labels(on, on.spec.spread.iter().chain(distinct_labels(on.spec)))
    }

    /// As far as filters count: scores need more.
    fn distinct(on: &Standpoint<'a>) -> Self {
        Self::labels(on, distinct_labels(on.spec))
    }

    fn labels(on: &Standpoint<'a>, labels: impl Iterator<Item = &'a String>) -> Self {
        let labels: BTreeSet<&String> = labels.filter(|label| *label != HOST).collect();
        let mut under = BTreeMap::new();
        if labels.is_empty() {
            return Self(under);
        }
        for (id, host) in &on.cluster.hosts {
            let mut count = None;
            for label in &labels {
                let class = on.cluster.classes.get(host.class);
                if let Some((label, value)) = class.and_then(|one| one.labels.get_key_value(*label))
                {
                    let count = *count.get_or_insert_with(|| (on.count)(id, host));
                    *under.entry((label.as_str(), value.as_str())).or_default() += count;
                }
            }
        }
        Self(under)
    }

    fn count(&self, label: &str, value: &str) -> u32 {
        self.0.get(&(label, value)).copied().unwrap_or(0)
    }
}

fn distinct_labels(spec: &WorkloadSpec) -> impl Iterator<Item = &String> {
    spec.constraints.iter().filter_map(|one| match one {
        Constraint::Distinct { distinct, .. } => Some(distinct),
        Constraint::Label { .. } => None,
    })
}

fn label_of<'a>(cluster: &'a Cluster, host: &Host, label: &str) -> Option<&'a String> {
    cluster.classes.get(host.class)?.labels.get(label)
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
pub(crate) fn all_against_class<'a>(
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

/// The weights that match in a class, but for those on the name.
pub(crate) fn class_affinity(spec: &WorkloadSpec, class: &Class) -> i64 {
    let wishes = spec.affinity.iter().filter(|wish| wish.label != HOST);
    wishes
        .filter(|wish| {
            passes(
                &wish.test,
                class.labels.get(&wish.label).map(String::as_str),
            )
        })
        .map(|wish| i64::from(wish.weight))
        .sum()
}

/// The weights that match a name.
pub(crate) fn name_affinity(spec: &WorkloadSpec, name: &str) -> i64 {
    let wishes = spec.affinity.iter().filter(|wish| wish.label == HOST);
    wishes
        .filter(|wish| passes(&wish.test, Some(name)))
        .map(|wish| i64::from(wish.weight))
        .sum()
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

fn score(
    on: &Standpoint<'_>,
    under: &Under<'_>,
    id: &HostId,
    host: &Host,
    failed: &[HostId],
) -> Scored {
    let mut parts = BTreeMap::new();
    let goes = on.goes.and_then(|id| Some((id, on.cluster.hosts.get(id)?)));
    let crowd: i64 = on
        .spec
        .spread
        .iter()
        .collect::<BTreeSet<_>>()
        .into_iter()
        .map(|label| {
            let (count, goes) = if label == HOST {
                ((on.count)(id, host), on.goes == Some(id))
            } else {
                let value = label_of(on.cluster, host, label);
                let same =
                    |(_, other)| value.is_some() && label_of(on.cluster, other, label) == value;
                (
                    value.map_or(0, |value| under.count(label, value)),
                    goes.is_some_and(same),
                )
            };
            i64::from(count.saturating_sub(u32::from(goes)))
        })
        .sum();
    parts.insert("spread", -CROWD * crowd);
    let class = on.cluster.classes.get(host.class);
    let affinity = class.map_or(0, |class| class_affinity(on.spec, class))
        + name_affinity(on.spec, host.info().name.as_str());
    if affinity != 0 {
        parts.insert("affinity", affinity);
    }
    let here = || (on.count)(id, host) > 0;
    if cached::lies_on(on.cluster, (on.key, on.spec), host.number) && !here() {
        parts.insert("cached", cached::CACHED);
    }
    let load = (on.used)(id, host).load(Booked::of_host(host));
    let pack = on.spec.spread.is_empty();
    if pack {
        parts.insert("packed", i64::from(load / (FULL / 10)));
    } else {
        parts.insert("free", i64::from((FULL - load) / (FULL / 10)));
    }
    if failed.contains(id) {
        parts.insert("failed", FAILED);
    }
    Scored {
        host: id.clone(),
        name: host.info().name.clone(),
        total: parts.values().sum(),
        load: if pack { -(load as i32) } else { load as i32 },
        parts,
    }
}

/// A host where the slot failed is taken only when no other has room: shown as more than a crowd weighs.
const FAILED: i64 = -1_000_000;
