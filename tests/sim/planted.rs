//! Show that it bites: bugs planted on purpose, each caught within 2,000 seeds.
//!
//! Those of the simulated shell and store are always here. Those of the planner and of the agent are
//! in their code behind the feature `planted`:
//! `cargo test --workspace --features wasmorch-tests/planted --test all sim::planted`.

#![allow(
    clippy::print_stdout,
    reason = "a test that reports what it has caught"
)]

use super::bent::Bent;
use super::seeds::run_all;

/// A bug that none of so many seeds catches has not been caught.
const SEEDS: u64 = 2_000;

fn caught(bug: &str, bent: Option<Bent>, prepare: &(dyn Fn() + Sync)) -> bool {
    let failure = run_all(0, SEEDS, bent, prepare).failure;
    match &failure {
        Some(failure) => println!("{bug}: caught by seed {}: {}", failure.seed, failure.law),
        None => println!("{bug}: NOT CAUGHT in {SEEDS} seeds"),
    }
    failure.is_some()
}

#[test]
fn bugs_of_the_shell_and_the_store_are_caught() {
    let bugs = [
        Bent::FenceLeftOut,
        Bent::AckBeforeStored,
        Bent::UnknownTakenAsNotStored,
        Bent::SyncNotAsked,
    ];
    let missed: Vec<_> = bugs
        .into_iter()
        .filter(|bent| !caught(&format!("{bent:?}"), Some(*bent), &|| {}))
        .collect();
    assert!(missed.is_empty(), "not caught: {missed:?}");
}

#[cfg(feature = "planted")]
#[test]
fn bugs_of_the_planner_are_caught() {
    use wasmorch_planner::planted::{Bug, plant};
    let bugs = [
        Bug::StatusGapIgnored,
        Bug::UnheardTakenAsGone,
        Bug::CordonIgnored,
        Bug::MaxUnavailableIgnored,
        Bug::SuccessorNotAwaited,
        Bug::DeadWindowZero,
        Bug::MassSilenceIgnored,
        Bug::NumbersForgotten,
        Bug::DeadHostKept,
        Bug::GivenUpIgnored,
        Bug::SetsNotComplete,
        Bug::SyncNotAsked,
        Bug::MinAvailableForgotten,
        Bug::DeadlineForgotten,
        Bug::LostAfterIgnored,
        Bug::ExclusiveNotAwaited,
        Bug::ReconcileKeepsBoth,
        Bug::JoinedForgotten,
        Bug::CompletionCountedTwice,
        Bug::ScheduledForgotten,
        Bug::CanaryNotWatched,
        Bug::EqualPreempted,
        Bug::QuotaIgnored,
        Bug::MinAvailableIgnored,
        Bug::OldLoadKept,
        Bug::VerdictIgnored,
        Bug::AnswersNotAwaited,
        Bug::PortsIgnored,
        Bug::DependencyNotAwaited,
        Bug::OthersStay,
    ];
    let missed: Vec<_> = bugs
        .into_iter()
        .filter(|bug| !caught(&format!("{bug:?}"), None, &|| plant(Some(*bug))))
        .collect();
    assert!(missed.is_empty(), "not caught: {missed:?}");
}

#[cfg(feature = "planted")]
#[test]
fn bugs_of_the_agent_are_caught() {
    use wasmorch_host::planted::{Bug, plant};
    let bugs = [
        Bug::TermIgnored,
        Bug::EqualTermAccepted,
        Bug::SequenceNotChecked,
        Bug::MissingKeyIsEmpty,
        Bug::BackoffReset,
        Bug::StartsForgotten,
        Bug::StartNotPersisted,
        Bug::DropIgnored,
        Bug::EndNotTold,
        Bug::StopAfterIgnored,
        Bug::StartsOffline,
        Bug::DataNotWaited,
    ];
    let missed: Vec<_> = bugs
        .into_iter()
        .filter(|bug| !caught(&format!("{bug:?}"), None, &|| plant(Some(*bug))))
        .collect();
    assert!(missed.is_empty(), "not caught: {missed:?}");
}
