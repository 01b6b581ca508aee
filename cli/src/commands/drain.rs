//! `drain`: empties a host, and waits until nothing is left there.
//!
//! What is left is told again whenever it is something else. Ctrl-C leaves the drain as it is: it is
//! the cluster's, and goes on.

use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::Value;
use wasmorch_api::messages::{HostRequest, HostView, WhyRequest};
use wasmorch_api::status::HostState;
use wasmorch_api::{HumanDuration, Name};

use super::{Context, Interrupt, request_id};
use crate::cluster;
use crate::error::{CliError, Exit};
use crate::link::Link;
use crate::out::human::{count, harmless, span};
use crate::out::table::Tone;

/// Between two looks at what is left.
const PAUSE: Duration = Duration::from_millis(300);
/// So many workloads are named in one line.
const NAMED: usize = 4;

/// What `why` tells of a host.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Standing {
    host: HostView,
    runs: Vec<Held>,
    #[serde(default)]
    more: u64,
    left: u64,
}

/// What a host runs of one workload.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Held {
    pub(crate) workload: String,
    pub(crate) replicas: u64,
    #[serde(default)]
    pub(crate) ready: u64,
    /// So many of a dead host nobody has heard of since.
    #[serde(default)]
    pub(crate) lost: u64,
    /// What keeps it on a host that is drained.
    #[serde(default)]
    pub(crate) stays: Option<String>,
}

/// `drain H [--deadline D] [--cancel]`.
pub(crate) async fn run(
    ctx: &Context,
    host: &Name,
    deadline: Option<HumanDuration>,
    cancel: bool,
) -> Result<Exit, CliError> {
    if cancel && deadline.is_some() {
        return Err(CliError::usage(
            "--cancel ends the drain: it takes no --deadline",
            "leave one of them out",
        ));
    }
    let mut interrupt = Interrupt::listen()?;
    let asking = async {
        let link = ctx.link().await?;
        let millis = |time: HumanDuration| u64::try_from(time.0.as_millis()).unwrap_or(u64::MAX);
        let request = HostRequest {
            host: Some(host.to_string()),
            deadline_ms: deadline.map(millis),
            cancel,
            request_id: Some(request_id()),
            by: Some(cluster::user()),
            ..HostRequest::default()
        };
        let view: HostView = link.call(None, "drain", &request).await?;
        Ok::<_, CliError>((link, view))
    };
    let (link, view) = tokio::select! {
        asked = asking => asked?,
        () = interrupt.next() => return Err(CliError::interrupted("interrupted")),
    };
    let name = Tone::Name.paint(host.as_str());
    if cancel {
        return done(ctx, &view, &format!("{name}  not drained any more"));
    }
    let began = Instant::now();
    let following = follow(ctx, &link, host);
    tokio::select! {
        ended = following => match ended? {
            Some(view) => {
                let took = span(began.elapsed());
                done(ctx, &view, &format!("{name}  drained in {took}: nothing runs there"))
            }
            None => Err(CliError::new(
                Exit::FAILED,
                format!("{host} is not drained any more"),
                "someone ended the drain, or removed the host",
                format!("see `wasmorch why {host}`"),
            )),
        },
        () = interrupt.next() => Err(CliError::interrupted(format!(
            "the drain of {host} goes on; `wasmorch drain {host} --cancel` ends it"
        ))),
    }
}

fn done(ctx: &Context, view: &HostView, text: &str) -> Result<Exit, CliError> {
    if ctx.out.is_json() {
        ctx.out.json(view)?;
    } else {
        ctx.out.line(text)?;
    }
    Ok(Exit::OK)
}

/// Waits for the end of the drain; `None`: it was ended before.
async fn follow(ctx: &Context, link: &Link, host: &Name) -> Result<Option<HostView>, CliError> {
    let request = WhyRequest {
        host: Some(host.to_string()),
        ..WhyRequest::default()
    };
    let mut said = String::new();
    loop {
        let answer = link.call::<_, Value>(None, "why", &request).await;
        let standing = match answer {
            Err(error) if error.exit == Exit::NOT_FOUND => return Ok(None),
            other => other?,
        };
        let standing: Standing = serde_json::from_value(standing).map_err(|error| {
            let what = "the answer is not one that this version understands";
            CliError::bug(what, error.to_string())
        })?;
        let Some(drain) = standing.host.drain else {
            return Ok(None);
        };
        if drain.drained {
            return Ok(Some(standing.host));
        }
        let now = progress(host, &standing);
        if now != said {
            ctx.out.note(&now);
            said = now;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// What is left, and what keeps it there.
fn progress(host: &Name, standing: &Standing) -> String {
    let mut text = format!(
        "{}  draining: {} left",
        Tone::Name.paint(host.as_str()),
        count(standing.left, "replica")
    );
    let mut named: Vec<String> = standing
        .runs
        .iter()
        .take(NAMED)
        .map(|held| format!("{} {}", held.workload, held.replicas))
        .collect();
    let unnamed = standing.runs.len().saturating_sub(NAMED) as u64 + standing.more;
    if unnamed > 0 {
        named.push(format!("{unnamed} more"));
    }
    if !named.is_empty() {
        text.push_str(&format!(" ({})", named.join(", ")));
    }
    if standing.host.state == HostState::Dead {
        text.push_str("; the host is dead");
    }
    let stays = standing.runs.iter().filter(|held| held.stays.is_some());
    for held in stays.take(NAMED) {
        let why = held.stays.as_deref().unwrap_or_default();
        let (word, workload) = (Tone::Warn.paint("stays:"), &held.workload);
        text.push_str(&format!("\n  {word} {workload}: {}", harmless(why)));
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_left_and_what_keeps_it() {
        let standing: Standing = serde_json::from_value(json!({
            "state": "draining",
            "host": {
                "id": "aa", "name": "h2", "state": "alive", "cordoned": false, "labels": {},
                "drain": {"since": "2026-01-01T00:00:00.000Z"},
                "arch": "x86_64", "http": "127.0.0.1:80", "admin": "127.0.0.1:81",
                "version": "0.1.0", "used": {"replicas": 3, "memory_bytes": 0}, "seen_ms": 0,
                "capacity": {"memory_bytes": 0, "cpu_millis": 0, "replicas": 0},
            },
            "runs": [
                {"workload": "default/web", "replicas": 2, "ready": 2, "stays": null},
                {"workload": "default/sum", "replicas": 1, "ready": 1,
                 "stays": "it runs to its end"},
            ],
            "left": 4,
        }))
        .unwrap();
        let text = progress(&"h2".parse().unwrap(), &standing);
        insta::assert_snapshot!(anstream::adapter::strip_str(&text).to_string(), @r"
        h2  draining: 4 replicas left (default/web 2, default/sum 1)
          stays: default/sum: it runs to its end
        ");
    }
}
