//! How many replicas a workload with `scale` needs: load and time in, a count and its reason out.
//!
//! Owns the memory of one workload (what its load was, whether it panics) and the arithmetic. It knows
//! no cluster: who is ready, what may grow and what a replica's cpu is are arguments.
//!
//! The model is that of Knative's autoscaler (serving, `pkg/autoscaler/scaling/autoscaler.go`): what is
//! needed is the mean load of all replicas over a *stable* window, by what one should carry, rounded up. When
//! the mean over the short *panic* window needs twice what is ready or more, it panics: until a stable window
//! after that it goes by the larger of both, and never down. The *tolerance* is that of Kubernetes'
//! HorizontalPodAutoscaler: within that share of the target nothing changes.
//!
//! Rules, in this order:
//! 1. Up: at once, but at most to twice what is ready, or four more (the default `scaleUp` policies of
//!    Kubernetes): who does not become ready is not added to for ever. Not while slots are unplaced.
//! 2. Down: only when the load of a whole stable window is known and nobody has raised the count in it (a
//!    person may know what is about to come), never below what the panic window needs, and to no less than half at a time (Knative's `max-scale-down-rate` of 2). Within the tolerance it
//!    goes down when the count has stood for a whole window: a load that falls slowly keeps no replica that
//!    is not needed.
//! 3. Within `min` and `max`, and within the namespace's quota.
//! 4. To zero only when nothing at all was asked of it in a whole stable window, whatever measure it goes
//!    by, and none is still starting: a request may wait for it. From zero nothing here brings it back: a request wakes it (`standby`).
//!
//! Left out of Knative's: the excess burst capacity, which only decides whether requests go through its
//! activator. Here every gateway and every replica queues.

use std::collections::VecDeque;
use std::time::Duration;

use serde::Serialize;
use wasmorch_api::spec::{Measure, Scale};
use wasmorch_api::status::Load;
use wasmorch_api::{Kind, Timestamp};

/// Panic when so many times what is ready is needed.
const PANIC_AT: u64 = 2;
/// Up to so many times what is ready, or to so many more.
const UP_TIMES: u32 = 2;
const UP_MORE: u32 = 4;
/// Down to no less than this part.
const DOWN_PART: u32 = 2;
/// Between two samples at most: beyond it something was not heard.
const GAP: Duration = Duration::from_secs(5);
/// A share is in thousandths of a percent.
const WHOLE: u64 = 100_000;

/// One look at the load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sample {
    at: Timestamp,
    load: Load,
}

/// What one workload's autoscaler remembers. Whatever its settings become, this stays: samples hold every
/// measure.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Scaler {
    samples: VecDeque<Sample>,
    /// Since when every host that may have had a part was heard.
    whole_since: Option<Timestamp>,
    /// When it last had reason to panic.
    panicked: Option<Timestamp>,
    /// The count, and since when it is that.
    stands: Option<(u32, Timestamp)>,
    /// When it was last raised, by whomever.
    raised: Option<Timestamp>,
}

/// What is to be judged.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Standing<'a> {
    /// The settings.
    pub scale: &'a Scale,
    /// What it does, for the words.
    pub kind: Kind,
    /// `resources.cpu`, thousandths of a core.
    pub cpu_millis: u64,
    /// How many are wanted.
    pub desired: u32,
    /// How many serve.
    pub ready: u32,
    /// None is waiting for a place.
    pub placed: bool,
    /// It has proven that it can serve, and may go to zero.
    pub may_rest: bool,
    /// How many the quota allows.
    pub allowed: u32,
}

/// How many are needed, and why.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Verdict {
    /// So many are wanted.
    pub from: u32,
    /// So many shall be.
    pub to: u32,
    /// So many serve.
    pub ready: u32,
    /// What it follows, as under `scale.target`.
    pub measure: &'static str,
    /// What one replica should carry.
    pub target: u32,
    /// The mean of all replicas together over the window.
    pub load: f64,
    /// That by what is ready.
    pub per_replica: f64,
    /// The window that decided.
    pub window_ms: u64,
    /// Whether it panics.
    pub panic: bool,
    /// What kept it from what the load needs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held_by: Option<&'static str>,
    /// For people.
    #[serde(skip)]
    pub reason: String,
}

/// A mean in thousandths of the measure's unit, as a fraction: nothing is rounded before it is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mean {
    sum: u128,
    many: u128,
}

impl Mean {
    /// How many replicas carry it.
    fn needs(self, each: u64) -> u64 {
        let needed = self.sum.div_ceil(self.many * u128::from(each.max(1)));
        u64::try_from(needed).unwrap_or(u64::MAX)
    }

    /// Against what so many replicas should carry, with `percent` of a hundred thousand of it.
    fn cmp_to(self, each: u64, replicas: u32, share: u64) -> std::cmp::Ordering {
        let carry = u128::from(each) * u128::from(replicas) * u128::from(share);
        (self.sum * u128::from(WHOLE)).cmp(&(carry * self.many))
    }

    fn units(self) -> f64 {
        self.sum as f64 / self.many as f64 / 1_000.0
    }
}

impl Scaler {
    /// Takes a look at the load: `whole` when everyone who may have a part in it was heard.
    pub(crate) fn sample(&mut self, now: Timestamp, load: Load, whole: bool, window: Duration) {
        let last = self.samples.back().map(|sample| sample.at);
        if last.is_some_and(|last| now <= last) {
            // The clock stands or went back.
            return;
        }
        if !whole || last.is_some_and(|last| now.since(last) > GAP) {
            self.whole_since = None;
        }
        if whole {
            self.whole_since.get_or_insert(now);
        }
        self.samples.push_back(Sample { at: now, load });
        // One that is older than the window shows that all of it was heard.
        while { self.samples.get(1) }.is_some_and(|second| now.since(second.at) >= window) {
            self.samples.pop_front();
        }
    }

    /// How many there shall be; `None` before anything was heard.
    pub(crate) fn judge(&mut self, on: &Standing<'_>, now: Timestamp) -> Option<Verdict> {
        let (measure, target) = on.scale.follows()?;
        let each = carries(measure, target, on.cpu_millis);
        let (window, short) = (on.scale.window.0, on.scale.panic.0);
        let stable = self.mean(measure, window, now)?;
        let burst = self.mean(measure, short, now)?;
        let since = match self.stands {
            Some((count, since)) if count == on.desired => since,
            before => {
                if before.is_some_and(|(count, _)| count < on.desired) {
                    self.raised = Some(now);
                }
                now
            }
        };
        self.stands = Some((on.desired, since));
        let tolerance = u64::from(on.scale.tolerance.0);
        let needs = |mean: Mean| {
            let needed = mean.needs(each);
            let bears = mean.cmp_to(each, on.desired, WHOLE + tolerance).is_le();
            let more = needed > u64::from(on.desired);
            let needed = if more && bears {
                u64::from(on.desired)
            } else {
                needed
            };
            u32::try_from(needed).unwrap_or(u32::MAX)
        };
        let (needed, at_once) = (needs(stable), needs(burst));
        if u64::from(at_once) >= PANIC_AT * u64::from(on.ready.max(1)) {
            self.panicked = Some(now);
        }
        let panics = |at: Timestamp| now.since(at) < window;
        let panic = self.panicked.is_some_and(panics);
        let wanted = if panic {
            needed.max(at_once).max(on.desired)
        } else {
            needed
        };
        let (to, held_by) = if wanted > on.desired {
            raise(on, wanted)
        } else if wanted < on.desired && self.may_lower(on, (stable, each), since, now) {
            let may_rest = on.may_rest && on.ready >= on.desired && self.idle(window, now);
            let least = u32::from(on.desired > 0 && !may_rest);
            lower(on, wanted.max(at_once.min(on.desired)).max(least))
        } else {
            (on.desired, None)
        };
        let to = on.scale.within(to);
        let (decided, over) = if to > on.desired && at_once > needed {
            (burst, short)
        } else {
            (stable, window)
        };
        let load = decided.units();
        let verdict = Verdict {
            from: on.desired,
            to,
            ready: on.ready,
            measure: measure.as_str(),
            target,
            load,
            per_replica: load / f64::from(on.ready.max(1)),
            window_ms: u64::try_from(over.as_millis()).unwrap_or(u64::MAX),
            panic,
            held_by,
            reason: String::new(),
        };
        let reason = words(&verdict, on, measure, over);
        Some(Verdict { reason, ..verdict })
    }

    /// The whole window is known, nobody has raised the count in it, and the load is not within the
    /// tolerance; or it has been for long.
    fn may_lower(
        &self,
        on: &Standing<'_>,
        (stable, each): (Mean, u64),
        since: Timestamp,
        now: Timestamp,
    ) -> bool {
        let window = on.scale.window.0;
        let first = self.samples.front().map(|sample| sample.at);
        let known = { self.whole_since.zip(first) }
            .is_some_and(|(whole, first)| now.since(whole.max(first)) >= window);
        let tolerance = u64::from(on.scale.tolerance.0);
        let less = WHOLE.saturating_sub(tolerance);
        let far = stable.cmp_to(each, on.desired, less).is_lt();
        let raised = self.raised.is_some_and(|at| now.since(at) < window);
        known && !raised && (far || now.since(since) >= window)
    }

    /// Nothing was asked of it in a window.
    fn idle(&self, window: Duration, now: Timestamp) -> bool {
        let within = |sample: &&Sample| now.since(sample.at) < window;
        let mut within = self.samples.iter().rev().take_while(within);
        within.all(|sample| {
            let load = sample.load;
            load.in_flight == 0 && load.request_millis == 0 && load.pending == 0
        })
    }

    /// The mean of the samples in a window; of the last one when none is in it.
    fn mean(&self, measure: Measure, window: Duration, now: Timestamp) -> Option<Mean> {
        let last = self.samples.back()?;
        let newest = std::iter::once(last);
        let earlier = self.samples.iter().rev().skip(1);
        let within = earlier.take_while(|sample| now.since(sample.at) < window);
        let (mut sum, mut many) = (0, 0);
        for sample in newest.chain(within) {
            sum += u128::from(thousandths(measure, sample.load));
            many += 1;
        }
        Some(Mean { sum, many })
    }
}

/// What one replica should carry, in thousandths of the unit.
fn carries(measure: Measure, target: u32, cpu_millis: u64) -> u64 {
    let target = u64::from(target.max(1));
    match measure {
        // Percent of so many thousandths of a core, in millionths of one.
        Measure::Cpu => cpu_millis.saturating_mul(target * 10).max(1),
        _ => target * 1_000,
    }
}

fn thousandths(measure: Measure, load: Load) -> u64 {
    match measure {
        Measure::Concurrency => load.in_flight.saturating_mul(1_000),
        Measure::RequestsPerSecond => load.request_millis,
        Measure::Cpu => load.cpu_millis.saturating_mul(1_000),
        Measure::Pending => load.pending.saturating_mul(1_000),
    }
}

fn raise(on: &Standing<'_>, wanted: u32) -> (u32, Option<&'static str>) {
    if !on.placed {
        return (on.desired, Some("unplaced"));
    }
    let pace = (on.ready.saturating_mul(UP_TIMES)).max(on.ready.saturating_add(UP_MORE));
    let limits = [(on.scale.max, "max"), (on.allowed, "quota"), (pace, "pace")];
    let (least, name) = limits
        .into_iter()
        .min_by_key(|(most, _)| *most)
        .unwrap_or((wanted, "max"));
    if wanted <= least {
        return (wanted, None);
    }
    (least.max(on.desired), Some(name))
}

fn lower(on: &Standing<'_>, wanted: u32) -> (u32, Option<&'static str>) {
    let limits = [(on.scale.min, "min"), (on.desired / DOWN_PART, "pace")];
    let (most, name) = limits
        .into_iter()
        .max_by_key(|(least, _)| *least)
        .unwrap_or((wanted, "min"));
    if wanted >= most {
        return (wanted, None);
    }
    (most.min(on.desired), Some(name))
}

/// "5 requests in hand per replica over 6s, target 2: 3 to 8, panic".
fn words(verdict: &Verdict, on: &Standing<'_>, measure: Measure, over: Duration) -> String {
    let what = match (measure, on.kind) {
        (Measure::Concurrency, Kind::Messages) => " messages in hand",
        (Measure::Concurrency, _) => " requests in hand",
        (Measure::RequestsPerSecond, _) => " requests a second",
        (Measure::Cpu, _) => "% of its cpu",
        (Measure::Pending, _) => " messages waiting",
    };
    let share = match measure {
        // Of thousandths of a core to percent of what one may use.
        Measure::Cpu => verdict.per_replica * 100.0 / on.cpu_millis.max(1) as f64,
        _ => verdict.per_replica,
    };
    let window = wasmorch_api::HumanDuration(over);
    let (target, from, to) = (verdict.target, verdict.from, verdict.to);
    let count = if from == to {
        format!("{to} wanted")
    } else {
        format!("{from} to {to}")
    };
    let held = match verdict.held_by {
        Some("max") => ", the most that scale allows",
        Some("min") => ", the least that scale allows",
        Some("quota") => ", what the namespace's quota allows",
        Some("unplaced") => ", while others have no place",
        Some(_) => ", for now",
        None => "",
    };
    let panic = if verdict.panic { ", panic" } else { "" };
    let share = tidy(share);
    format!("{share}{what} per ready replica over {window}, target {target}: {count}{held}{panic}")
}

/// A number as short as it says enough.
fn tidy(number: f64) -> String {
    if number >= 10.0 || (number - number.round()).abs() < 0.05 {
        format!("{number:.0}")
    } else {
        format!("{number:.1}")
    }
}

#[cfg(test)]
mod tests;
