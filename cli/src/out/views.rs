//! Answers of the API as people read them. Pure: data in, text out.

use wasmorch_api::messages::{
    HostView, RebalanceReply, ReplicaView, RunView, ScaleView, StatusReply, Unplaced,
    WorkloadState, WorkloadSummary,
};
use wasmorch_api::status::HostState;
use wasmorch_api::{
    ByteSize, HumanDuration, Name, ReplicaState, RevisionNumber, RolloutState, Timestamp,
};
use wasmorch_runtime::fixed;

use super::human::{age, count, harmless, span, used_of};
pub(crate) use super::lines::{event, log_line};
use super::rollouts;
use super::table::{Cell, Table, Tone, pairs};

fn state_tone(state: WorkloadState) -> Tone {
    match state {
        WorkloadState::Ready | WorkloadState::Completed => Tone::Good,
        WorkloadState::CrashLoop | WorkloadState::Failed => Tone::Bad,
        WorkloadState::Pending | WorkloadState::Rolling | WorkloadState::Degraded => Tone::Warn,
        WorkloadState::Idle | WorkloadState::Stopped => Tone::Dim,
    }
}

fn replica_tone(replica: &ReplicaView) -> Tone {
    match replica.state {
        ReplicaState::Running if replica.ready => Tone::Good,
        ReplicaState::Completed => Tone::Good,
        ReplicaState::Failed | ReplicaState::Rejected | ReplicaState::Lost => Tone::Bad,
        ReplicaState::Stopped | ReplicaState::Draining => Tone::Dim,
        _ => Tone::Warn,
    }
}

/// `ps`.
pub(crate) fn workloads(
    items: &[WorkloadSummary],
    every_namespace: bool,
    width: Option<usize>,
) -> String {
    if items.is_empty() {
        return "no workloads: deploy one with `wasmorch deploy app.wasm`\n".into();
    }
    let mut table = Table::new(&[
        "NAMESPACE",
        "NAME",
        "KIND",
        "STATE",
        ">READY",
        ">REVISION",
        "URL",
    ]);
    for item in items {
        let namespace = if every_namespace {
            item.namespace.to_string()
        } else {
            String::new()
        };
        table.row(vec![
            namespace.into(),
            Cell::toned(&item.name, Tone::Name),
            item.kind.into(),
            Cell::toned(item.state, state_tone(item.state)),
            match item.scale {
                Some(scale) => format!("{} ({})", readiness(item, "/"), bounds(scale)).into(),
                None => readiness(item, "/").into(),
            },
            item.revision.into(),
            item.urls.first().cloned().unwrap_or_default().into(),
        ]);
    }
    table.render(width)
}

/// `ps W`: the replicas of each.
pub(crate) fn replicas(of: &[StatusReply], now: Timestamp, width: Option<usize>) -> String {
    if of.iter().all(|status| status.replicas.is_empty()) {
        return "no replicas\n".into();
    }
    let mut table = Table::new(&[
        "REPLICA",
        "STATE",
        ">AGE",
        ">REVISION",
        "HOST",
        ">MEMORY",
        ">CPU",
        ">BUSY",
        "REASON",
    ]);
    for status in of {
        let workload = &status.summary.name;
        let limited = revision_of_spec(status);
        for replica in &status.replicas {
            let live = !replica.state.ended();
            let limit = limited.filter(|revision| *revision == replica.revision);
            let memory = match limit {
                Some(_) => used_of(replica.memory_bytes, status.spec.resources.memory),
                None => ByteSize(replica.memory_bytes).approximate(),
            };
            let used = |text: String| if live { text } else { String::new() };
            table.row(vec![
                Cell::toned(format!("{workload}/{}", replica.replica), Tone::Name),
                Cell::toned(state_word(replica), replica_tone(replica)),
                age(replica.since, now).into(),
                replica.revision.into(),
                replica.host.to_string().into(),
                used(memory).into(),
                used(format!("{}m", replica.cpu_millis)).into(),
                used(replica.in_flight.to_string()).into(),
                reason_of(replica).into(),
            ]);
        }
    }
    table.render(width)
}

/// Which revision's spec a status shows: the one that was asked for last, also while it is tried or waits.
fn revision_of_spec(status: &StatusReply) -> Option<RevisionNumber> {
    let wanted = status.summary.revision;
    match &status.rollout {
        Some(rollout) if rollout.revision == wanted => Some(wanted),
        // One that has failed while it waited for others is still what was asked for; others were given up.
        Some(rollout) if rollout.state == RolloutState::Failed => None,
        Some(rollout) if !rollout.state.ended() && rollout.state != RolloutState::Reverting => {
            Some(rollout.revision)
        }
        _ => Some(wanted),
    }
}

fn state_word(replica: &ReplicaView) -> String {
    match replica.state {
        ReplicaState::Running if replica.ready => "ready".into(),
        _ if replica.standby => "standby".into(),
        state => state.to_string(),
    }
}

fn reason_of(replica: &ReplicaView) -> String {
    let reason = replica.reason.as_deref().unwrap_or_default();
    let code = untold(replica.exit_code, reason).map(|code| format!("exit {code}"));
    let parts = [code, replica.reason.clone()].into_iter().flatten();
    one_line(&parts.collect::<Vec<_>>().join(": "))
}

/// The exit code, unless the reason names it: a host's own words for a program that failed do.
fn untold(code: Option<i32>, reason: &str) -> Option<i32> {
    code.filter(|code| !reason.contains(&format!("exit code {code}")))
}

/// An exit code and a reason, each said once.
pub(crate) fn how_it_ended(code: Option<i32>, reason: &str) -> String {
    match (untold(code, reason), reason) {
        (Some(code), "") => format!("exit code {code}"),
        (Some(code), reason) => format!("exit code {code}, {reason}"),
        (None, reason) => reason.to_owned(),
    }
}

/// A reason may carry a guest's text: one harmless line of it.
pub(super) fn one_line(text: &str) -> String {
    harmless(text.lines().next().unwrap_or_default())
}

/// `status`.
pub(crate) fn status(status: &StatusReply, now: Timestamp, width: Option<usize>) -> String {
    let summary = &status.summary;
    let mut lines = vec![
        (
            "workload",
            Tone::Name.paint(&format!("{}/{}", summary.namespace, summary.name)),
        ),
        ("kind", summary.kind.to_string()),
        (
            "state",
            state_tone(summary.state).paint(summary.state.as_str()),
        ),
        ("ready", readiness(summary, " of ")),
        ("revision", summary.revision.to_string()),
    ];
    if let Some((scale, spec)) = summary.scale.zip(status.spec.scale.as_ref()) {
        let follows = spec
            .follows()
            .map_or_else(String::new, |(measure, target)| {
                format!(", {} {target} each", measure.as_str())
            });
        lines.push(("scale", format!("{}{follows}", bounds(scale))));
    }
    if let Some(artifact) = &status.spec.artifact {
        lines.push(("artifact", artifact.to_string()));
    }
    if !summary.urls.is_empty() {
        lines.push(("urls", summary.urls.join("\n")));
    }
    let granted = wasmorch_api::manifest::grant_flags(&status.spec.bindings);
    if !granted.is_empty() {
        let bare = granted
            .iter()
            .map(|flag| flag.trim_start_matches("--grant "));
        lines.push(("granted", bare.collect::<Vec<_>>().join("\n")));
    }
    let limits = &status.spec.resources;
    lines.push((
        "limits",
        format!(
            "memory {}, cpu {}, body {}\n{} at once, {} waiting, {} each",
            limits.memory,
            limits.cpu,
            limits.body,
            limits.concurrency,
            limits.queue,
            limits.timeout
        ),
    ));
    lines.push(("fixed", fixed_limits()));
    if let Some(rollout) = &status.rollout {
        lines.push(("rollout", rollouts::rollout(rollout, now)));
    }
    if let Some(outcome) = &status.outcome {
        let how = if outcome.completed {
            "completed"
        } else {
            "failed"
        };
        let code = untold(outcome.exit_code, &outcome.reason)
            .map(|code| format!(", exit {code}"))
            .unwrap_or_default();
        let why = if outcome.reason.is_empty() { "" } else { ": " };
        let ago = age(outcome.at, now);
        lines.push((
            "last run",
            format!("{how}{code} {ago} ago{why}{}", one_line(&outcome.reason)),
        ));
    }
    if let Some(run) = &status.run {
        lines.push(("run", self::run(run)));
    }
    if let Some(next) = status.next {
        lines.push(("next run", format!("{next}, in {}", span(next.since(now)))));
    }
    let mut text = pairs(&lines);
    if let Some(unplaced) = &status.unplaced {
        text.push('\n');
        text.push_str(&self::unplaced(unplaced));
    }
    if !status.replicas.is_empty() {
        text.push('\n');
        text.push_str(&replicas(std::slice::from_ref(status), now, width));
    }
    text
}

/// What holds for every workload, as this program's own runtime has it.
fn fixed_limits() -> String {
    let (files, out) = (fixed::HANDLES_MAX, fixed::IN_HAND_MAX);
    let (handles, elements) = (fixed::RESOURCES_MAX, fixed::TABLE_ELEMENTS_MAX);
    let stack = ByteSize(fixed::WASM_STACK_BYTES as u64);
    let (instances, tables) = (fixed::INSTANCES_MAX, fixed::TABLES_MAX);
    let memories = fixed::MEMORIES_MAX;
    format!(
        "{files} open files, sockets and streams; {out} requests out in a runner\n\
         an instance: {handles} handles, stack {stack}, tables of {elements},\n\
         {instances} core instances, {tables} tables, {memories} memories"
    )
}

/// A run in a few words.
fn run(run: &RunView) -> String {
    let scheduled = run.scheduled;
    let scheduled = scheduled.map_or(String::new(), |at| format!(", scheduled for {at}"));
    let (number, completed, of) = (run.number, run.completed, run.completions);
    format!("{number}: {completed} of {of} completed{scheduled}")
}

/// What could not be placed, why, and what would help.
pub(crate) fn unplaced(unplaced: &Unplaced) -> String {
    let slots = count(u64::from(unplaced.slots), "replica");
    let hosts = count(u64::from(unplaced.evaluated), "host");
    let mut text = format!(
        "{} {slots} of {} ({hosts} looked at)\n",
        Tone::Warn.paint("unplaced:"),
        unplaced.workload
    );
    for (filter, hosts) in &unplaced.filtered {
        text.push_str(&format!(
            "  {}: {filter}\n",
            count(u64::from(*hosts), "host")
        ));
    }
    for (dimension, amount) in &unplaced.lacking {
        let amount = match dimension.as_str() {
            name if name.contains("bytes") || name == "memory" => ByteSize(*amount).approximate(),
            name if name.contains("millis") || name == "cpu" => format!("{amount}m"),
            _ => amount.to_string(),
        };
        text.push_str(&format!(
            "  the nearest host lacks {amount} of {dimension}\n"
        ));
    }
    for fix in &unplaced.fix {
        text.push_str(&format!("  {} {fix}\n", Tone::Dim.paint("fix:")));
    }
    text
}

/// `hosts`.
pub(crate) fn hosts(items: &[HostView], width: Option<usize>) -> String {
    if items.is_empty() {
        return "no hosts: start one with `wasmorch host`\n".into();
    }
    // Architecture and version are in `--json`: whole addresses matter more on 80 columns.
    let mut table = Table::new(&[
        "NAME", "STATE", ">RUNS", ">MEMORY", "HTTP", "ADMIN", ">SEEN", "LABELS",
    ]);
    for host in items {
        let (state, tone) = match host.state {
            HostState::Alive if host.drain.is_some_and(|drain| drain.drained) => {
                ("drained", Tone::Warn)
            }
            HostState::Alive if host.drain.is_some() => ("draining", Tone::Warn),
            HostState::Alive if host.cordoned => ("cordoned", Tone::Warn),
            HostState::Alive => (host.state.as_str(), Tone::Good),
            HostState::Suspect => (host.state.as_str(), Tone::Warn),
            HostState::Dead => (host.state.as_str(), Tone::Bad),
        };
        let labels = host
            .labels
            .iter()
            .map(|(key, value)| format!("{key}={value}"));
        // What keeps workloads away is as good to know.
        let taints = host.taints.iter().map(|taint| format!("taint {taint}"));
        let labels = labels.chain(taints);
        let seen = match host.state {
            HostState::Alive => String::new(),
            _ => span(std::time::Duration::from_millis(host.seen_ms)),
        };
        table.row(vec![
            Cell::toned(&host.name, Tone::Name),
            Cell::toned(state, tone),
            host.used.replicas.into(),
            ByteSize(host.used.memory_bytes).approximate().into(),
            host.http.clone().into(),
            host.admin.clone().into(),
            seen.into(),
            labels.collect::<Vec<_>>().join(",").into(),
        ]);
    }
    table.render(width)
}

/// `rebalance`: each move on a line, its reason below.
pub(crate) fn moves(reply: &RebalanceReply, most: u32) -> String {
    let moves = &reply.moves;
    if moves.is_empty() {
        return match most {
            0 => "0 moves: none were allowed\n".into(),
            _ if reply.next.is_some() => {
                "0 moves: nothing found, but not all of the cluster was looked at\n".into()
            }
            _ => "0 moves: nothing would be better off on another host\n".into(),
        };
    }
    let mut text = String::new();
    for one in moves {
        let name = Tone::Name.paint(&one.workload);
        let (slot, from, to) = (one.slot, &one.from, &one.to);
        text.push_str(&format!(
            "{name}  slot {slot}: {from} -> {to}\n  {}\n",
            one.why
        ));
    }
    let many = count(moves.len() as u64, "move");
    let sum = format!("{many}, each ready on its new host before it leaves the old one");
    text.push_str(&Tone::Dim.paint(&sum));
    text.push('\n');
    if reply.next.is_some() && moves.len() < most as usize {
        text.push_str("not all of the cluster was looked at: ask again once these are made\n");
    }
    text
}

/// How many are ready of how many; nothing is expected to be of what has ended by itself.
fn readiness(summary: &WorkloadSummary, of: &str) -> String {
    match summary.state {
        WorkloadState::Completed => "-".into(),
        _ => format!("{}{of}{}", summary.ready, summary.desired),
    }
}

/// Between which counts the load moves it.
fn bounds(scale: ScaleView) -> String {
    format!("{}..{}", scale.min, scale.max)
}

/// What a `deploy` ended with, one workload a line.
pub(crate) fn deployed(
    name: &Name,
    state: &str,
    tone: Tone,
    revision: u64,
    urls: &[String],
) -> String {
    let mut text = format!(
        "{}  {}  revision {revision}",
        Tone::Name.paint(name.as_str()),
        tone.paint(state)
    );
    for url in urls {
        text.push_str("  ");
        text.push_str(url);
    }
    text
}

/// How long something took.
pub(crate) fn took(time: std::time::Duration) -> String {
    let ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let rounded = if ms >= 10_000 { ms / 1_000 * 1_000 } else { ms };
    HumanDuration::millis(rounded).to_string()
}

#[cfg(test)]
#[path = "views_tests.rs"]
mod tests;
