//! What a host may run only while a leader hears it: workloads with `disconnect.stop_after`.
//!
//! Owns the host's side of law 4. Every heartbeat of a host that holds such a workload carries the
//! host's own time; the leader echoes it together with the sequence of the host's set that it knows. From
//! that time on, not from the echo's arrival, the host has `stop_after`: however late a message is, the
//! leader has heard the host no earlier than it was sent. The leader in turn replaces nothing before
//! the host was silent for its own detection and `lost_after`, which is longer.
//!
//! ```text
//!   host   beat(at) ........ at + stop_after: drain, half of what is left until lost_after at most
//!             \   ^ echo(at, sequence)
//!   leader     heard ....... heard + detection + lost_after: may be replaced
//! ```
//!
//! Invariants: the host's clock never goes back, and one that jumps ahead only ends things early.
//! What must not run twice (`runs_once`) starts only by an echo to this very start of the daemon,
//! and only by the very set that the echo names: so never offline, and by no set that a newer one has
//! replaced or that was meant for another start. What merely has `stop_after` may start offline, and has
//! `stop_after` from the daemon's start.

use wasmorch_api::messages::HeardNote;
use wasmorch_api::{BootId, Term, Timestamp, WorkloadSpec};

use super::{Agent, PlacementKey, Timer};
use crate::planted::{self, Bug};
use crate::runner::protocol::ReplicaKey;

/// What the leader has last said of hearing this host.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Lease {
    /// The host's own time in the latest heartbeat that was echoed.
    at: Option<Timestamp>,
    /// The sequence of the host's set, as the leader knew it then.
    sequence: u64,
    /// The daemon's start, as soon as it knows the time.
    born: Option<Timestamp>,
}

impl Agent {
    /// The first time that is known is the daemon's start.
    pub(super) fn note_time(&mut self, now: Timestamp) {
        self.lease.born = self.lease.born.or(Some(now));
    }

    /// A leader has heard this host.
    pub(super) fn heard(
        &mut self,
        boot: &BootId,
        term: Term,
        (at, sequence): (Timestamp, u64),
        now: Timestamp,
    ) {
        if *boot != self.identity.boot || term < self.term().0 || at > now {
            return;
        }
        if self.lease.at.is_none_or(|known| known <= at) {
            self.lease.at = Some(at);
            self.lease.sequence = sequence;
        }
        let waiting: Vec<PlacementKey> = self
            .placements
            .iter()
            .filter(|(_, placement)| placement.waits_for_lease)
            .map(|(key, _)| key.clone())
            .collect();
        for key in waiting {
            self.prepare(&key, now);
        }
    }

    /// The replica stays assigned until a leader hears this host.
    pub(super) fn wait_for_lease(&mut self, key: &PlacementKey) {
        let Some(placement) = self.placements.get_mut(key) else {
            return;
        };
        placement.waits_for_lease = true;
        let Some(live) = placement.live_mut() else {
            return;
        };
        let why = match self.lease.sequence {
            HeardNote::NOTHING_ONCE => {
                "waits until what an earlier start of this host ran has surely ended"
            }
            _ => "waits until a leader hears this host (disconnect.stop_after)",
        };
        if live.explain(why) {
            let replica = ReplicaKey::new(key.workload.clone(), live.id);
            self.changed.insert(replica);
        }
    }

    /// Whether a heartbeat is to be echoed.
    pub(super) fn wants_echo(&self) -> bool {
        let mut revisions = self.fetches.revisions();
        revisions.any(|revision| revision.spec.disconnect.stop_after.is_some())
    }

    fn spec_of(&self, key: &PlacementKey) -> Option<&WorkloadSpec> {
        let placement = self.placements.get(key)?;
        let revision = self.fetches.revision(&key.workload, placement.revision)?;
        Some(&revision.spec)
    }

    /// Until when the placement may run; `None`: for ever. What is not known yet may not.
    fn runs_until(&self, key: &PlacementKey) -> Option<Timestamp> {
        let Some(spec) = self.spec_of(key) else {
            return Some(Timestamp(0));
        };
        let stop_after = spec.disconnect.stop_after?;
        if planted::is(Bug::StopAfterIgnored) {
            return None;
        }
        let offline =
            { self.lease.born }.filter(|_| !spec.runs_once() || planted::is(Bug::StartsOffline));
        let since = self.lease.at.max(offline);
        Some(since.map_or(Timestamp(0), |since| since.after(stop_after.0)))
    }

    /// Whether the placement may be started now. One that may not is looked at again when a leader
    /// hears this host.
    pub(super) fn may_run(&self, key: &PlacementKey, now: Timestamp) -> bool {
        let once = self.spec_of(key).is_some_and(WorkloadSpec::runs_once);
        // By an older set it may have been replaced already, and a newer one is not known to be this start's.
        let offline = planted::is(Bug::StartsOffline);
        let newest = !once || offline || self.sequence == self.lease.sequence;
        newest && self.runs_until(key).is_none_or(|until| now < until)
    }

    /// Arranges to look at the placement again when its time is over.
    pub(super) fn watch_lease(&mut self, key: &PlacementKey) {
        if let Some(placement) = self.placements.get_mut(key) {
            placement.waits_for_lease = false;
        }
        if let Some(until) = self.runs_until(key) {
            self.timers.insert((until, Timer::Lease(key.clone())));
        }
    }

    /// Ends the placement's replica when nobody has heard this host for too long.
    pub(super) fn lease_due(&mut self, key: &PlacementKey, now: Timestamp) {
        let Some(until) = self.runs_until(key) else {
            return;
        };
        let lives = self.placements.get(key).is_some_and(|p| p.live().is_some());
        if !lives {
            return;
        }
        if now < until {
            self.timers.insert((until, Timer::Lease(key.clone())));
            return;
        }
        let Some(spec) = self.spec_of(key) else {
            return;
        };
        let (after, drain) = (
            spec.disconnect.stop_after.unwrap_or_default(),
            spec.drain_alone(),
        );
        let why = format!("no leader has heard this host for {after} (disconnect.stop_after)");
        if let Some(placement) = self.placements.get_mut(key) {
            placement.because = Some(why);
            // What the network did is no failure of the guest's; those before it were.
            placement.tries = placement.tries.saturating_sub(1);
        }
        self.end_replica(key, Some(drain), now);
    }
}
