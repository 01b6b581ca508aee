//! What comes one line at a time: events, and lines of logs. Pure: data in, text out.

use std::collections::BTreeMap;

use wasmorch_api::messages::LogLine;
use wasmorch_api::{Event, EventKind, HostId, Name, Timestamp};

use super::human::{count, harmless};
use super::table::Tone;
use super::views::one_line;

/// The month, the day and the time of day, UTC: events are kept for seven days, and `--json` has
/// the whole of it.
fn moment(at: Timestamp) -> String {
    let text = at.to_string();
    text.get(5..19).unwrap_or(&text).replace('T', " ")
}

/// One event. `hosts`: the names that are known.
pub(crate) fn event(event: &Event, hosts: &BTreeMap<HostId, Name>) -> String {
    let workload = event.workload.as_ref().map(|name| match &event.replica {
        Some(replica) => format!("{name}/{replica}"),
        None => name.to_string(),
    });
    // Ids and what the reason says already only lengthen the line; `--json` has them.
    let host = event.host.as_ref().filter(|_| event.workload.is_none());
    let host = host.map(|id| match hosts.get(id) {
        Some(name) => format!("host {name}"),
        None => format!("host {id}"),
    });
    let revision = event
        .revision
        .map(|revision| format!("revision {revision}"));
    let revision = revision.filter(|revision| !event.reason.contains(revision.as_str()));
    let about: Vec<String> = [workload, revision, host].into_iter().flatten().collect();
    let tone = match event.kind.as_str() {
        kind if kind.starts_with("alarm") => Tone::Bad,
        "replica-failed" | "replica-rejected" | "replica-lost" | "crash-loop" | "job-failed"
        | "rollout-failed" | "rollout-reverted" | "host-dead" => Tone::Bad,
        "unplaced" | "host-suspect" | "rollout-aborted" | "rollout-paused" => Tone::Warn,
        _ if event.kind == EventKind::ReplicaReady => Tone::Good,
        _ => Tone::Plain,
    };
    let mut text = format!(
        "{}  {}",
        Tone::Dim.paint(&moment(event.at)),
        tone.paint(&format!("{:<18}", event.kind.as_str()))
    );
    for part in [about.join(" "), one_line(&event.reason)] {
        if !part.is_empty() {
            text.push_str("  ");
            text.push_str(&part);
        }
    }
    let end = text.trim_end().len();
    text.truncate(end);
    text
}

/// One line of a log, under the replica that wrote it.
pub(crate) fn log_line(workload: &Name, line: &LogLine) -> String {
    let mut text = String::new();
    let head = format!("{}  {workload}/{}", line.at, line.replica);
    if line.dropped > 0 {
        let lost = count(line.dropped, "line");
        text.push_str(&Tone::Warn.paint(&format!("{head}  ({lost} dropped: written too fast)")));
        text.push('\n');
    }
    let tone = match line.stream.as_str() {
        "stderr" | "error" | "critical" => Tone::Warn,
        _ => Tone::Plain,
    };
    text.push_str(&format!(
        "{}  {}\n",
        Tone::Dim.paint(&head),
        tone.paint(&harmless(&line.text))
    ));
    text
}
