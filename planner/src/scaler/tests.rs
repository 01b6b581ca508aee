//! The arithmetic, and what must hold under any load: bounded, no oscillation under a constant load,
//! converges.

use proptest::prelude::*;
use wasmorch_api::{HumanDuration, Share};

use super::*;

/// Replicas that become ready a while after they are wanted, under a load that all of them share.
struct Stage {
    scaler: Scaler,
    scale: Scale,
    now: Timestamp,
    desired: u32,
    ready: u32,
    /// Seconds until what is wanted is ready.
    lag: u64,
    due: VecDeque<(Timestamp, u32)>,
    load: u64,
    placed: bool,
    allowed: u32,
    /// Every judgement that changed something.
    changes: Vec<(Timestamp, Verdict)>,
    whole: bool,
}

fn scale(min: u32, max: u32, target: u32) -> Scale {
    Scale {
        min,
        max,
        target: [("concurrency".to_owned(), target)].into(),
        window: HumanDuration::secs(30),
        panic: HumanDuration::secs(6),
        tolerance: Share(10_000),
    }
}

impl Stage {
    fn new(scale: Scale, desired: u32) -> Self {
        Self {
            scaler: Scaler::default(),
            scale,
            now: Timestamp(1_000_000),
            desired,
            ready: desired,
            lag: 1,
            due: VecDeque::new(),
            load: 0,
            placed: true,
            allowed: u32::MAX,
            changes: Vec::new(),
            whole: true,
        }
    }

    fn second(&mut self) {
        self.now.0 += 1_000;
        while self.due.front().is_some_and(|(at, _)| *at <= self.now) {
            self.ready = self.due.pop_front().map_or(self.ready, |(_, ready)| ready);
        }
        let load = Load {
            in_flight: self.load,
            ..Load::default()
        };
        let window = self.scale.window.0;
        self.scaler.sample(self.now, load, self.whole, window);
        if !self.now.0.is_multiple_of(2_000) {
            return;
        }
        let standing = Standing {
            scale: &self.scale,
            kind: Kind::Http,
            cpu_millis: 1_000,
            desired: self.desired,
            ready: self.ready,
            placed: self.placed,
            may_rest: true,
            allowed: self.allowed,
        };
        let Some(verdict) = self.scaler.judge(&standing, self.now) else {
            return;
        };
        self.lawful(&verdict);
        if verdict.to != self.desired {
            self.desired = verdict.to;
            let at = self.now.after(Duration::from_secs(self.lag));
            self.due.push_back((at, verdict.to));
            self.changes.push((self.now, verdict));
        }
    }

    /// What holds for every judgement.
    fn lawful(&self, verdict: &Verdict) {
        let (from, to) = (verdict.from, verdict.to);
        let bounds = self.scale.min..=self.scale.max;
        assert!(bounds.contains(&to), "out of bounds: {verdict:?}");
        let inside = bounds.contains(&from);
        if to > from && inside {
            let pace = (2 * self.ready).max(self.ready + 4);
            assert!(to <= pace, "too fast: {verdict:?}");
            assert!(self.placed && to <= self.allowed, "no place: {verdict:?}");
        }
        if to < from && inside {
            assert!(to >= from / 2, "too fast: {verdict:?}");
            assert!(!verdict.panic, "lowered in panic: {verdict:?}");
            assert!(self.whole, "lowered unheard: {verdict:?}");
        }
    }

    fn seconds(&mut self, many: u64) {
        for _ in 0..many {
            self.second();
        }
    }

    fn needed(&self) -> u32 {
        let each = u64::from(self.scale.target["concurrency"]);
        let needed = self.load.div_ceil(each);
        self.scale.within(u32::try_from(needed).unwrap_or(u32::MAX))
    }

    /// As many as needed, or a few less that the tolerance bears.
    fn is_settled(&self) -> bool {
        let carries = u64::from(self.desired) * u64::from(self.scale.target["concurrency"]);
        self.desired <= self.needed()
            && (self.desired == self.needed() || self.load * 10 <= carries * 11)
    }
}

#[test]
fn a_burst_is_followed_at_once_and_forgotten_slowly() {
    let mut stage = Stage::new(scale(1, 20, 10), 2);
    stage.load = 10;
    stage.seconds(60);
    assert_eq!(stage.desired, 1, "one carries it");
    stage.load = 100;
    stage.seconds(14);
    assert_eq!(stage.desired, 10, "{:?}", stage.changes);
    let said: Vec<_> = { stage.changes.iter() }
        .map(|(_, verdict)| verdict.reason.as_str())
        .collect();
    insta::assert_snapshot!(said.join("\n"));
    stage.load = 5;
    stage.changes.clear();
    stage.seconds(15);
    assert_eq!(stage.desired, 10, "it panicked not a window ago");
    stage.seconds(60);
    assert_eq!(stage.desired, 1);
    let steps: Vec<u32> = stage
        .changes
        .iter()
        .map(|(_, verdict)| verdict.to)
        .collect();
    assert!(
        steps.len() >= 3 && steps.is_sorted_by(|a, b| a > b),
        "{steps:?}"
    );
}

#[test]
fn a_slow_rise_needs_no_panic() {
    let mut stage = Stage::new(scale(1, 50, 10), 10);
    for load in 100..300 {
        stage.load = load;
        stage.second();
    }
    assert!(stage.changes.iter().all(|(_, verdict)| !verdict.panic));
    stage.seconds(60);
    assert!(stage.is_settled(), "{}", stage.desired);
}

#[test]
fn a_slow_decrease_keeps_no_more_than_needed() {
    let mut stage = Stage::new(scale(1, 50, 10), 40);
    for load in (0..=400).rev() {
        stage.load = load;
        // A replica less is needed every 40 s: no step is ever beyond the tolerance.
        stage.seconds(4);
        let waits = stage.desired - stage.needed().min(stage.desired);
        assert!(
            waits <= 3,
            "{} of {} at {load}",
            stage.desired,
            stage.needed()
        );
    }
    stage.seconds(70);
    assert_eq!(stage.desired, 1);
}

#[test]
fn nothing_is_lowered_before_a_whole_window_was_heard() {
    let mut stage = Stage::new(scale(1, 50, 10), 40);
    stage.seconds(29);
    assert_eq!(stage.desired, 40);
    // Somebody is missing for a moment: from then on.
    stage.whole = false;
    stage.second();
    stage.whole = true;
    stage.seconds(29);
    assert_eq!(stage.desired, 40);
    stage.seconds(4);
    assert!(stage.desired < 40);
    // The leader stood still.
    let before = stage.desired;
    stage.now.0 += 60_000;
    stage.seconds(29);
    assert_eq!(stage.desired, before);
    stage.seconds(30);
    assert_eq!(stage.desired, 1);
}

#[test]
fn what_cannot_be_placed_is_not_added_to() {
    let mut stage = Stage::new(scale(1, 50, 10), 5);
    stage.load = 400;
    stage.placed = false;
    stage.seconds(60);
    assert_eq!(stage.desired, 5);
    stage.placed = true;
    stage.allowed = 12;
    stage.seconds(60);
    assert_eq!(stage.desired, 12, "the quota");
    stage.allowed = u32::MAX;
    // Who never becomes ready is added to once, and not for ever.
    stage.lag = 1_000_000;
    stage.seconds(60);
    assert_eq!((stage.ready, stage.desired), (12, 24));
}

#[test]
fn other_settings_keep_what_is_known() {
    let mut stage = Stage::new(scale(1, 50, 10), 5);
    stage.load = 50;
    stage.seconds(60);
    stage.load = 200;
    stage.seconds(8);
    assert_eq!(stage.desired, 20);
    stage.load = 10;
    stage.seconds(4);
    // Still in panic, and the samples of the window are there.
    stage.scale.target = [("concurrency".to_owned(), 5)].into();
    stage.scale.max = 60;
    stage.seconds(2);
    assert!(stage.desired >= 20, "{}", stage.desired);
    stage.seconds(80);
    assert_eq!(stage.desired, 2);
    stage.scale.target = [("requests_per_second".to_owned(), 5)].into();
    stage.seconds(4);
    assert_eq!(stage.desired, 1, "its requests were known too");
}

#[test]
fn each_measure_has_its_unit() {
    let load = Load {
        in_flight: 30,
        cpu_millis: 900,
        request_millis: 450_000,
        pending: 4_001,
    };
    for (measure, target, to) in [
        ("concurrency", 10, 3),
        ("requests_per_second", 100, 5),
        // 900m of 500m each, of which 60 % is 300m.
        ("cpu", 60, 3),
        ("pending", 1_000, 5),
    ] {
        let mut scale = scale(1, 50, 1);
        scale.target = [(measure.to_owned(), target)].into();
        let mut scaler = Scaler::default();
        let now = Timestamp(1_000);
        scaler.sample(now, load, true, scale.window.0);
        let standing = Standing {
            scale: &scale,
            kind: Kind::Http,
            cpu_millis: 500,
            desired: 2,
            ready: 2,
            placed: true,
            may_rest: true,
            allowed: u32::MAX,
        };
        let verdict = scaler.judge(&standing, now).expect("something was heard");
        assert_eq!(verdict.to, to, "{verdict:?}");
    }
}

fn loads() -> impl Strategy<Value = Vec<(u64, u64)>> {
    prop::collection::vec((0u64..2_000, 1u64..90), 1..12)
}

proptest! {
    /// Whatever the load does, every judgement keeps the bounds and the pace (`Stage::lawful`); once it
    /// stays, the count comes to what is needed and stays too.
    #[test]
    fn bounded_and_converges(
        loads in loads(),
        bounds in (1u32..5, 1u32..60),
        target in 1u32..60,
        first in 1u32..80,
        lag in 0u64..8,
        window in 4u64..90,
    ) {
        let mut scale = scale(bounds.0, bounds.0 + bounds.1, target);
        scale.window = HumanDuration::secs(window);
        scale.panic = HumanDuration::secs((window / 5).max(1));
        let mut stage = Stage::new(scale, first);
        stage.lag = lag;
        for (load, seconds) in loads {
            stage.load = load;
            stage.seconds(seconds);
        }
        stage.seconds(4 * window + 120);
        prop_assert!(stage.is_settled(), "{} for {}", stage.desired, stage.load);
        stage.changes.clear();
        stage.seconds(3 * window);
        prop_assert!(stage.changes.is_empty(), "it moves: {:?}", stage.changes);
    }

    /// Under a constant load from the first moment it goes one way, and never past what is needed.
    #[test]
    fn no_oscillation_under_a_constant_load(
        load in 0u64..2_000,
        target in 1u32..60,
        first in 1u32..60,
        lag in 0u64..8,
    ) {
        let mut stage = Stage::new(scale(1, 60, target), first);
        (stage.load, stage.lag) = (load, lag);
        stage.seconds(300);
        let counts: Vec<u32> = stage.changes.iter().map(|(_, verdict)| verdict.to).collect();
        let up = counts.iter().all(|count| *count > first) && counts.is_sorted();
        let down = counts.iter().all(|count| *count < first) && counts.iter().rev().is_sorted();
        prop_assert!(up || down, "from {first}: {counts:?}");
        let needed = stage.needed();
        let past = |count: &u32| if first < needed { *count > needed } else { *count < needed };
        prop_assert!(!counts.iter().any(past), "past {needed}: {counts:?}");
        prop_assert!(stage.is_settled());
    }

    /// A load that trembles within the tolerance moves nothing up, however long.
    #[test]
    fn noise_does_not_raise(
        load in 100u64..2_000,
        target in 1u32..60,
        noise in prop::collection::vec(-4i64..=4, 200..400),
    ) {
        let mut stage = Stage::new(scale(1, 2_000, target), 10);
        stage.load = load;
        stage.seconds(200);
        stage.changes.clear();
        for percent in noise {
            stage.load = load.saturating_add_signed(percent * load as i64 / 100);
            stage.second();
        }
        let raised = stage.changes.iter().filter(|(_, verdict)| verdict.to > verdict.from);
        // A count that bears more than its target may just not bear the noise as well: once.
        prop_assert!(raised.count() <= 1, "{:?}", stage.changes);
    }
}
