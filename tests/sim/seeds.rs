//! Running seeds: one as a timeline, or many on all cores.
//!
//! `WASMORCH_SIM_SEED` replays one seed; `WASMORCH_SIM_SEEDS` says how many are run (2,000 unless
//! set), from `WASMORCH_SIM_FROM` (0 unless set).

#![allow(clippy::print_stdout, reason = "a test that reports what it has run")]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use super::bent::Bent;
use super::law::{Broken, Law};
use super::world::World;

/// CI runs so many.
const SEEDS: u64 = 2_000;

/// A law that was broken.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    pub(crate) seed: u64,
    pub(crate) broken: Broken,
    pub(crate) seconds: f64,
}

/// How a run ended.
pub(crate) struct Ran {
    pub(crate) failure: Option<Failure>,
    pub(crate) steps: u64,
    pub(crate) fingerprint: u64,
    /// See `World::judged`.
    judged: bool,
}

/// How many seeds end with what is wanted, judged and not excused, of a hundred: fewer, and some excuse has
/// grown too wide for the laws of liveness to mean anything.
const JUDGED_LEAST: u64 = 30;

/// What many runs came to.
#[derive(Debug, Default)]
pub(crate) struct Sum {
    /// The one of the lowest seed, of those that count.
    pub(crate) failure: Option<Failure>,
    /// So many failures do not count.
    pub(crate) beside: u64,
    steps: u64,
    judged: u64,
}

/// Runs one seed.
pub(crate) fn run(seed: u64, bent: Option<Bent>, tell: bool) -> Ran {
    let mut world = World::new(seed, bent, tell);
    let panicked = catch_unwind(AssertUnwindSafe(|| world.run())).err();
    let broken = world.broken.clone();
    let broken = broken.or_else(|| Law::Panic.by(panicked.map(|what| words_of(&*what))));
    let seconds = (world.now - super::world::EPOCH) as f64 / 1_000.0;
    Ran {
        failure: broken.map(|broken| Failure {
            seed,
            broken,
            seconds,
        }),
        steps: world.steps,
        fingerprint: world.fingerprint,
        judged: world.judged,
    }
}

fn words_of(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
    text.unwrap_or_default()
}

/// Runs seeds on all cores until one fails in a way that counts; the lowest that did. `prepare` is
/// called on each thread first.
pub(crate) fn run_all(
    from: u64,
    count: u64,
    bent: Option<Bent>,
    prepare: &(dyn Fn() + Sync),
    counts: &(dyn Fn(Law) -> bool + Sync),
) -> Sum {
    // To see how many seeds fail of what, not only the first.
    let go_on = number("WASMORCH_SIM_GO_ON").is_some();
    let beside = AtomicU64::new(0);
    let next = AtomicU64::new(from);
    let over = AtomicBool::new(false);
    let (steps, judged) = (AtomicU64::new(0), AtomicU64::new(0));
    let failed: Mutex<Option<Failure>> = Mutex::new(None);
    let threads = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                prepare();
                while !over.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= from + count {
                        return;
                    }
                    let ran = run(seed, bent, false);
                    steps.fetch_add(ran.steps, Ordering::Relaxed);
                    judged.fetch_add(u64::from(ran.judged), Ordering::Relaxed);
                    if let Some(failure) = ran.failure {
                        if go_on {
                            println!("seed {}: {}", failure.seed, failure.broken);
                        }
                        if !counts(failure.broken.law) {
                            beside.fetch_add(1, Ordering::Relaxed);
                            continue;
                        }
                        if !go_on {
                            over.store(true, Ordering::Relaxed);
                        }
                        let mut first = failed.lock().unwrap_or_else(PoisonError::into_inner);
                        if first.as_ref().is_none_or(|one| one.seed > failure.seed) {
                            *first = Some(failure);
                        }
                    }
                }
            });
        }
    });
    Sum {
        failure: failed.into_inner().unwrap_or_else(PoisonError::into_inner),
        beside: beside.into_inner(),
        steps: steps.into_inner(),
        judged: judged.into_inner(),
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn commit() -> String {
    let git = std::process::Command::new("git")
        .args(["rev-parse", "--short", "HEAD"])
        .output();
    git.map_or_else(
        |_| "unknown".into(),
        |out| String::from_utf8_lossy(&out.stdout).trim().to_owned(),
    )
}

fn report(failure: &Failure) -> String {
    format!(
        "seed {} broke a law after {:.3} virtual seconds, at commit {}:\n  {}\nreplay it step by step: cargo xtask sim --seed {}",
        failure.seed,
        failure.seconds,
        commit(),
        failure.broken,
        failure.seed
    )
}

#[test]
fn every_seed_keeps_the_laws() {
    if let Some(seed) = number("WASMORCH_SIM_SEED") {
        let ran = run(seed, None, true);
        if let Some(failure) = ran.failure {
            panic!("{}", report(&failure));
        }
        println!("seed {seed} keeps every law, in {} steps", ran.steps);
        return;
    }
    let (from, count) = (
        number("WASMORCH_SIM_FROM").unwrap_or(0),
        number("WASMORCH_SIM_SEEDS").unwrap_or(SEEDS),
    );
    let began = Instant::now();
    let Sum {
        failure,
        steps,
        judged,
        ..
    } = run_all(from, count, None, &|| {}, &|_| true);
    let seconds = began.elapsed().as_secs_f64();
    println!(
        "{count} seeds, {steps} steps in {seconds:.1} s: {:.0} seeds a second; in {judged} of them it was \
         judged, and not excused, that what is wanted runs",
        count as f64 / seconds
    );
    if let Some(failure) = failure {
        panic!("{}", report(&failure));
    }
    // Of a few seeds it says little.
    assert!(
        count < 100 || judged * 100 >= count * JUDGED_LEAST,
        "{judged} of {count} seeds were judged, fewer than {JUDGED_LEAST} %"
    );
}

#[test]
fn a_seed_decides_everything() {
    for seed in [3, 14] {
        let (first, second) = (run(seed, None, false), run(seed, None, false));
        assert_eq!(
            (first.steps, first.fingerprint),
            (second.steps, second.fingerprint)
        );
    }
}
