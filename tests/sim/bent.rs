//! Bugs of the simulated shell and store, one at a time, to see the simulator catch them.
//!
//! The planner's and the agent's own planted bugs are in their crates, behind the feature `planted`.

/// What is wrong with this world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bent {
    /// The store does not look at the fence of a batch.
    FenceLeftOut,
    /// The user is told before the store has acknowledged.
    AckBeforeStored,
    /// A batch whose outcome is unknown counts as not stored, and the term goes on.
    UnknownTakenAsNotStored,
    /// A host that is behind is not told.
    SyncNotAsked,
    /// A candidate takes a lease that another holds.
    LeaseNotWatched,
    /// A leader goes on whatever its guard says.
    GuardIgnored,
}
