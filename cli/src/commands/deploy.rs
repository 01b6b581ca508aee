//! `deploy`: read and check, upload, ask, follow.
//!
//! ```text
//!  file ─ source ─▶ Prepared ─ upload ─▶ request ─ acknowledged ─▶ follow ─▶ ready | why not
//!  └──── Ctrl-C leaves nothing (130) ────────────┘ └── the rollout goes on (130) ──┘
//! ```

use std::time::{Duration, Instant};

use serde_json::json;
use tokio_util::sync::CancellationToken;
use wasmorch_api::Name;
use wasmorch_api::messages::{DeployReply, RolloutView};

use super::follow::{Followed, follow};
use super::outcome::{failure, result};
use super::source::{Prepared, prepare};
use super::upload::upload;
use super::verdict::{Verdict, awaits_a_person, done_word};
use super::{Context, Interrupt, logs};
use crate::args::DeployArgs;
use crate::error::{CliError, Exit};
use crate::link::Link;
use crate::out::progress::Progress;
use crate::out::table::Tone;
use crate::out::{rollouts, views};

/// After Ctrl-C, an answer that is under way is waited for this long: it decides what is said.
const LAST_WORD: Duration = Duration::from_secs(3);
/// Log lines shown of a workload that failed.
const TAIL: u32 = 10;

/// `deploy`.
pub(crate) async fn run(ctx: &Context, args: DeployArgs) -> Result<Exit, CliError> {
    let started = Instant::now();
    let mut interrupt = Interrupt::listen()?;
    let mut prepared = prepare(ctx, &args.spec)?;
    let progress = Progress::new(ctx.out);
    let stop = CancellationToken::new();
    let link = {
        let work = async {
            let link = ctx.link().await?;
            prepared.complete(&link, &args.spec).await?;
            upload(&link, &prepared, Some(&progress), &stop).await?;
            Ok::<Link, CliError>(link)
        };
        tokio::pin!(work);
        tokio::select! {
            link = &mut work => link?,
            () = interrupt.next() => {
                // What was uploaded so far is taken away again.
                stop.cancel();
                let _ = tokio::time::timeout(LAST_WORD, work).await;
                return Err(CliError::interrupted("interrupted: nothing was deployed"));
            }
        }
    };
    let reply = ask(&link, &prepared, &mut interrupt).await?;
    report_revisions(&progress, &reply)?;
    if args.detach {
        return detached(ctx, &reply, "deployed");
    }
    let going = Going {
        index: reply.index,
        all: reply.workloads.iter().map(Followed::of).collect(),
        since: Some(started),
    };
    wait_for(ctx, &link, &prepared.namespace, going, &mut interrupt).await
}

/// Asks for the deploy. Ctrl-C while the answer is under way waits for it a moment.
async fn ask(
    link: &Link,
    prepared: &Prepared,
    interrupt: &mut Interrupt,
) -> Result<DeployReply, CliError> {
    let request = prepared.request();
    let asking = link.call::<_, DeployReply>(Some(&prepared.namespace), "deploy", &request);
    tokio::pin!(asking);
    tokio::select! {
        biased;
        reply = &mut asking => reply,
        () = interrupt.next() => match tokio::time::timeout(LAST_WORD, asking).await {
            Ok(Ok(reply)) => {
                let all = reply.workloads.iter();
                Err(goes_on(all.map(|one| (&one.name, one.rollout.as_ref()))))
            }
            // A refusal. Without one, the answer was lost: the deploy may have been stored.
            Ok(Err(error)) if error.code.is_some() => {
                Err(CliError::interrupted("interrupted: nothing was deployed"))
            }
            Ok(Err(_)) | Err(_) => Err(CliError {
                why: "the cluster had been asked and has not answered".into(),
                fix: "see what became of it: `wasmorch ps`".into(),
                ..CliError::interrupted("interrupted")
            }),
        }
    }
}

/// What was interrupted, each with its rollout as far as it is known.
fn goes_on<'a>(all: impl Iterator<Item = (&'a Name, Option<&'a RolloutView>)>) -> CliError {
    let all: Vec<_> = all.collect();
    let name = all.first().map_or("WORKLOAD", |(name, _)| name.as_str());
    let end = match all.first().and_then(|(_, rollout)| *rollout) {
        Some(view)
            if view.from.is_some_and(|from| from != view.revision) || !view.with.is_empty() =>
        {
            format!(", `wasmorch rollout abort {name}` ends it")
        }
        // A restart: what it comes from is what it goes to.
        Some(view) if view.from.is_some() => {
            format!(", `wasmorch rollout pause {name}` holds it")
        }
        // There is nothing to go back to from a first revision.
        Some(_) => format!(",\n`wasmorch stop {name}` or `wasmorch rm {name}` ends it"),
        None => String::new(),
    };
    let names: Vec<&str> = all.iter().map(|(name, _)| name.as_str()).collect();
    CliError {
        fix: format!("`wasmorch rollout status {name}` shows it{end}"),
        ..CliError::interrupted(format!(
            "interrupted: the rollout of {} goes on",
            names.join(", ")
        ))
    }
}

fn report_revisions(progress: &Progress, reply: &DeployReply) -> Result<(), CliError> {
    for one in reply.workloads.iter().filter(|one| one.changed) {
        let object = json!({ "stage": "revision", "workload": one.name, "revision": one.revision });
        progress.stage(&format!("{}  revision {}", one.name, one.revision), &object)?;
    }
    Ok(())
}

/// Nobody wants to wait. `word`: for what changed.
pub(super) fn detached(ctx: &Context, reply: &DeployReply, word: &str) -> Result<Exit, CliError> {
    if ctx.out.is_json() {
        ctx.out.json_line(reply)?;
        return Ok(Exit::OK);
    }
    for one in &reply.workloads {
        let (word, tone) = if one.changed {
            (word, Tone::Plain)
        } else {
            ("unchanged", Tone::Dim)
        };
        ctx.out.line(&views::deployed(
            &one.name,
            word,
            tone,
            one.revision.0,
            &one.urls,
        ))?;
    }
    Ok(Exit::OK)
}

/// What a command has asked for, and follows now.
pub(super) struct Going {
    /// The index that it was answered.
    pub(super) index: u64,
    pub(super) all: Vec<Followed>,
    /// Since when, where it is said how long it took.
    pub(super) since: Option<Instant>,
}

/// Follows to the end and prints the result.
pub(super) async fn wait_for(
    ctx: &Context,
    link: &Link,
    namespace: &Name,
    mut going: Going,
    interrupt: &mut Interrupt,
) -> Result<Exit, CliError> {
    let progress = Progress::new(ctx.out);
    let interrupted = tokio::select! {
        followed = follow(ctx, link, namespace, &mut going.all, &progress) => {
            followed?;
            false
        }
        () = interrupt.next() => true,
    };
    if interrupted {
        let open = going.all.iter().filter(|one| one.verdict.is_none());
        return Err(goes_on(open.map(|one| (&one.name, one.rollout()))));
    }
    let all = &going.all;
    if ctx.out.is_json() {
        ctx.out.json_line(&result(going.index, all))?;
    } else {
        for followed in all {
            report_done(ctx, followed)?;
        }
    }
    if let Some(error) = failure(all) {
        show_tails(ctx, link, namespace, all).await;
        return Err(error);
    }
    if let Some(since) = going.since
        && !all.iter().all(|followed| followed.at_once)
    {
        let awaits = |one: &Followed| {
            one.last
                .as_ref()
                .is_some_and(|last| awaits_a_person(last).is_some())
        };
        let word = if all.iter().any(awaits) {
            "canaries ready"
        } else {
            "done"
        };
        let took = views::took(since.elapsed());
        ctx.out.note(&Tone::Dim.paint(&format!("{word} in {took}")));
    }
    Ok(Exit::OK)
}

/// A line for what ended as asked, and what it waits for.
fn report_done(ctx: &Context, followed: &Followed) -> Result<(), CliError> {
    let status = followed.last.as_ref();
    let done = followed.verdict == Some(Verdict::Done);
    let Some(status) = status.filter(|_| done) else {
        return Ok(());
    };
    let (word, tone) = done_word(status);
    let awaits = awaits_a_person(status).zip(status.rollout.as_ref());
    let (word, tone) = match (followed.changed, followed.at_once && awaits.is_none()) {
        (true, _) => (word.to_owned(), tone),
        (false, true) => ("unchanged".to_owned(), Tone::Dim),
        (false, false) => (format!("unchanged, {word}"), tone),
    };
    let (name, revision) = (&followed.name, followed.revision.0);
    ctx.out.line(&views::deployed(
        name,
        &word,
        tone,
        revision,
        &status.summary.urls,
    ))?;
    if let Some((_, rollout)) = awaits {
        ctx.out
            .line(&format!("  {}", rollouts::canary_waits(name, rollout)))?;
    }
    Ok(())
}

/// The last lines of what failed, on stderr.
async fn show_tails(ctx: &Context, link: &Link, namespace: &Name, moving: &[Followed]) {
    if ctx.out.is_json() {
        return;
    }
    let failed = moving
        .iter()
        .filter(|one| matches!(one.verdict, Some(Verdict::Failed(_))));
    for followed in failed {
        let request = wasmorch_api::messages::WorkloadRequest {
            workload: followed.name.clone(),
            all: true,
        };
        let status = link.call(Some(namespace), "status", &request).await;
        let Ok::<wasmorch_api::messages::StatusReply, _>(status) = status else {
            continue;
        };
        let replicas = &status.replicas;
        let lines = logs::tail_of(link, namespace, &followed.name, replicas, TAIL).await;
        for line in &lines {
            ctx.out
                .note(views::log_line(&followed.name, line).trim_end());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interrupted_deploy_is_told_how_to_end_it() {
        let name: Name = "slow".parse().unwrap();
        let fix = |from: Option<u64>, with: &[&str]| {
            let view: RolloutView = serde_json::from_value(json!({
                "revision": 2, "from": from, "state": "rolling", "updated": 0, "ready": 0,
                "desired": 1, "deadline": "2026-01-01T00:02:00Z", "with": with,
            }))
            .unwrap();
            goes_on([(&name, Some(&view))].into_iter()).fix
        };
        assert!(fix(Some(1), &[]).contains("wasmorch rollout abort slow"));
        // What was deployed together goes back together.
        assert!(fix(None, &["orders"]).contains("wasmorch rollout abort slow"));
        assert!(fix(Some(2), &[]).contains("wasmorch rollout pause slow"));
        assert!(!goes_on([(&name, None)].into_iter()).fix.contains("end"));
        let first = fix(None, &[]);
        assert!(first.contains("`wasmorch rm slow` ends it"), "{first}");
        assert!(!first.contains("abort"), "{first}");
    }
}
