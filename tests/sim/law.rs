//! The names of all that a run can break: who plants a bug says by which of these it is to be caught.
//!
//! Owns the names alone; what each means is written where it is looked at.

use wasmorch_planner::check::BrokenRule;

/// One law.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Law {
    // Of plans, by the planner's own checker.
    OverCapacity,
    BadHost,
    TooMany,
    TooFew,
    WrongReason,
    OverQuota,
    PreemptedByNone,
    CrowdedSlot,
    Twice,
    CrowdedHost,
    PortTaken,
    WithoutFeature,
    NumberTwice,
    Held,
    NoRevision,
    TooLarge,
    LaterTerm,
    HoldsLater,
    Falls,

    // Of plans, by books of the simulator's own.
    /// Nothing is decided of a host that has not spoken.
    Unspoken,
    /// A host is dead after so much silence, and not before.
    DeadWindow,
    /// What is lost is replaced when its `disconnect` says so.
    LostAfter,
    /// Hosts that fall silent together are replaced one a minute.
    MassSilence,
    /// Nothing starts on hosts that take nothing new.
    Closed,
    /// What moves leaves enough behind, and goes for a reason.
    Moves,
    /// How a revision answers decides about it.
    Answers,
    Quota,
    Preemption,
    /// Every time of a schedule is begun once, and counts what truly ended.
    Runs,
    Canary,
    OnePerHost,
    /// Ports, and what a host must have.
    Claims,
    /// What waits for others waits.
    Dependencies,
    /// What was deployed together ends together.
    Together,
    /// A count stays within its bounds.
    Bounds,
    /// A paused rollout does not move on by itself.
    Paused,

    // Of the store, of who leads, and of what is lost.
    TermsGrow,
    OneLease,
    OnlyTheLeaderWrites,
    /// A set is what its plan says.
    SetsAreWhole,
    SetTerms,
    /// A placement's number means one thing for ever.
    NumbersMeanOne,
    RevisionsAreStored,
    OneSuccessor,
    Acknowledged,
    FreezesForAReason,
    FrozenIsStill,
    /// A leader that has heard what the store lost changes nothing.
    FreezesOnLoss,

    // Of hosts.
    /// Which sets are obeyed.
    Obeys,
    StartsWanted,
    /// What is wanted is not ended.
    EndsUnwanted,
    /// What no leader hears of ends in time, and is not started.
    Silence,
    RunsOnce,
    OnDisk,
    /// A replica's id is given once.
    IdsOnce,
    /// A placement is not started for ever.
    Tries,
    Readiness,
    DataKept,

    // When all is well again.
    /// There is one leader, and it answers.
    Leads,
    /// As many run as are wanted, of the revision that is wanted.
    Running,
    /// What does not run is explained, and the reason is true.
    Explained,
    EveryHost,
    CountFollows,
    RolloutEnds,
    RunEnds,
    /// Nothing runs from before a restart.
    Restarted,
    Emptied,
    NothingStray,
    DataGone,
    HostsSettle,
    /// It rests: nothing is planned or written any more.
    Rests,

    /// The code under test panicked.
    Panic,
}

/// A law that was broken, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Broken {
    pub(crate) law: Law,
    pub(crate) how: String,
}

impl Law {
    /// It is broken in this way, if in any.
    pub(crate) fn by(self, how: impl Into<Option<String>>) -> Option<Broken> {
        how.into().map(|how| Broken { law: self, how })
    }

    pub(crate) const fn of(rule: &BrokenRule) -> Self {
        match rule {
            BrokenRule::OverCapacity { .. } => Self::OverCapacity,
            BrokenRule::BadHost { .. } => Self::BadHost,
            BrokenRule::TooMany { .. } => Self::TooMany,
            BrokenRule::TooFew { .. } => Self::TooFew,
            BrokenRule::WrongReason { .. } => Self::WrongReason,
            BrokenRule::OverQuota { .. } => Self::OverQuota,
            BrokenRule::PreemptedByNone { .. } => Self::PreemptedByNone,
            BrokenRule::CrowdedSlot { .. } => Self::CrowdedSlot,
            BrokenRule::Twice { .. } => Self::Twice,
            BrokenRule::CrowdedHost { .. } => Self::CrowdedHost,
            BrokenRule::PortTaken { .. } => Self::PortTaken,
            BrokenRule::WithoutFeature { .. } => Self::WithoutFeature,
            BrokenRule::NumberTwice { .. } => Self::NumberTwice,
            BrokenRule::Held { .. } => Self::Held,
            BrokenRule::NoRevision { .. } => Self::NoRevision,
            BrokenRule::TooLarge { .. } => Self::TooLarge,
            BrokenRule::LaterTerm { .. } => Self::LaterTerm,
            BrokenRule::HoldsLater { .. } => Self::HoldsLater,
            BrokenRule::Falls { .. } => Self::Falls,
        }
    }
}

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}: {}", self.law, self.how)
    }
}
