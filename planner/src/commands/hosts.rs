//! `cordon`, `uncordon`, `host-rm`: what a person decides about a host.

use wasmorch_api::messages::HostView;
use wasmorch_api::status::HostState;
use wasmorch_api::{ApiError, ErrorCode, EventKind, HostId, Timestamp};

use super::Outcome;
use crate::cluster::{Cluster, Host};
use crate::queries;
use crate::write::{EventDraft, Write};

/// A host by its id or by its name.
fn find<'a>(cluster: &'a Cluster, host: &str) -> Result<(&'a HostId, &'a Host), ApiError> {
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

/// Undoes it.
pub fn uncordon(
    cluster: &Cluster,
    host: &str,
    now: Timestamp,
) -> Result<Outcome<HostView>, ApiError> {
    set_cordoned(cluster, host, false, now)
}

fn set_cordoned(
    cluster: &Cluster,
    host: &str,
    cordoned: bool,
    now: Timestamp,
) -> Result<Outcome<HostView>, ApiError> {
    let (id, known) = find(cluster, host)?;
    let mut after = known.clone();
    after.record.cordoned = cordoned;
    let reply = queries::host_view(id, &after, now);
    if known.record.cordoned == cordoned {
        return Ok(Outcome {
            writes: Vec::new(),
            events: Vec::new(),
            reply,
        });
    }
    let events = if cordoned {
        let said = format!("{} takes nothing new", known.info().name);
        vec![EventDraft::cluster(EventKind::HostCordoned, said).host(id)]
    } else {
        Vec::new()
    };
    Ok(Outcome {
        writes: vec![Write::Host(Box::new(after.record))],
        events,
        reply,
    })
}

/// Forgets a host that will not come back. One that lives is refused: it would only return.
pub fn host_rm(
    cluster: &Cluster,
    host: &str,
    now: Timestamp,
) -> Result<Outcome<HostView>, ApiError> {
    let (id, known) = find(cluster, host)?;
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
