//! What heartbeats give cause to say aloud about a host that speaks and yet is not well.
//!
//! Owns the words and how often they are said. A silence is `silence`'s.

use std::time::Duration;

use wasmorch_api::{BootId, EventKind, HostId, HostInfo, Term, Timestamp};

use crate::cluster::{Cluster, Host};
use crate::write::{EventDraft, json_bytes};

/// The same is said of a host this often.
pub(crate) const SAY_EVERY: Duration = Duration::from_secs(60);

/// Two daemons speak as this host.
pub(crate) fn two_in_one(host: &Host) -> EventDraft {
    let name = &host.record.info.name;
    let starts: Vec<&str> = [host.boot.as_ref(), host.boots.before()]
        .into_iter()
        .flatten()
        .map(BootId::as_str)
        .collect();
    let reason = format!(
        "two daemons speak as {name} (starts {}): its data folder is a copy of another's, or is used twice. It \
         is given nothing until one of them ends, and what must not run twice starts on one of them at most: \
         stop the copy, and start it with a data folder of its own",
        starts.join(" and ")
    );
    EventDraft::cluster(EventKind::AlarmDuplicateHost, reason).host(&host.record.host)
}

/// The host has refused sets of a leader whose term is over since it was last heard.
pub(crate) fn refuses_more(host: &mut Host, refused: u64, now: Timestamp) -> Option<EventDraft> {
    // What it refused before this leader heard it is not news.
    let before = host.stale_sets.unwrap_or(refused);
    let rested = { host.stale_said }.is_none_or(|last| now.since(last) >= SAY_EVERY);
    if refused <= before || !rested {
        // What is not said now is part of what is said next.
        host.stale_sets = Some(before);
        return None;
    }
    (host.stale_sets, host.stale_said) = (Some(refused), Some(now));
    let name = &host.record.info.name;
    let reason = format!(
        "{name} has refused {} placement sets of a leader whose term is over: the store should have refused \
         them before. Look for a controller, or somebody else, that writes to the store past its fence",
        refused - before
    );
    let event = EventDraft::cluster(EventKind::AlarmStaleTerm, reason);
    Some(event.host(&host.record.host))
}

/// The host says that it has seen a term that nobody can have begun.
pub(crate) fn claims_a_term(host: &mut Host, term: Term, now: Timestamp) -> Option<EventDraft> {
    let rested = { host.term_said }.is_none_or(|last| now.since(last) >= SAY_EVERY);
    if !rested {
        return None;
    }
    host.term_said = Some(now);
    let name = &host.record.info.name;
    let reason = format!(
        "{name} says that it has seen term {term}, which nobody can have begun: it is not followed. Look for \
         somebody else that speaks as it, or a data folder that was tampered with"
    );
    let event = EventDraft::cluster(EventKind::AlarmStaleTerm, reason);
    Some(event.host(&host.record.host))
}

/// Hosts that are kept on record, the dead among them: whoever may publish heartbeats may make up any number.
const HOSTS_MAX: usize = 65_536;

impl Cluster {
    /// Why a host that speaks is not taken up. What it says of itself is measured when that has changed.
    pub(crate) fn takes_no(&self, id: &HostId, info: Option<&HostInfo>) -> Option<&'static str> {
        let known = self.hosts.get(id);
        if known.is_none() && self.hosts.len() >= HOSTS_MAX {
            return Some(
                "there are too many on record: remove those that are gone (`wasmorch host-rm`)",
            );
        }
        let same = |info: &HostInfo| known.is_some_and(|host| host.record.info == *info);
        let info = info.filter(|info| !same(info))?;
        // Beside it a record holds next to nothing.
        let too_large = json_bytes(info) > self.value_bytes_max / 2;
        too_large
            .then_some("it says more of itself than the store takes: shorten its labels and taints")
    }

    /// It is told of at most once a minute, whichever host it was.
    pub(crate) fn turned_away(
        &mut self,
        id: &HostId,
        why: &str,
        now: Timestamp,
    ) -> Option<EventDraft> {
        let rested = { self.turned_away_said }.is_none_or(|last| now.since(last) >= SAY_EVERY);
        if !rested {
            return None;
        }
        self.turned_away_said = Some(now);
        let reason = format!("host {id} is not heard: {why}");
        Some(EventDraft::cluster(EventKind::AlarmFull, reason).host(id))
    }
}
