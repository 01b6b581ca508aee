//! `plan`: what a deploy would change.
//!
//! The bytes are uploaded, because the leader checks them as it would for a deploy; nothing refers
//! to them until one comes.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio_util::sync::CancellationToken;
use wasmorch_api::messages::Unplaced;

use super::Context;
use super::source::prepare;
use super::upload::upload;
use crate::args::PlanArgs;
use crate::error::{CliError, Exit};
use crate::out::human::{count, harmless};
use crate::out::table::Tone;
use crate::out::views;

/// The answer to `plan`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
struct Plan {
    index: u64,
    changes: Vec<Change>,
    start: Vec<Step>,
    stop: Vec<Step>,
    #[serde(rename = "move")]
    moves: Vec<Step>,
    more: u64,
    unplaced: Vec<Unplaced>,
    granted: Vec<String>,
    revoked: Vec<String>,
}

/// One difference.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
struct Change {
    op: String,
    path: String,
    from: Value,
    to: Value,
}

/// One replica that would come, go, or be replaced by another.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
struct Step {
    workload: String,
    slot: u64,
    host: String,
    from: String,
    to: String,
    /// Where it is not the deploy's own workload: what it comes of.
    why: String,
}

impl Step {
    fn why(&self) -> String {
        match self.why.as_str() {
            "" => String::new(),
            why => format!(": {}", harmless(why)),
        }
    }
}

/// `plan`.
pub(crate) async fn run(ctx: &Context, args: PlanArgs) -> Result<Exit, CliError> {
    let mut prepared = prepare(ctx, &args.spec)?;
    let link = ctx.link().await?;
    prepared.complete(&link, &args.spec).await?;
    upload(&link, &prepared, None, &CancellationToken::new()).await?;
    let answer: Value = link
        .call(Some(&prepared.namespace), "plan", &prepared.request())
        .await?;
    let plan: Plan = serde_json::from_value(answer.clone()).map_err(|error| {
        CliError::bug(
            "the plan is not one that this version understands",
            error.to_string(),
        )
    })?;
    if ctx.out.is_json() {
        ctx.out.json(&answer)?;
    } else {
        ctx.out.text(&render(&plan))?;
    }
    Ok(if plan.unplaced.is_empty() {
        Exit::OK
    } else {
        Exit::UNPLACED
    })
}

fn render(plan: &Plan) -> String {
    let mut text = String::new();
    for change in &plan.changes {
        let line = match change.op.as_str() {
            "add" if change.to.is_object() => format!("+ {}", change.path),
            "add" => format!("+ {}: {}", change.path, value(&change.to)),
            "remove" => format!("- {}: {}", change.path, value(&change.from)),
            _ => format!(
                "~ {}: {} -> {}",
                change.path,
                value(&change.from),
                value(&change.to)
            ),
        };
        let tone = match change.op.as_str() {
            "add" => Tone::Good,
            "remove" => Tone::Bad,
            _ => Tone::Warn,
        };
        text.push_str(&format!("{}\n", tone.paint(&line)));
    }
    for grant in &plan.granted {
        // What a revision gains is what a reviewer looks for.
        let line = format!("! gains {}", harmless(grant));
        text.push_str(&format!("{}\n", Tone::Bad.paint(&line)));
    }
    for grant in &plan.revoked {
        text.push_str(&format!("- loses {}\n", harmless(grant)));
    }
    for step in &plan.start {
        let line = format!(
            "+ {} slot {}: starts on {}",
            step.workload, step.slot, step.host
        );
        text.push_str(&format!("{}\n", Tone::Good.paint(&line)));
    }
    for step in &plan.stop {
        let line = format!(
            "- {} slot {}: stops on {}{}",
            step.workload,
            step.slot,
            step.host,
            step.why()
        );
        text.push_str(&format!("{}\n", Tone::Bad.paint(&line)));
    }
    for step in &plan.moves {
        let way = if step.from == step.to {
            format!("replaced on {}", step.to)
        } else {
            format!("moves from {} to {}", step.from, step.to)
        };
        let why = step.why();
        let line = format!("~ {} slot {}: {way}{why}", step.workload, step.slot);
        text.push_str(&format!("{}\n", Tone::Warn.paint(&line)));
    }
    if plan.more > 0 {
        let more = count(plan.more, "slot");
        text.push_str(&format!("~ and {more} more\n"));
    }
    for unplaced in &plan.unplaced {
        text.push_str(&views::unplaced(unplaced));
    }
    if text.is_empty() {
        return "nothing would change\n".into();
    }
    let sum = format!(
        "{}; {} to start, {} to stop, {} to move",
        count(plan.changes.len() as u64, "change"),
        plan.start.len(),
        plan.stop.len(),
        plan.moves.len(),
    );
    let how = format!("deploy exactly this with --if-index {}", plan.index);
    text.push_str(&format!(
        "{}\n{}\n",
        Tone::Dim.paint(&sum),
        Tone::Dim.paint(&how)
    ));
    text
}

/// A value in a line: text without quotes, the rest as JSON.
fn value(value: &Value) -> String {
    match value {
        Value::String(text) => harmless(text),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_plan_reads_as_a_list_of_changes() {
        let plan: Plan = serde_json::from_value(json!({
            "index": 42,
            "changes": [
                {"op": "change", "path": "default/web.environment.LANG", "from": "en", "to": "de"},
                {"op": "add", "path": "default/orders", "from": null, "to": {"name": "orders"}},
                {"op": "remove", "path": "default/web.routes[0]", "from": "a.example.com/", "to": null},
            ],
            "start": [{"workload": "default/orders", "slot": 1, "host": "h1"}],
            "stop": [
                {"workload": "default/web", "slot": 3, "host": "h2"},
                {"workload": "default/late", "slot": 1, "host": "h2", "why": "made room for a workload of higher priority"},
            ],
            "move": [
                {"workload": "default/web", "slot": 1, "host": "h3", "from": "h1", "to": "h3"},
                {"workload": "default/web", "slot": 2, "host": "h2", "from": "h2", "to": "h2"},
            ],
            "more": 12,
            "unplaced": [{"workload": "default/web", "slots": 1, "evaluated": 1,
                "filtered": {"memory": 1}, "lacking": {"memory": 1048576},
                "fix": ["add a host"]}],
            "granted": ["default/web: --grant http=api.example.com"],
            "revoked": ["default/web: --grant publish=a.b"],
        }))
        .unwrap();
        let text = anstream::adapter::strip_str(&render(&plan)).to_string();
        assert!(
            text.lines().all(|line| line.chars().count() <= 80),
            "{text}"
        );
        insta::assert_snapshot!(text, @r"
        ~ default/web.environment.LANG: en -> de
        + default/orders
        - default/web.routes[0]: a.example.com/
        ! gains default/web: --grant http=api.example.com
        - loses default/web: --grant publish=a.b
        + default/orders slot 1: starts on h1
        - default/web slot 3: stops on h2
        - default/late slot 1: stops on h2: made room for a workload of higher priority
        ~ default/web slot 1: moves from h1 to h3
        ~ default/web slot 2: replaced on h2
        ~ and 12 slots more
        unplaced: 1 replica of default/web (1 host looked at)
          1 host: memory
          the nearest host lacks 1.0 MiB of memory
          fix: add a host
        3 changes; 1 to start, 2 to stop, 2 to move
        deploy exactly this with --if-index 42
        ");
        assert_eq!(render(&Plan::default()), "nothing would change\n");
    }
}
