//! Show that it bites: bugs planted on purpose, each caught within 2,000 seeds, and caught by a law that
//! it breaks. A failure of any other kind does not count: it would as well be there without the bug.
//!
//! Those of the simulated shell and store are always here. Those of the planner and of the agent are
//! in their code behind the feature `planted`:
//! `cargo test --workspace --features wasmorch-tests/planted --test all sim::planted`.

#![allow(
    clippy::print_stdout,
    reason = "a test that reports what it has caught"
)]

use super::bent::Bent;
use super::law::Law;
use super::seeds::run_all;

/// A bug that none of so many seeds catches has not been caught.
const SEEDS: u64 = 2_000;

fn caught(bug: &str, by: &[Law], bent: Option<Bent>, prepare: &(dyn Fn() + Sync)) -> bool {
    let sum = run_all(0, SEEDS, bent, prepare, &|law| by.contains(&law));
    let beside = sum.beside;
    match &sum.failure {
        Some(failure) => {
            let (seed, broken) = (failure.seed, &failure.broken);
            println!("{bug}: caught by seed {seed}: {broken} ({beside} beside)");
        }
        None => println!("{bug}: NOT CAUGHT in {SEEDS} seeds by any of {by:?} ({beside} beside)"),
    }
    sum.failure.is_some()
}

#[test]
fn bugs_of_the_shell_and_the_store_are_caught() {
    let bugs: [(Bent, &[Law]); 6] = [
        (Bent::FenceLeftOut, &[Law::OnlyTheLeaderWrites]),
        (Bent::AckBeforeStored, &[Law::Acknowledged]),
        (Bent::UnknownTakenAsNotStored, &[Law::NumbersMeanOne]),
        (Bent::SyncNotAsked, &[Law::Running]),
        (Bent::LeaseNotWatched, &[Law::OneLease]),
        (Bent::GuardIgnored, &[Law::FreezesOnLoss]),
    ];
    let missed: Vec<_> = bugs
        .into_iter()
        .filter(|(bent, by)| !caught(&format!("{bent:?}"), by, Some(*bent), &|| {}))
        .collect();
    assert!(missed.is_empty(), "not caught: {missed:?}");
}

#[cfg(feature = "planted")]
#[test]
fn bugs_of_the_planner_are_caught() {
    use wasmorch_planner::planted::{Bug, plant};
    #[rustfmt::skip]
    let bugs: [(Bug, &[Law]); 35] = [
        (Bug::StatusGapIgnored,       &[Law::Running]),
        (Bug::UnheardTakenAsGone,     &[Law::Unspoken]),
        (Bug::CordonIgnored,          &[Law::BadHost, Law::Closed]),
        (Bug::MaxUnavailableIgnored,  &[Law::TooFew, Law::Readiness]),
        (Bug::SuccessorNotAwaited,    &[Law::TooFew, Law::Readiness]),
        (Bug::DeadWindowZero,         &[Law::DeadWindow]),
        (Bug::MassSilenceIgnored,     &[Law::MassSilence]),
        (Bug::NumbersForgotten,       &[Law::NumbersMeanOne, Law::IdsOnce]),
        (Bug::DeadHostKept,           &[Law::Running, Law::EveryHost]),
        (Bug::GivenUpIgnored,         &[Law::Running, Law::RolloutEnds]),
        (Bug::SetsNotComplete,        &[Law::SetsAreWhole]),
        (Bug::SyncNotAsked,           &[Law::Running]),
        (Bug::MinAvailableForgotten,  &[Law::TooFew, Law::Moves]),
        (Bug::DeadlineForgotten,      &[Law::Emptied]),
        (Bug::LostAfterIgnored,       &[Law::LostAfter]),
        (Bug::ExclusiveNotAwaited,    &[Law::Twice, Law::RunsOnce]),
        (Bug::ReconcileKeepsBoth,     &[Law::Running]),
        (Bug::JoinedForgotten,        &[Law::EveryHost]),
        (Bug::CompletionCountedTwice, &[Law::Runs]),
        (Bug::ScheduledForgotten,     &[Law::Runs]),
        (Bug::CanaryNotWatched,       &[Law::Canary]),
        (Bug::EqualPreempted,         &[Law::PreemptedByNone, Law::Preemption]),
        (Bug::QuotaIgnored,           &[Law::OverQuota, Law::Quota]),
        (Bug::MinAvailableIgnored,    &[Law::TooFew, Law::Preemption]),
        (Bug::OldLoadKept,            &[Law::CountFollows]),
        (Bug::VerdictIgnored,         &[Law::Answers]),
        (Bug::AnswersNotAwaited,      &[Law::Answers]),
        (Bug::PortsIgnored,           &[Law::PortTaken, Law::Claims]),
        (Bug::DependencyNotAwaited,   &[Law::Held, Law::Dependencies]),
        (Bug::OthersStay,             &[Law::Together, Law::RolloutEnds]),
        (Bug::PauseIgnored,           &[Law::Paused]),
        (Bug::RestartForgotten,       &[Law::Restarted]),
        (Bug::GrantIgnored,           &[Law::RunsOnce]),
        (Bug::RollbackForgotten,      &[Law::Acknowledged]),
        (Bug::ConstraintsIgnored,     &[Law::Claims]),
    ];
    let missed: Vec<_> = bugs
        .into_iter()
        .filter(|(bug, by)| !caught(&format!("{bug:?}"), by, None, &|| plant(Some(*bug))))
        .collect();
    assert!(missed.is_empty(), "not caught: {missed:?}");
}

#[cfg(feature = "planted")]
#[test]
fn bugs_of_the_agent_are_caught() {
    use wasmorch_host::planted::{Bug, plant};
    #[rustfmt::skip]
    let bugs: [(Bug, &[Law]); 12] = [
        (Bug::TermIgnored,        &[Law::Obeys]),
        (Bug::EqualTermAccepted,  &[Law::Obeys]),
        (Bug::SequenceNotChecked, &[Law::Obeys]),
        (Bug::MissingKeyIsEmpty,  &[Law::Obeys, Law::EndsUnwanted]),
        (Bug::BackoffReset,       &[Law::Tries]),
        (Bug::StartsForgotten,    &[Law::IdsOnce]),
        (Bug::StartNotPersisted,  &[Law::IdsOnce]),
        (Bug::DropIgnored,        &[Law::Running, Law::NothingStray]),
        (Bug::EndNotTold,         &[Law::Running]),
        (Bug::StopAfterIgnored,   &[Law::Silence]),
        (Bug::StartsOffline,      &[Law::Silence]),
        (Bug::DataNotWaited,      &[Law::DataKept]),
    ];
    let missed: Vec<_> = bugs
        .into_iter()
        .filter(|(bug, by)| !caught(&format!("{bug:?}"), by, None, &|| plant(Some(*bug))))
        .collect();
    assert!(missed.is_empty(), "not caught: {missed:?}");
}
