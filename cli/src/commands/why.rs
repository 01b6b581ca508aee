//! `why`: the cluster's own account of how something stands.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;
use wasmorch_api::messages::{Unplaced, WhyRequest};
use wasmorch_api::{Name, ReplicaId};

use super::Context;
use crate::error::{CliError, Exit};
use crate::out::human::harmless;
use crate::out::table::{Table, Tone};
use crate::out::views;

/// The answer.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Why {
    state: Value,
    story: Vec<String>,
    unplaced: Option<Unplaced>,
    filtered: BTreeMap<String, Vec<String>>,
    scores: Vec<Score>,
    fix: Vec<String>,
}

/// How one host would do.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Score {
    host: String,
    total: Value,
    parts: Value,
}

/// `why W|HOST|REPLICA`.
pub(crate) async fn run(ctx: &Context, subject: &str) -> Result<Exit, CliError> {
    let namespace = ctx.global.namespace();
    let link = ctx.link().await?;
    let request = request_of(subject)?;
    let asked = link
        .call::<_, Value>(Some(&namespace), "why", &request)
        .await;
    let answer = match asked {
        // A bare name is a workload's first, then a host's.
        Err(error) if error.exit == Exit::NOT_FOUND && request.workload.is_some() => {
            let host = WhyRequest {
                host: Some(subject.to_owned()),
                ..WhyRequest::default()
            };
            match link.call::<_, Value>(Some(&namespace), "why", &host).await {
                Ok(answer) => answer,
                // What the user most likely meant was the workload.
                Err(_) => return Err(error),
            }
        }
        other => other?,
    };
    if ctx.out.is_json() {
        ctx.out.json(&answer)?;
        return Ok(Exit::OK);
    }
    let why: Why = serde_json::from_value(answer).map_err(|error| {
        CliError::bug(
            "the answer is not one that this version understands",
            error.to_string(),
        )
    })?;
    ctx.out.text(&render(subject, &why, ctx.out.width()))?;
    Ok(Exit::OK)
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
    let state = why
        .state
        .as_str()
        .map_or_else(|| why.state.to_string(), str::to_owned);
    let mut text = format!("{}  {state}\n", Tone::Name.paint(subject));
    for line in &why.story {
        text.push_str(&format!("  {}\n", harmless(line)));
    }
    if let Some(unplaced) = &why.unplaced {
        text.push_str(&views::unplaced(unplaced));
    }
    for (filter, hosts) in &why.filtered {
        text.push_str(&format!("  not on {}: {filter}\n", hosts.join(", ")));
    }
    if !why.scores.is_empty() {
        let mut table = Table::new(&["HOST", ">SCORE", "PARTS"]);
        for score in &why.scores {
            table.row(vec![
                score.host.clone().into(),
                score.total.to_string().into(),
                parts(&score.parts).into(),
            ]);
        }
        text.push_str(&table.render(width));
    }
    for fix in &why.fix {
        text.push_str(&format!(
            "  {} {}\n",
            Tone::Dim.paint("fix:"),
            harmless(fix)
        ));
    }
    text
}

/// `{"spread": 40}` and `[["spread", 40]]` alike.
fn parts(parts: &Value) -> String {
    match parts {
        Value::Object(fields) => {
            let fields = fields
                .iter()
                .map(|(name, points)| format!("{name} {points}"));
            fields.collect::<Vec<_>>().join(", ")
        }
        Value::Array(items) => {
            let words = items.iter().map(|item| match item {
                Value::Array(pair) => pair.iter().map(word).collect::<Vec<_>>().join(" "),
                other => word(other),
            });
            words.collect::<Vec<_>>().join(", ")
        }
        other => word(other),
    }
}

fn word(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

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

    #[test]
    fn the_account_reads_from_top_to_bottom() {
        let why: Why = serde_json::from_value(json!({
            "state": "degraded",
            "story": ["2026-01-01T00:00:00.000Z deployed: first revision"],
            "unplaced": null,
            "filtered": {"cordoned": ["h2"]},
            "scores": [{"host": "h1", "total": 71, "parts": {"spread": 40, "room": 31}}],
            "fix": ["uncordon h2"],
        }))
        .unwrap();
        insta::assert_snapshot!(
            anstream::adapter::strip_str(&render("web", &why, Some(80))).to_string()
        );
    }
}
