//! `rollout`, `rollback`, `restart`: what moves between revisions.

use serde_json::json;
use wasmorch_api::messages::{
    ChangeReply, DeployReply, RolloutAction as Action, RolloutRequest, RolloutView, StatusReply,
    WorkloadRequest,
};
use wasmorch_api::{Name, RevisionNumber};

use super::changes::change_of;
use super::deploy::wait_for;
use super::follow::Followed;
use super::show::one_or_all;
use super::{Context, Interrupt, now, request_id};
use crate::args::{RolloutAction, RolloutArgs, Target, Waited};
use crate::cluster;
use crate::error::{CliError, Exit};
use crate::link::Link;
use crate::out::table::Tone;
use crate::out::views;

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
        let view: RolloutView = link.call(Some(&namespace), "rollout", &request).await?;
        if !ctx.out.is_json() {
            let name = Tone::Name.paint(name.as_str());
            ctx.out
                .line(&format!("{name}  {}", views::rollout(&view, now())))?;
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
        let mut workloads = Vec::new();
        for name in &names {
            let request = RolloutRequest {
                to: to.map(RevisionNumber),
                ..request_of(name)
            };
            let reply: DeployReply = link.call(Some(&namespace), "rollback", &request).await?;
            workloads.extend(reply.workloads);
        }
        Ok::<_, CliError>((link, workloads))
    };
    let (link, workloads) = unless(&mut interrupt, asking).await?;
    // What is stopped, or waits for its time, has no rollout to wait for.
    for one in workloads.iter().filter(|one| one.rollout.is_none()) {
        if !ctx.out.is_json() {
            let word = if one.changed { "" } else { "unchanged  " };
            ctx.out
                .line(&format!("{}  {word}revision {}", one.name, one.revision))?;
        }
    }
    let moving: Vec<Followed> = workloads
        .iter()
        .filter(|one| one.rollout.is_some())
        .map(|one| Followed::new(one.name.clone(), one.revision))
        .collect();
    if detach || moving.is_empty() {
        if ctx.out.is_json() {
            ctx.out.json_line(&json!({ "workloads": workloads }))?;
        }
        return Ok(Exit::OK);
    }
    wait_for(ctx, &link, &namespace, moving, &workloads, &mut interrupt).await
}

/// `restart W`.
pub(crate) async fn restart(ctx: &Context, args: Waited) -> Result<Exit, CliError> {
    let mut interrupt = Interrupt::listen()?;
    let (namespace, names) = ctx.resolve(&args.target)?;
    let asking = async {
        let link: Link = ctx.link().await?;
        let mut moving = Vec::new();
        let mut replies = Vec::new();
        for name in &names {
            let reply: ChangeReply = link
                .call(Some(&namespace), "restart", &change_of(name))
                .await?;
            let request = WorkloadRequest {
                workload: name.clone(),
                all: false,
            };
            let status: StatusReply = link.call(Some(&namespace), "status", &request).await?;
            if reply.changed {
                moving.push(Followed::new(name.clone(), status.summary.revision));
            }
            replies.push(reply);
        }
        Ok::<_, CliError>((link, moving, replies))
    };
    let (link, moving, replies) = unless(&mut interrupt, asking).await?;
    if args.detach || moving.is_empty() {
        if ctx.out.is_json() {
            return one_or_all(ctx, &args.target, &replies);
        }
        for reply in &replies {
            ctx.out
                .line(&format!("{}  {}", reply.workload, reply.state))?;
        }
        return Ok(Exit::OK);
    }
    wait_for(ctx, &link, &namespace, moving, &[], &mut interrupt).await
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
