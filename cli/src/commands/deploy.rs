//! `deploy`: read and check, upload, ask, follow.
//!
//! ```text
//!  file ─ source ─▶ Prepared ─ upload ─▶ request ─ acknowledged ─▶ follow ─▶ ready | why not
//!  └──── Ctrl-C leaves nothing (130) ────────────┘ └── the rollout goes on (130) ──┘
//! ```

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use wasmorch_api::messages::{DeployReply, Deployed, WorkloadState};
use wasmorch_api::{Name, Problem};

use super::follow::{Followed, Verdict, awaits_a_person, done_word, follow};
use super::source::{Prepared, prepare};
use super::upload::upload;
use super::{Context, Interrupt, logs};
use crate::args::DeployArgs;
use crate::error::{CliError, Exit};
use crate::link::Link;
use crate::out::progress::Progress;
use crate::out::table::Tone;
use crate::out::views;

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
    let moving: Vec<Followed> = reply
        .workloads
        .iter()
        .filter(|one| one.changed)
        .map(|one| Followed::new(one.name.clone(), one.revision))
        .collect();
    if moving.is_empty() || args.detach {
        return detached(ctx, &reply);
    }
    let exit = wait_for(
        ctx,
        &link,
        &prepared.namespace,
        moving,
        &reply.workloads,
        &mut interrupt,
    )
    .await?;
    ctx.out
        .note(&Tone::Dim.paint(&format!("done in {}", views::took(started.elapsed()))));
    Ok(exit)
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
            Ok(Ok(reply)) => Err(goes_on(reply.workloads.iter().map(|one| &one.name))),
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

fn goes_on<'a>(names: impl Iterator<Item = &'a Name>) -> CliError {
    let names: Vec<&str> = names.map(Name::as_str).collect();
    let name = names.first().copied().unwrap_or("WORKLOAD");
    CliError {
        fix: format!(
            "`wasmorch rollout status {name}` shows it, `wasmorch rollout abort {name}` ends it"
        ),
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

/// Nothing to wait for, or nobody who wants to.
fn detached(ctx: &Context, reply: &DeployReply) -> Result<Exit, CliError> {
    if ctx.out.is_json() {
        ctx.out.json_line(reply)?;
        return Ok(Exit::OK);
    }
    for one in &reply.workloads {
        let (word, tone) = if one.changed {
            ("deployed", Tone::Plain)
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

/// Follows to the end and prints the result. `deployed`: the answer, for what did not change.
pub(super) async fn wait_for(
    ctx: &Context,
    link: &Link,
    namespace: &Name,
    mut moving: Vec<Followed>,
    deployed: &[Deployed],
    interrupt: &mut Interrupt,
) -> Result<Exit, CliError> {
    let progress = Progress::new(ctx.out);
    let names: Vec<Name> = moving
        .iter()
        .map(|followed| followed.name.clone())
        .collect();
    tokio::select! {
        followed = follow(ctx, link, namespace, &mut moving, &progress) => followed?,
        () = interrupt.next() => return Err(goes_on(names.iter())),
    }
    let unchanged = deployed.iter().filter(|one| !one.changed);
    if ctx.out.is_json() {
        let mut results: Vec<Value> = moving.iter().map(result_of).collect();
        results.extend(unchanged.map(|one| json!(one)));
        ctx.out.json_line(&json!({ "workloads": results }))?;
    } else {
        for one in unchanged {
            let line =
                views::deployed(&one.name, "unchanged", Tone::Dim, one.revision.0, &one.urls);
            ctx.out.line(&line)?;
        }
        for followed in moving
            .iter()
            .filter(|one| one.verdict == Some(Verdict::Done))
        {
            let Some(status) = &followed.last else {
                continue;
            };
            let (word, tone) = done_word(status);
            let urls = &status.summary.urls;
            let revision = followed.revision.0;
            ctx.out
                .line(&views::deployed(&followed.name, word, tone, revision, urls))?;
            if let Some(reason) = awaits_a_person(status) {
                ctx.out.line(&format!("  {reason}"))?;
            }
        }
    }
    match failure(&moving) {
        None => Ok(Exit::OK),
        Some(error) => {
            show_tails(ctx, link, namespace, &moving).await;
            Err(error)
        }
    }
}

fn result_of(followed: &Followed) -> Value {
    let summary = followed.last.as_ref().map(|status| &status.summary);
    let reason = match &followed.verdict {
        Some(Verdict::Failed(reason)) => Some(reason.clone()),
        Some(Verdict::Superseded(by)) => Some(format!("revision {by} took its place")),
        _ => None,
    };
    json!({
        "name": followed.name,
        "revision": followed.revision,
        "changed": true,
        "succeeded": followed.verdict == Some(Verdict::Done),
        "state": summary.map_or(WorkloadState::Pending, |summary| summary.state),
        "ready": summary.map_or(0, |summary| summary.ready),
        "desired": summary.map_or(0, |summary| summary.desired),
        "rollout": followed.last.as_ref().and_then(|status| status.rollout.as_ref()),
        "outcome": followed.last.as_ref().and_then(|status| status.outcome.as_ref()),
        "urls": summary.map(|summary| summary.urls.clone()).unwrap_or_default(),
        "reason": reason,
    })
}

/// The one error of all that did not end as asked.
fn failure(moving: &[Followed]) -> Option<CliError> {
    let mut failed = Vec::new();
    for followed in moving {
        match &followed.verdict {
            Some(Verdict::Failed(reason)) => failed.push((Exit::FAILED, followed, reason.clone())),
            Some(Verdict::Superseded(by)) => {
                let why = format!(
                    "revision {by} took the place of revision {}",
                    followed.revision
                );
                failed.push((Exit::CONFLICT, followed, why));
            }
            _ => {}
        }
    }
    let (exit, first, why) = failed.first()?.clone();
    let fix = format!(
        "`wasmorch why {0}` and `wasmorch logs {0}` tell more",
        first.name
    );
    if failed.len() == 1 {
        let what = format!("{} did not get there", first.name);
        return Some(CliError::new(exit, what, why, fix));
    }
    let exit = if failed.iter().all(|(exit, ..)| *exit == Exit::CONFLICT) {
        exit
    } else {
        Exit::FAILED
    };
    let problems = failed.iter().map(|(_, followed, why)| Problem {
        at: followed.name.to_string(),
        line: None,
        column: None,
        what: why.clone(),
    });
    let what = format!(
        "{} of {} workloads did not get there",
        failed.len(),
        moving.len()
    );
    Some(CliError::new(exit, what, "", fix).with_problems(None, problems.collect()))
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
    use wasmorch_api::RevisionNumber;

    use super::*;

    fn ended(name: &str, verdict: Verdict) -> Followed {
        let mut followed = Followed::new(name.parse().unwrap(), RevisionNumber(2));
        followed.verdict = Some(verdict);
        followed
    }

    #[test]
    fn what_failed_decides_the_exit_code() {
        let done = || ended("a", Verdict::Done);
        let failed = || ended("b", Verdict::Failed("trap".into()));
        let lost = || ended("c", Verdict::Superseded(RevisionNumber(3)));
        assert!(failure(&[done()]).is_none());
        let one = failure(&[done(), failed()]).unwrap();
        assert_eq!((one.exit, one.why.as_str()), (Exit::FAILED, "trap"));
        assert_eq!(failure(&[lost()]).unwrap().exit, Exit::CONFLICT);
        let both = failure(&[failed(), lost(), done()]).unwrap();
        assert_eq!((both.exit, both.problems.len()), (Exit::FAILED, 2));
    }
}
