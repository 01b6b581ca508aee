//! What heartbeats give cause to say aloud about a host that speaks and yet is not well.
//!
//! Owns the words and how often they are said. A silence is `silence`'s.

use std::time::Duration;

use wasmorch_api::{EventKind, Timestamp};

use crate::cluster::Host;
use crate::write::EventDraft;

/// The same is said of a host this often.
pub(crate) const SAY_EVERY: Duration = Duration::from_secs(60);

/// Two daemons speak as this host.
pub(crate) fn two_in_one(host: &Host) -> EventDraft {
    let name = &host.record.info.name;
    let reason = format!(
        "two daemons speak as {name}: its data folder is a copy of another's, or is used twice. It is given \
         nothing until one of them ends: stop the copy, and start it with a data folder of its own"
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
