//! Bugs that a test can switch on, one at a time, to show that the simulator catches them.
//!
//! Owns the switch. Without the feature `planted` every question is answered `false` at compile time:
//! nothing of it is in a released binary.

/// What can be wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// A report that follows a lost one is taken as if none were lost.
    StatusGapIgnored,
    /// A new leader moves what runs on hosts that have not spoken yet.
    UnheardTakenAsGone,
    /// Cordoned hosts are given new replicas.
    CordonIgnored,
    /// A rollout takes as many old replicas as it likes.
    MaxUnavailableIgnored,
    /// The old replica ends before its successor is ready.
    SuccessorNotAwaited,
    /// A host is dead the moment it is silent.
    DeadWindowZero,
    /// However many hosts fall silent together, all of them are replaced at once.
    MassSilenceIgnored,
    /// A removed workload that comes back begins its numbers anew.
    NumbersForgotten,
    /// What a dead host ran is never replaced.
    DeadHostKept,
    /// A host that has given a placement up is waited for.
    GivenUpIgnored,
    /// A set names only what its plan touches.
    SetsNotComplete,
    /// A host that is behind is not told.
    SyncNotAsked,
    /// A drain takes as many replicas as it likes.
    MinAvailableForgotten,
    /// A drain's deadline is not kept.
    DeadlineForgotten,
    /// A replica is replaced as soon as its host is dead.
    LostAfterIgnored,
    /// What must not run twice is started while another may still run.
    ExclusiveNotAwaited,
    /// An original and its replacement both stay.
    ReconcileKeepsBoth,
    /// What has one replica on every host does not follow the hosts.
    JoinedForgotten,
    /// A completion is counted again when its set could not be stored with the count.
    CompletionCountedTwice,
    /// A namespace may have whatever it wants.
    QuotaIgnored,
    /// An equal priority is pre-empted.
    EqualPreempted,
    /// Pre-emption takes the last ready replicas.
    MinAvailableIgnored,
    /// Two that listen on one port are placed on one host.
    PortsIgnored,
    /// A rollout begins before what it depends on is ready.
    DependencyNotAwaited,
    /// What was deployed together with what failed stays.
    OthersStay,
    /// A cron time is begun, and not noted as begun.
    ScheduledForgotten,
    /// A canary that fails while it bakes is promoted all the same.
    CanaryNotWatched,
    /// What a host once told of a workload's load counts for ever.
    OldLoadKept,
    /// However a new revision answers, nothing follows.
    VerdictIgnored,
    /// A new replica counts before its answers have been heard of.
    AnswersNotAwaited,
    /// A paused rollout goes on.
    PauseIgnored,
    /// What runs counts as new after a restart.
    RestartForgotten,
    /// A rollback rolls to where it was.
    RollbackForgotten,
    /// Constraints on labels bar no host.
    ConstraintsIgnored,
    /// Every start of a host may start what must not run twice.
    GrantIgnored,
}

#[cfg(feature = "planted")]
thread_local! {
    static PLANTED: std::cell::Cell<Option<Bug>> = const { std::cell::Cell::new(None) };
}

/// Switches a bug on for this thread, or all off.
#[cfg(feature = "planted")]
pub fn plant(bug: Option<Bug>) {
    PLANTED.set(bug);
}

/// Whether this bug is switched on.
#[cfg(feature = "planted")]
pub(crate) fn is(bug: Bug) -> bool {
    PLANTED.get() == Some(bug)
}

/// Whether this bug is switched on: never.
#[cfg(not(feature = "planted"))]
pub(crate) const fn is(_bug: Bug) -> bool {
    false
}
