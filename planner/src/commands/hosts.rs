//! `cordon`, `uncordon`, `drain`, `host-rm`: what a person decides about a host.

use std::time::Duration;
use wasmorch_api::messages::HostView;

use wasmorch_api::status::{Drain, HostRecord, HostState};
use wasmorch_api::{ApiError, ErrorCode, EventKind, HostId, HumanDuration, Timestamp};

use super::Outcome;
use crate::cluster::{Cluster, Host};
use crate::queries;
use crate::write::{EventDraft, Write};

/// A host by its id or by its name.
pub(crate) fn find_host<'a>(
    cluster: &'a Cluster,
    host: &str,
) -> Result<(&'a HostId, &'a Host), ApiError> {
    let named: Vec<_> = cluster
        .hosts()
        .iter()
        .filter(|(id, known)| id.as_str() == host || known.info().name.as_str() == host)
        .collect();
    match named.as_slice() {
        [one] => Ok(*one),
        [] => Err(ApiError::new(
            ErrorCode::NotFound,
            format!("no host {host}"),
            "",
            "list them with `wasmorch hosts`",
        )),
        several => {
            let ids: Vec<&str> = several.iter().map(|(id, _)| id.as_str()).collect();
            Err(ApiError::new(
                ErrorCode::Conflict,
                format!("{} hosts are named {host}", several.len()),
                format!("their ids are {}", ids.join(", ")),
                "name one by its id",
            ))
        }
    }
}

/// Nothing new is placed on the host.
pub fn cordon(
    cluster: &Cluster,
    host: &str,
    now: Timestamp,
) -> Result<Outcome<HostView>, ApiError> {
    set_cordoned(cluster, host, true, now)
}

/// Undoes it, and a drain.
pub fn uncordon(
    cluster: &Cluster,
    host: &str,
    now: Timestamp,
) -> Result<Outcome<HostView>, ApiError> {
    set_cordoned(cluster, host, false, now)
}

/// What the host runs moves elsewhere; what has not by the deadline is stopped. Asked again without a
/// deadline it keeps the one that there is.
pub fn drain(
    cluster: &Cluster,
    host: &str,
    deadline: Option<Duration>,
    now: Timestamp,
) -> Result<Outcome<HostView>, ApiError> {
    let (_, known) = find_host(cluster, host)?;
    let before = known.record.drain;
    let mut drain = before.unwrap_or(Drain {
        since: now,
        deadline: None,
        drained: false,
    });
    drain.deadline = deadline.map(|wait| now.after(wait)).or(drain.deadline);
    let record = HostRecord {
        drain: Some(drain),
        ..known.record.clone()
    };
    let until = deadline.map(|wait| format!(", for {} at most", HumanDuration(wait)));
    let name = &known.info().name;
    let said = format!("{name} is emptied{}", until.unwrap_or_default());
    let event = EventDraft::cluster(EventKind::HostDraining, said);
    put(cluster, host, record, Some(event), now)
}

/// Ends a drain: what is there stays, and something new may come.
pub fn cancel_drain(
    cluster: &Cluster,
    host: &str,
    now: Timestamp,
) -> Result<Outcome<HostView>, ApiError> {
    let (_, known) = find_host(cluster, host)?;
    let record = HostRecord {
        drain: None,
        ..known.record.clone()
    };
    put(cluster, host, record, None, now)
}

fn set_cordoned(
    cluster: &Cluster,
    host: &str,
    cordoned: bool,
    now: Timestamp,
) -> Result<Outcome<HostView>, ApiError> {
    let (_, known) = find_host(cluster, host)?;
    let mut record = known.record.clone();
    record.cordoned = cordoned;
    let event = cordoned.then(|| {
        let said = format!("{} takes nothing new", known.info().name);
        EventDraft::cluster(EventKind::HostCordoned, said)
    });
    if !cordoned {
        record.drain = None;
    }
    put(cluster, host, record, event, now)
}

/// Stores the host's record, when it is another one.
fn put(
    cluster: &Cluster,
    host: &str,
    record: HostRecord,
    event: Option<EventDraft>,
    now: Timestamp,
) -> Result<Outcome<HostView>, ApiError> {
    let (id, known) = find_host(cluster, host)?;
    let changed = known.record != record;
    let mut after = known.clone();
    after.record = record;
    let reply = queries::host_view(id, &after, now);
    let events = event.filter(|_| changed).map(|event| event.host(id));
    let write = || Write::Host(Box::new(after.record));
    Ok(Outcome {
        writes: changed.then(write).into_iter().collect(),
        events: events.into_iter().collect(),
        reply,
    })
}

/// Forgets a host that will not come back. One that lives is refused: it would only return.
pub fn host_rm(
    cluster: &Cluster,
    host: &str,
    now: Timestamp,
) -> Result<Outcome<HostView>, ApiError> {
    let (id, known) = find_host(cluster, host)?;
    if known.state != HostState::Dead {
        return Err(ApiError::new(
            ErrorCode::Conflict,
            format!("{} is {}", known.info().name, known.state),
            "only a dead host is removed: one that lives would join again",
            "stop its daemon first",
        ));
    }
    let writes = vec![
        Write::DeletePlacements(id.clone()),
        Write::DeleteHost(id.clone()),
    ];
    let reply = queries::host_view(id, known, now);
    Ok(Outcome {
        writes,
        events: Vec::new(),
        reply,
    })
}
