//! `rollout`, `rollback`, `restart`: what moves between revisions.

use std::path::Path;

use wasmorch_api::messages::{
    ChangeReply, DeployReply, RolloutAction as Action, RolloutRequest, RolloutView, StatusReply,
    WorkloadState,
};
use wasmorch_api::{Name, Problem, RevisionNumber};

use super::changes::change_of;
use super::deploy::{Going, detached, wait_for};
use super::follow::Followed;
use super::show::{one_or_all, statuses};
use super::{Context, Interrupt, now, request_id};
use crate::args::{RolloutAction, RolloutArgs, Target, Waited};
use crate::cluster;
use crate::error::{CliError, Exit};
use crate::link::Link;
use crate::out::rollouts;
use crate::out::table::Tone;

fn request_of(workload: &Name) -> RolloutRequest {
    RolloutRequest {
        workload: workload.clone(),
        to: None,
        action: None,
        request_id: Some(request_id()),
        by: Some(cluster::user()),
    }
}

/// `rollout ACTION W`.
pub(crate) async fn act(ctx: &Context, args: &RolloutArgs) -> Result<Exit, CliError> {
    let action = match args.action {
        RolloutAction::Status => Action::Status,
        RolloutAction::Pause => Action::Pause,
        RolloutAction::Resume => Action::Resume,
        RolloutAction::Promote => Action::Promote,
        RolloutAction::Abort => Action::Abort,
    };
    let (namespace, names) = ctx.resolve(&args.target)?;
    let link = ctx.link().await?;
    let mut views = Vec::new();
    for name in &names {
        let request = RolloutRequest {
            action: Some(action),
            ..request_of(name)
        };
        // A cron workload has none, unless others were deployed with it.
        let view: Option<RolloutView> = link.call(Some(&namespace), "rollout", &request).await?;
        if !ctx.out.is_json() {
            let text = rollouts::rollout_or_none(view.as_ref(), now());
            let name = Tone::Name.paint(name.as_str());
            ctx.out.line(&format!("{name}  {text}"))?;
        }
        views.push(view);
    }
    if ctx.out.is_json() {
        return one_or_all(ctx, &args.target, &views);
    }
    Ok(Exit::OK)
}

/// `rollback W [--to N]`.
pub(crate) async fn rollback(
    ctx: &Context,
    target: &Target,
    to: Option<u64>,
    detach: bool,
) -> Result<Exit, CliError> {
    let mut interrupt = Interrupt::listen()?;
    let (namespace, names) = ctx.resolve(target)?;
    if to.is_some() && names.len() > 1 {
        return Err(CliError::usage(
            "--to names a revision of one workload",
            "name the workload instead of its manifest",
        ));
    }
    let asking = async {
        let link = ctx.link().await?;
        let mut all = DeployReply {
            index: 0,
            workloads: Vec::new(),
        };
        for name in &names {
            let request = RolloutRequest {
                to: to.map(RevisionNumber),
                ..request_of(name)
            };
            let reply: DeployReply = link.call(Some(&namespace), "rollback", &request).await?;
            all.index = all.index.max(reply.index);
            all.workloads.extend(reply.workloads);
        }
        Ok::<_, CliError>((link, all))
    };
    let (link, reply) = unless(&mut interrupt, asking).await?;
    if detach {
        return detached(ctx, &reply, "going back");
    }
    let going = Going {
        index: reply.index,
        all: reply.workloads.iter().map(Followed::of).collect(),
        since: None,
    };
    wait_for(ctx, &link, &namespace, going, &mut interrupt).await
}

/// `restart W`. Of a manifest all are looked at before any is restarted.
pub(crate) async fn restart(ctx: &Context, args: Waited) -> Result<Exit, CliError> {
    let mut interrupt = Interrupt::listen()?;
    let (namespace, names) = ctx.resolve(&args.target)?;
    let asking = async {
        let link: Link = ctx.link().await?;
        let mut found = statuses(&link, &namespace, &names, false).await?;
        if let Target::Manifest(file) = &args.target {
            let (restarted, left_out) = restartable(file, found)?;
            for one in &left_out {
                let (name, kind) = (&one.summary.name, one.summary.kind);
                ctx.out.note(&format!(
                    "{name}  left out: a {kind} is not restarted, `wasmorch start {name}` runs it now"
                ));
            }
            found = restarted;
        }
        let (mut all, mut replies) = (Vec::new(), Vec::new());
        for status in found {
            let (name, revision) = (status.summary.name, status.summary.revision);
            let request = change_of(&name);
            match link.call(Some(&namespace), "restart", &request).await {
                Ok(reply) => {
                    let reply: ChangeReply = reply;
                    let mut followed = Followed::new(name, revision);
                    followed.changed = reply.changed;
                    all.push(followed);
                    replies.push(reply);
                }
                // What was restarted before is waited for all the same.
                Err(refused) if !all.is_empty() => return Ok((link, all, replies, Some(refused))),
                Err(refused) => return Err(refused),
            }
        }
        Ok::<_, CliError>((link, all, replies, None))
    };
    let (link, all, replies, refused) = unless(&mut interrupt, asking).await?;
    let exit = if args.detach {
        if ctx.out.is_json() {
            one_or_all(ctx, &args.target, &replies)?
        } else {
            for reply in &replies {
                ctx.out
                    .line(&format!("{}  {}", reply.workload, reply.state))?;
            }
            Exit::OK
        }
    } else {
        let going = Going {
            index: 0,
            all,
            since: None,
        };
        wait_for(ctx, &link, &namespace, going, &mut interrupt).await?
    };
    refused.map_or(Ok(exit), Err)
}

/// Which of a manifest's workloads are restarted, and which end by themselves and are left out. One that cannot
/// be restarted now refuses all.
fn restartable(
    file: &Path,
    found: Vec<StatusReply>,
) -> Result<(Vec<StatusReply>, Vec<StatusReply>), CliError> {
    let (left_out, restarted): (Vec<_>, Vec<_>) =
        { found.into_iter() }.partition(|status| status.summary.kind.ends());
    if restarted.is_empty() {
        return Err(CliError::usage(
            format!(
                "nothing in {} is restarted: a job or a cron ends by itself",
                file.display()
            ),
            "run one once more with `wasmorch start WORKLOAD`",
        ));
    }
    let problem = |status: &StatusReply| {
        let name = &status.summary.name;
        let moving = status.rollout.as_ref();
        let moving = moving.filter(|rollout| !rollout.state.ended());
        let what = match moving {
            _ if status.summary.state == WorkloadState::Stopped => {
                format!("it is stopped: `wasmorch start {name}`")
            }
            Some(rollout) => format!("its rollout to revision {} goes on", rollout.revision),
            None => return None,
        };
        let at = name.to_string();
        let (line, column) = (None, None);
        Some(Problem {
            at,
            line,
            column,
            what,
        })
    };
    let problems: Vec<Problem> = restarted.iter().filter_map(problem).collect();
    if problems.is_empty() {
        return Ok((restarted, left_out));
    }
    let what = format!("{} cannot be restarted now: nothing was", file.display());
    let fix = "wait for it, or name the others one by one";
    Err(CliError::new(Exit::CONFLICT, what, "", fix).with_problems(None, problems))
}

async fn unless<T>(
    interrupt: &mut Interrupt,
    work: impl Future<Output = Result<T, CliError>>,
) -> Result<T, CliError> {
    tokio::select! {
        done = work => done,
        () = interrupt.next() => Err(CliError::interrupted("interrupted")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn status(name: &str, kind: &str, state: &str, rollout: &str) -> StatusReply {
        serde_json::from_value(json!({
            "namespace": "default", "name": name, "kind": kind, "revision": 2, "desired": 1,
            "ready": 1, "state": state, "urls": [], "spec": {"name": name}, "replicas": [],
            "rollout": {
                "revision": 2, "from": 1, "state": rollout, "updated": 1, "ready": 1,
                "desired": 1, "deadline": "2026-01-01T00:02:00Z",
            },
        }))
        .unwrap()
    }

    #[test]
    fn all_of_a_manifest_is_looked_at_before_any_is_restarted() {
        let of = |found| restartable(Path::new("shop.toml"), found);
        let web = || status("web", "http", "ready", "completed");
        let cron = || status("nightly", "cron", "idle", "completed");
        let (restarted, left_out) = of(vec![cron(), web()]).unwrap();
        assert_eq!(restarted, [web()]);
        assert_eq!(left_out, [cron()]);
        assert_eq!(of(vec![cron()]).unwrap_err().exit, Exit::USAGE);
        let stopped = status("a", "http", "stopped", "completed");
        let rolling = status("b", "http", "rolling", "rolling");
        let refused = of(vec![web(), stopped, rolling]).unwrap_err();
        assert_eq!((refused.exit, refused.problems.len()), (Exit::CONFLICT, 2));
    }
}
