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

mod filters;
mod labels;
mod scores;

use std::collections::{BTreeMap, BTreeSet};

use wasmorch_api::spec::Constraint;
use wasmorch_api::{HostId, Name, WorkloadKey, WorkloadSpec};

use crate::booked::Booked;
use crate::cluster::{Cluster, Host};
use crate::ports;

use filters::Filters;
pub(crate) use filters::{is_against_class, name_passes, needs, state};
use scores::score;
pub(crate) use scores::{class_affinity, name_affinity};

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

/// How a host that is there scores, whether or not it has room for one more.
pub(crate) fn score_on(on: &Standpoint<'_>, id: &HostId) -> Option<i64> {
    let host = on.cluster.hosts.get(id)?;
    let scored = state(host).is_none();
    scored.then(|| score(on, &Under::of(on), id, host, &[]).total)
}

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
