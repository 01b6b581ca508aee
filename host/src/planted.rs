//! Bugs that a test can switch on, one at a time, to show that the simulator catches them.
//!
//! Owns the switch. Without the feature `planted` every question is answered `false` at compile time:
//! nothing of it is in a released binary.

/// What can be wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// A set of a deposed leader is obeyed.
    TermIgnored,
    /// A set of the same term is obeyed whoever wrote it.
    EqualTermAccepted,
    /// An older set is applied over a newer one.
    SequenceNotChecked,
    /// No set in the store is taken for an empty one.
    MissingKeyIsEmpty,
    /// Every failure is forgiven at once.
    BackoffReset,
    /// A restarted daemon numbers its starts from one.
    StartsForgotten,
    /// A start number is not on disk before it is used.
    StartNotPersisted,
    /// What has left the set goes on running.
    DropIgnored,
    /// How a replica ended is not reported.
    EndNotTold,
    /// What must end when no leader hears the host goes on.
    StopAfterIgnored,
    /// What must not run twice starts without a leader's word.
    StartsOffline,
    /// A workload starts again before what one of its name left has been removed.
    DataNotWaited,
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
