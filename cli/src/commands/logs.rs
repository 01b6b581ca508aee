//! `logs`: what replicas wrote, from the hosts that keep it, and what they write now.

use std::collections::{BTreeSet, HashMap};

use futures::future::join_all;
use futures::stream::{SelectAll, StreamExt as _};
use serde_json::json;
use wasmorch_api::messages::{
    HostView, LogLine, LogsReply, LogsRequest, ReplicaView, StatusReply, WorkloadRequest,
};
use wasmorch_api::status::HostState;
use wasmorch_api::{HostId, Name, ReplicaId, WorkloadKey, subjects};

use super::show::{every_page, with};
use super::{Context, Interrupt};
use crate::args::LogsArgs;
use crate::error::{CliError, Exit};
use crate::link::Link;
use crate::out::views;

/// `logs [-f] [--tail N] W[/REPLICA]`.
pub(crate) async fn run(ctx: &Context, args: LogsArgs) -> Result<Exit, CliError> {
    let mut interrupt = Interrupt::listen()?;
    tokio::select! {
        ended = show(ctx, &args) => ended,
        () = interrupt.next() => {
            if args.follow { Ok(Exit::OK) } else { Err(CliError::interrupted("interrupted")) }
        }
    }
}

type Line = (Name, LogLine);

async fn show(ctx: &Context, args: &LogsArgs) -> Result<Exit, CliError> {
    let (namespace, names) = ctx.resolve(&args.target.target)?;
    let link = ctx.link().await?;
    let replica = args.target.replica;
    let mut live = SelectAll::new();
    if args.follow {
        // Before the past is asked for, so that no line falls between the two.
        for name in &names {
            let key = WorkloadKey::new(namespace.clone(), name.clone());
            let subject = match replica {
                Some(replica) => subjects::logs(&key, replica),
                None => subjects::logs_all(&key),
            };
            let lines = link.subscribe(subject).await?;
            let name = name.clone();
            live.push(Box::pin(futures::stream::unfold(
                lines,
                move |mut lines| {
                    let name = name.clone();
                    async move { Some(((name, lines.next().await?), lines)) }
                },
            )));
        }
    }
    let mut past: Vec<Line> = Vec::new();
    for name in &names {
        let lines = past_lines(ctx, &link, &namespace, name, replica, args.tail).await?;
        past.extend(lines.into_iter().map(|line| (name.clone(), line)));
    }
    merge(&mut past, args.tail);
    if !args.follow && ctx.out.is_json() {
        let lines = past
            .iter()
            .map(|(name, line)| with("workload", json!(name), json!(line)));
        ctx.out.json(&lines.collect::<Vec<_>>())?;
        return Ok(Exit::OK);
    }
    let mut seen = Seen::default();
    for line in &past {
        seen.note(line);
        print(ctx, line)?;
    }
    while let Some((name, payload)) = live.next().await {
        // One message carries one line, or several of a busy replica.
        for line in read_lines(&payload) {
            let line = (name.clone(), line);
            if seen.is_new(&line) {
                print(ctx, &line)?;
            }
        }
    }
    Ok(Exit::OK)
}

fn read_lines(payload: &[u8]) -> Vec<LogLine> {
    match serde_json::from_slice(payload) {
        Ok(line) => vec![line],
        Err(_) => serde_json::from_slice(payload).unwrap_or_default(),
    }
}

/// In the order of their times, the newest `tail` of them. Lines of one replica keep their order.
fn merge(lines: &mut Vec<Line>, tail: u32) {
    lines.sort_by_key(|(_, line)| line.at);
    let over = lines.len().saturating_sub(tail as usize);
    lines.drain(..over);
}

/// Past lines that may come again live: those that were written while the two overlapped.
#[derive(Default)]
struct Seen(HashMap<(Name, ReplicaId, u64, String), u32>);

impl Seen {
    fn key((name, line): &Line) -> (Name, ReplicaId, u64, String) {
        (name.clone(), line.replica, line.at.0, line.text.clone())
    }

    fn note(&mut self, line: &Line) {
        *self.0.entry(Self::key(line)).or_default() += 1;
    }

    /// The same text in the same millisecond may be written twice: each is taken off once.
    fn is_new(&mut self, line: &Line) -> bool {
        match self.0.get_mut(&Self::key(line)).filter(|count| **count > 0) {
            Some(count) => {
                *count -= 1;
                false
            }
            None => true,
        }
    }
}

fn print(ctx: &Context, (name, line): &Line) -> Result<(), CliError> {
    if ctx.out.is_json() {
        return ctx
            .out
            .json_line(&with("workload", json!(name), json!(line)));
    }
    ctx.out.text(&views::log_line(name, line))
}

/// The last lines of a workload, from every host that has or had a replica of it.
async fn past_lines(
    ctx: &Context,
    link: &Link,
    namespace: &Name,
    workload: &Name,
    replica: Option<ReplicaId>,
    tail: u32,
) -> Result<Vec<LogLine>, CliError> {
    let request = WorkloadRequest {
        workload: workload.clone(),
        all: true,
    };
    let status: StatusReply = link.call(Some(namespace), "status", &request).await?;
    let all: Vec<HostView> = every_page(link, None, "hosts").await?;
    let hosts = hosts_of(&status.replicas, replica, &all)?;
    let lines = ask(link, namespace, workload, replica, tail, &hosts).await;
    for error in lines.iter().filter_map(|lines| lines.as_ref().err()) {
        // What the other hosts keep is worth showing.
        ctx.out.note(&format!("warning: {error}"));
    }
    if !lines.is_empty() && lines.iter().all(Result::is_err) {
        return lines
            .into_iter()
            .collect::<Result<Vec<_>, _>>()
            .map(|_| Vec::new());
    }
    Ok(lines.into_iter().flatten().flatten().collect())
}

/// Where to ask: where its replicas are or were, and where else something of it may lie.
fn hosts_of(
    replicas: &[ReplicaView],
    replica: Option<ReplicaId>,
    all: &[HostView],
) -> Result<BTreeSet<HostId>, CliError> {
    if let Some(one) = replica
        && let Some(view) = replicas.iter().find(|view| {
            // Other starts of a placement lie on the same host.
            view.replica.slot == one.slot && view.replica.placement == one.placement
        })
    {
        return Ok(BTreeSet::from([view.host_id.clone()]));
    }
    // The leader remembers only the last few that ended: any host may have lines of an older one.
    let alive = all.iter().filter(|host| host.state == HostState::Alive);
    let mut hosts: BTreeSet<HostId> = alive.map(|host| host.id.clone()).collect();
    if hosts.is_empty() {
        hosts.extend(replicas.iter().map(|view| view.host_id.clone()));
    }
    if hosts.is_empty() {
        return Err(CliError::new(
            Exit::UNAVAILABLE,
            "no host is there to ask",
            "",
            "start one",
        ));
    }
    Ok(hosts)
}

async fn ask(
    link: &Link,
    namespace: &Name,
    workload: &Name,
    replica: Option<ReplicaId>,
    tail: u32,
    hosts: &BTreeSet<HostId>,
) -> Vec<Result<Vec<LogLine>, CliError>> {
    let request = LogsRequest {
        namespace: namespace.clone(),
        workload: workload.clone(),
        replica,
        tail,
    };
    let asked = hosts.iter().map(|host| async {
        match link.call_host::<_, LogsReply>(host, "logs", &request).await {
            Ok(reply) => Ok(reply.lines),
            // It never had a replica of this workload.
            Err(error) if error.exit == Exit::NOT_FOUND => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    });
    join_all(asked).await
}

/// The last lines of a workload, when they can be had: what a failed job is shown with.
pub(crate) async fn tail_of(
    link: &Link,
    namespace: &Name,
    workload: &Name,
    replicas: &[ReplicaView],
    tail: u32,
) -> Vec<LogLine> {
    let hosts: BTreeSet<HostId> = replicas.iter().map(|view| view.host_id.clone()).collect();
    let lines = ask(link, namespace, workload, None, tail, &hosts).await;
    let mut lines: Vec<Line> = lines
        .into_iter()
        .flatten()
        .flatten()
        .map(|line| (workload.clone(), line))
        .collect();
    merge(&mut lines, tail);
    lines.into_iter().map(|(_, line)| line).collect()
}

#[cfg(test)]
mod tests {
    use wasmorch_api::Timestamp;

    use super::*;

    fn line(at: u64, replica: &str, text: &str) -> Line {
        let line = LogLine {
            at: Timestamp(at),
            replica: replica.parse().unwrap(),
            stream: "stdout".into(),
            request_id: None,
            text: text.into(),
            dropped: 0,
        };
        ("web".parse().unwrap(), line)
    }

    #[test]
    fn lines_are_merged_by_time_and_cut() {
        let mut lines = vec![
            line(1, "1-1-1", "a"),
            line(3, "1-1-1", "c"),
            line(2, "2-2-1", "b"),
            line(3, "2-2-1", "d"),
        ];
        merge(&mut lines, 3);
        let texts: Vec<_> = lines.iter().map(|(_, line)| line.text.as_str()).collect();
        assert_eq!(texts, ["b", "c", "d"]);
    }

    #[test]
    fn what_was_shown_is_not_shown_again() {
        let mut seen = Seen::default();
        seen.note(&line(1, "1-1-1", "tick"));
        assert!(!seen.is_new(&line(1, "1-1-1", "tick")));
        assert!(
            seen.is_new(&line(1, "1-1-1", "tick")),
            "written twice, shown twice"
        );
        assert!(seen.is_new(&line(1, "2-2-1", "tick")));
    }

    #[test]
    fn a_message_carries_one_line_or_several() {
        let one = serde_json::to_vec(&line(1, "1-1-1", "a").1).unwrap();
        let two = serde_json::to_vec(&[line(1, "1-1-1", "a").1, line(2, "1-1-1", "b").1]).unwrap();
        assert_eq!(read_lines(&one).len(), 1);
        assert_eq!(read_lines(&two).len(), 2);
        assert!(read_lines(b"junk").is_empty());
    }
}
