//! The verbs of the API and where each is asked.

/// What can be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    Deploy,
    Plan,
    List,
    Status,
    Scale,
    Stop,
    Start,
    Restart,
    Rm,
    History,
    Rollback,
    Rollout,
    Why,
    Quota,
    Hosts,
    Cordon,
    Uncordon,
    Drain,
    HostRm,
    Rebalance,
    Recover,
    Version,
}

/// Where a verb is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    /// In a namespace.
    Namespace,
    /// In the whole cluster (`_`).
    Cluster,
    /// In either.
    Both,
}

impl Verb {
    pub(super) const ALL: [Self; 22] = [
        Self::Deploy,
        Self::Plan,
        Self::List,
        Self::Status,
        Self::Scale,
        Self::Stop,
        Self::Start,
        Self::Restart,
        Self::Rm,
        Self::History,
        Self::Rollback,
        Self::Rollout,
        Self::Why,
        Self::Quota,
        Self::Hosts,
        Self::Cordon,
        Self::Uncordon,
        Self::Drain,
        Self::HostRm,
        Self::Rebalance,
        Self::Recover,
        Self::Version,
    ];

    /// The last token of its subject.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Deploy => "deploy",
            Self::Plan => "plan",
            Self::List => "list",
            Self::Status => "status",
            Self::Scale => "scale",
            Self::Stop => "stop",
            Self::Start => "start",
            Self::Restart => "restart",
            Self::Rm => "rm",
            Self::History => "history",
            Self::Rollback => "rollback",
            Self::Rollout => "rollout",
            Self::Why => "why",
            Self::Quota => "quota",
            Self::Hosts => "hosts",
            Self::Cordon => "cordon",
            Self::Uncordon => "uncordon",
            Self::Drain => "drain",
            Self::HostRm => "host-rm",
            Self::Rebalance => "rebalance",
            Self::Recover => "recover",
            Self::Version => "version",
        }
    }

    pub(crate) fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|verb| verb.as_str() == word)
    }

    /// Whether it may change anything.
    pub(crate) const fn writes(self) -> bool {
        !matches!(
            self,
            Self::Plan
                | Self::List
                | Self::Status
                | Self::History
                | Self::Why
                | Self::Hosts
                | Self::Version
        )
    }

    /// Whether what it writes may leave no record behind that could keep its answer.
    pub(crate) const fn leaves_no_record(self) -> bool {
        matches!(
            self,
            Self::Rm
                | Self::Quota
                | Self::Cordon
                | Self::Uncordon
                | Self::Drain
                | Self::HostRm
                | Self::Rebalance
                | Self::Recover
        )
    }

    /// Its place in [`Self::ALL`].
    pub(super) const fn index(self) -> usize {
        self as usize
    }

    pub(super) const fn scope(self) -> Scope {
        match self {
            Self::Hosts
            | Self::Cordon
            | Self::Uncordon
            | Self::Drain
            | Self::HostRm
            | Self::Rebalance
            | Self::Recover => Scope::Cluster,
            // `list` of `_` is every namespace; a host or a replica may be asked why anywhere.
            Self::List | Self::Why | Self::Version => Scope::Both,
            _ => Scope::Namespace,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_verb_stands_at_its_index() {
        for (index, verb) in Verb::ALL.into_iter().enumerate() {
            assert_eq!(verb.index(), index, "{verb:?}");
            assert_eq!(Verb::parse(verb.as_str()), Some(verb));
        }
        assert_eq!(Verb::parse("Deploy"), None);
    }
}
