//! How one placement stands: what its host says of it, and what this leader has heard of its host.

use wasmorch_api::status::HostState;
use wasmorch_api::{PlacementNumber, ReplicaState, Timestamp};

use crate::absent;
use crate::cluster::{Cluster, Host, Placed, Workload};
use crate::moves::Leaving;
use crate::planted::{self, Bug};

/// How one placement stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Its host is dead or was removed.
    Gone,
    /// Its host is dead, and is waited for.
    Away,
    /// Its host will not start it again.
    GivenUp,
    /// It ended well by itself and its policy leaves it so.
    Done,
    /// This leader has not heard from its host yet.
    Unheard,
    /// On its way.
    Starting,
    /// Running, and not ready since this moment (by the leader's clock).
    Unready(Timestamp),
    /// Ready since this moment (by the leader's clock).
    Ready(Timestamp),
}

/// One placement in a pass.
#[derive(Debug, Clone)]
pub(crate) struct Seat {
    pub(crate) number: PlacementNumber,
    pub(crate) placed: Placed,
    pub(crate) standing: Standing,
    /// At the wanted revision, and not told to be replaced by `restart`.
    pub(crate) fresh: bool,
    /// It is to run elsewhere.
    pub(crate) leaves: Option<Leaving>,
}

impl Seat {
    pub(crate) fn serves(&self) -> bool {
        matches!(self.standing, Standing::Ready(_))
    }

    /// Its host lives and has it on its way, or up.
    pub(crate) fn is_there(&self) -> bool {
        matches!(
            self.standing,
            Standing::Starting | Standing::Unready(_) | Standing::Ready(_)
        )
    }
}

pub(super) fn standing(
    cluster: &Cluster,
    host: Option<&Host>,
    (workload, number, placed): (&Workload, PlacementNumber, &Placed),
    now: Timestamp,
) -> Standing {
    let Some(host) = host else {
        // Removed by `host-rm`, or a leftover: nobody will ever speak for it.
        return if cluster.settled(now) {
            Standing::Gone
        } else {
            Standing::Unheard
        };
    };
    if host.boot.is_none() && host.state == HostState::Dead && !cluster.settled(now) {
        // To the leader before this one: it may be back, and is given the time to say so.
        return Standing::Unheard;
    }
    if host.state == HostState::Dead && !planted::is(Bug::DeadHostKept) {
        return if absent::is_away(workload, placed, host, now) {
            Standing::Away
        } else {
            Standing::Gone
        };
    }
    if !host.known() {
        if planted::is(Bug::UnheardTakenAsGone) {
            return Standing::Gone;
        }
        return Standing::Unheard;
    }
    let Some(known) = workload
        .reports
        .get(&number)
        .filter(|known| known.host == placed.host)
    else {
        return Standing::Starting;
    };
    let status = &known.status;
    match status.state {
        _ if status.given_up && !planted::is(Bug::GivenUpIgnored) => Standing::GivenUp,
        ReplicaState::Running if status.ready => Standing::Ready(known.ready_at.unwrap_or(now)),
        ReplicaState::Running => Standing::Unready(known.running_at.unwrap_or(now)),
        ReplicaState::Completed => Standing::Done,
        _ => Standing::Starting,
    }
}
