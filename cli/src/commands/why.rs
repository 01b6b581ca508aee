//! `why`: the cluster's own account of how something stands.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};
use wasmorch_api::messages::{Unplaced, WhyRequest};
use wasmorch_api::{ByteSize, Name, ReplicaId};

use super::Context;
use super::drain::Held;
use super::show::with;
use crate::args::Target;
use crate::error::{CliError, Exit};
use crate::link::Link;
use crate::out::human::{count, harmless};
use crate::out::table::{Table, Tone};
use crate::out::views;

/// The answer: of a workload, a host or a replica, each with what the others have not.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Why {
    state: Value,
    ready: bool,
    story: Vec<String>,
    scale: Option<String>,
    unplaced: Option<Unplaced>,
    evaluated: u64,
    filtered: BTreeMap<String, u64>,
    named: BTreeMap<String, Vec<String>>,
    lacking: BTreeMap<String, u64>,
    scores: Vec<Score>,
    host: Value,
    runs: Vec<Held>,
    more: u64,
    refuses: Vec<String>,
    workload: Option<String>,
    slot: u64,
    revision: u64,
    reason: Option<String>,
    exit_code: Option<i32>,
    fix: Vec<String>,
}

/// How one host would do.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Score {
    host: String,
    total: Value,
    parts: BTreeMap<String, i64>,
}

/// `why W|HOST|REPLICA`, or all workloads of a manifest.
pub(crate) async fn run(ctx: &Context, subject: &str) -> Result<Exit, CliError> {
    if subject.ends_with(".toml") {
        return of_manifest(ctx, Path::new(subject)).await;
    }
    let namespace = ctx.global.namespace();
    let link = ctx.link().await?;
    let answer = ask(&link, &namespace, subject).await?;
    if ctx.out.is_json() {
        ctx.out.json(&answer)?;
        return Ok(Exit::OK);
    }
    ctx.out
        .text(&render(subject, &read(answer)?, ctx.out.width()))?;
    Ok(Exit::OK)
}

/// Each workload of a manifest. A name in one is never a host's.
async fn of_manifest(ctx: &Context, file: &Path) -> Result<Exit, CliError> {
    let (namespace, names) = ctx.resolve(&Target::Manifest(file.to_owned()))?;
    let link = ctx.link().await?;
    let mut answers = Vec::new();
    for name in &names {
        let request = WhyRequest {
            workload: Some(name.clone()),
            ..WhyRequest::default()
        };
        let answer: Value = link.call(Some(&namespace), "why", &request).await?;
        answers.push(with("name", json!(name), answer));
    }
    if ctx.out.is_json() {
        ctx.out.json(&answers)?;
        return Ok(Exit::OK);
    }
    let mut texts = Vec::new();
    for (name, answer) in names.iter().zip(answers) {
        texts.push(render(name.as_str(), &read(answer)?, ctx.out.width()));
    }
    ctx.out.text(&texts.join("\n"))?;
    Ok(Exit::OK)
}

fn read(answer: Value) -> Result<Why, CliError> {
    serde_json::from_value(answer).map_err(|error| {
        CliError::bug(
            "the answer is not one that this version understands",
            error.to_string(),
        )
    })
}

/// A bare name is a workload's first, then a host's.
async fn ask(link: &Link, namespace: &Name, subject: &str) -> Result<Value, CliError> {
    let request = request_of(subject)?;
    let asked = link
        .call::<_, Value>(Some(namespace), "why", &request)
        .await;
    let error = match asked {
        Err(error) if error.exit == Exit::NOT_FOUND && request.workload.is_some() => error,
        other => return other,
    };
    let host = WhyRequest {
        host: Some(subject.to_owned()),
        ..WhyRequest::default()
    };
    match link.call::<_, Value>(Some(namespace), "why", &host).await {
        // What the user most likely meant was the workload.
        Err(other) if other.exit == Exit::NOT_FOUND => Err(error),
        other => other,
    }
}

fn request_of(subject: &str) -> Result<WhyRequest, CliError> {
    let wrong = |error: wasmorch_api::IdError| {
        CliError::usage(
            error.to_string(),
            "write WORKLOAD, HOST or WORKLOAD/REPLICA",
        )
    };
    if let Some((workload, replica)) = subject.split_once('/') {
        let workload: Name = workload.parse().map_err(wrong)?;
        let replica: ReplicaId = replica.parse().map_err(wrong)?;
        return Ok(WhyRequest {
            replica: Some(format!("{workload}/{replica}")),
            ..WhyRequest::default()
        });
    }
    let workload = subject.parse().map_err(wrong)?;
    Ok(WhyRequest {
        workload: Some(workload),
        ..WhyRequest::default()
    })
}

fn render(subject: &str, why: &Why, width: Option<usize>) -> String {
    let state = match why.state.as_str() {
        Some("running") if why.ready => "ready",
        Some(state) => state,
        None => "unknown",
    };
    let mut text = format!("{}  {state}\n", Tone::Name.paint(subject));
    if why.workload.is_some() {
        let host = why.host.as_str().unwrap_or("no host");
        let (slot, revision) = (why.slot, why.revision);
        text.push_str(&format!("  slot {slot}, revision {revision}, on {host}\n"));
    }
    for line in &why.story {
        text.push_str(&format!("  {}\n", harmless(line)));
    }
    if let Some(load) = &why.scale {
        let word = Tone::Dim.paint("load:");
        text.push_str(&format!("  {word} {}\n", harmless(load)));
    }
    let because = views::how_it_ended(why.exit_code, why.reason.as_deref().unwrap_or_default());
    if !because.is_empty() {
        let word = Tone::Warn.paint("because:");
        text.push_str(&format!("  {word} {}\n", harmless(&because)));
    }
    held(why, &mut text);
    match &why.unplaced {
        Some(unplaced) => text.push_str(&views::unplaced(unplaced)),
        None => filters(why, &mut text),
    }
    if !why.scores.is_empty() {
        let mut table = Table::new(&["HOST", ">SCORE", "PARTS"]);
        for score in &why.scores {
            let parts = score.parts.iter();
            let parts = parts.map(|(name, points)| format!("{name} {points}"));
            table.row(vec![
                score.host.clone().into(),
                score.total.to_string().into(),
                parts.collect::<Vec<_>>().join(", ").into(),
            ]);
        }
        text.push_str(&table.render(width));
    }
    let told = why.unplaced.iter().flat_map(|unplaced| &unplaced.fix);
    let told: Vec<&String> = told.collect();
    for fix in why.fix.iter().filter(|fix| !told.contains(fix)) {
        let word = Tone::Dim.paint("fix:");
        text.push_str(&format!("  {word} {}\n", harmless(fix)));
    }
    text
}

/// What a host runs, and what does not go there.
fn held(why: &Why, text: &mut String) {
    for held in &why.runs {
        let (workload, ready) = (&held.workload, held.ready);
        let many = count(held.replicas, "replica");
        text.push_str(&match held.lost {
            0 => format!("  runs {many} of {workload}, {ready} ready"),
            lost => format!("  held {many} of {workload}, {lost} lost"),
        });
        if let Some(stays) = &held.stays {
            text.push_str(&format!("; stays: {}", harmless(stays)));
        }
        text.push('\n');
    }
    if why.more > 0 {
        text.push_str(&format!("  and {}\n", count(why.more, "workload more")));
    }
    for refused in &why.refuses {
        text.push_str(&format!("  does not get {}\n", harmless(refused)));
    }
}

/// How many hosts each filter removes, and what the nearest lacks.
fn filters(why: &Why, text: &mut String) {
    let removed: u64 = why.filtered.values().sum();
    if removed > 0 {
        let looked = count(why.evaluated, "host");
        text.push_str(&format!("  {looked} looked at for one replica more\n"));
    }
    for (filter, hosts) in &why.filtered {
        let names = why.named.get(filter).cloned().unwrap_or_default();
        let others = if (names.len() as u64) < *hosts {
            ", .."
        } else {
            ""
        };
        let (hosts, names) = (count(*hosts, "host"), names.join(", "));
        text.push_str(&format!("  {hosts}: {filter} ({names}{others})\n"));
    }
    for (dimension, amount) in &why.lacking {
        let amount = match dimension.as_str() {
            "memory" | "set size" => ByteSize(*amount).approximate(),
            "cpu" => format!("{amount}m"),
            _ => amount.to_string(),
        };
        text.push_str(&format!(
            "  the nearest host lacks {amount} of {dimension}\n"
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subject_is_a_workload_or_a_replica_of_one() {
        assert_eq!(request_of("web").unwrap().workload.unwrap().as_str(), "web");
        assert_eq!(
            request_of("web/2-7-1").unwrap().replica.unwrap(),
            "web/2-7-1"
        );
        assert_eq!(request_of("web/x").unwrap_err().exit, Exit::USAGE);
    }

    fn shown(subject: &str, answer: Value) -> String {
        let why: Why = serde_json::from_value(answer).unwrap();
        anstream::adapter::strip_str(&render(subject, &why, Some(80))).to_string()
    }

    #[test]
    fn the_account_reads_from_top_to_bottom() {
        let text = shown(
            "web",
            json!({
                "state": "degraded",
                "story": ["2026-01-01T00:00:00.000Z deployed: first revision"],
                "unplaced": null,
                "evaluated": 6,
                "filtered": {"cordoned": 1, "memory": 4},
                "named": {"cordoned": ["h2"], "memory": ["h3", "h4", "h5"]},
                "lacking": {"memory": 67_108_864},
                "scores": [{"host": "h1", "total": 71, "parts": {"spread": 40, "room": 31}}],
                "fix": ["uncordon h2"],
            }),
        );
        insta::assert_snapshot!(text, @r"
        web  degraded
          2026-01-01T00:00:00.000Z deployed: first revision
          6 hosts looked at for one replica more
          1 host: cordoned (h2)
          4 hosts: memory (h3, h4, h5, ..)
          the nearest host lacks 64.0 MiB of memory
        HOST  SCORE  PARTS
        h1       71  room 31, spread 40
          fix: uncordon h2
        ");
    }

    #[test]
    fn a_host_tells_what_it_runs_and_what_it_does_not_get() {
        let text = shown(
            "h2",
            json!({
                "state": "draining",
                "story": ["2026-01-01T00:00:00.000Z host-draining: h2 is emptied"],
                "host": {"name": "h2"},
                "runs": [
                    {"workload": "default/web", "replicas": 2, "ready": 2, "stays": null},
                    {"workload": "default/sum", "replicas": 1, "ready": 1, "stays": "it runs to its end"},
                    {"workload": "shop/ph", "replicas": 1, "ready": 0, "lost": 1},
                ],
                "more": 0, "left": 4,
                "refuses": ["anything: draining"],
                "fix": ["uncordon h2"],
            }),
        );
        insta::assert_snapshot!(text, @r"
        h2  draining
          2026-01-01T00:00:00.000Z host-draining: h2 is emptied
          runs 2 replicas of default/web, 2 ready
          runs 1 replica of default/sum, 1 ready; stays: it runs to its end
          held 1 replica of shop/ph, 1 lost
          does not get anything: draining
          fix: uncordon h2
        ");
    }

    #[test]
    fn a_replica_tells_its_life() {
        let text = shown(
            "web/2-7-1",
            json!({
                "state": "failed", "ready": false, "workload": "default/web", "slot": 2,
                "revision": 3, "host": "h1",
                "story": ["2026-01-01T00:00:00.000Z replica-failed: out of memory"],
                "reason": "out of memory", "exit_code": 137,
                "fix": ["see `wasmorch logs web/2-7-1`"],
            }),
        );
        insta::assert_snapshot!(text, @r"
        web/2-7-1  failed
          slot 2, revision 3, on h1
          2026-01-01T00:00:00.000Z replica-failed: out of memory
          because: exit code 137, out of memory
          fix: see `wasmorch logs web/2-7-1`
        ");
    }
}
