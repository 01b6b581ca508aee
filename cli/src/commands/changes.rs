//! `scale`, `stop`, `start`, `rm`: changes that make no revision, answered once they are stored.

use std::time::{Duration, Instant};

use wasmorch_api::messages::{ChangeReply, ChangeRequest};
use wasmorch_api::{ErrorCode, Name};

use super::show::one_or_all;
use super::{Context, request_id};
use crate::args::{ScaleTo, Target};
use crate::cluster;
use crate::error::{CliError, Exit};
use crate::link::Link;
use crate::out::human::count;
use crate::out::table::Tone;

/// How long `rm --data` waits for replicas to end: longer than they may take to drain.
const ENDED_MAX: Duration = Duration::from_secs(600);
/// Between two looks at them.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// A change of one workload, with nothing in it yet.
pub(crate) fn change_of(workload: &Name) -> ChangeRequest {
    ChangeRequest {
        workload: workload.clone(),
        desired: None,
        args: None,
        data: false,
        request_id: Some(request_id()),
        by: Some(cluster::user()),
    }
}

/// `scale`. The first refusal ends it; what was asked before stands, and was said.
pub(crate) async fn scale(ctx: &Context, to: &[ScaleTo]) -> Result<Exit, CliError> {
    let namespace = ctx.global.namespace();
    let link = ctx.link().await?;
    let mut replies = Vec::new();
    for scale in to {
        let request = ChangeRequest {
            desired: Some(scale.desired),
            ..change_of(&scale.name)
        };
        let reply: ChangeReply = link.call(Some(&namespace), "scale", &request).await?;
        if !ctx.out.is_json() {
            let wanted = count(u64::from(reply.desired), "replica");
            say(ctx, &reply, &format!("{wanted} wanted"))?;
            if let Some(note) = &reply.note {
                ctx.out.line(&format!("  {note}"))?;
            }
        }
        replies.push(reply);
    }
    if ctx.out.is_json() {
        match replies.as_slice() {
            [one] => ctx.out.json(one)?,
            all => ctx.out.json(&all)?,
        }
    }
    Ok(Exit::OK)
}

/// `stop`.
pub(crate) async fn stop(ctx: &Context, target: &Target) -> Result<Exit, CliError> {
    each(
        ctx,
        target,
        "stop",
        |request| request,
        |_| "stopped; `wasmorch start` undoes it".into(),
    )
    .await
}

/// `start`.
pub(crate) async fn start(
    ctx: &Context,
    target: &Target,
    args: Vec<String>,
) -> Result<Exit, CliError> {
    let args = (!args.is_empty()).then_some(args);
    let request = |request| ChangeRequest {
        args: args.clone(),
        ..request
    };
    each(ctx, target, "start", request, |reply| {
        format!("started, {}", reply.state)
    })
    .await
}

/// `rm`.
pub(crate) async fn rm(ctx: &Context, target: &Target, data: bool) -> Result<Exit, CliError> {
    if data {
        return rm_with_data(ctx, target).await;
    }
    each(ctx, target, "rm", |request| request, removed).await
}

fn removed(reply: &ChangeReply) -> String {
    let mut text = "removed".to_owned();
    for kept in &reply.kept {
        text.push_str(&format!("\n  kept: {kept}"));
    }
    text
}

/// Stops what still runs, and waits until it has ended: nobody writes into what is removed. Whether
/// it may be removed at all is asked first.
async fn rm_with_data(ctx: &Context, target: &Target) -> Result<Exit, CliError> {
    let (namespace, names) = ctx.resolve(target)?;
    let link: Link = ctx.link().await?;
    let mut replies = Vec::new();
    for name in &names {
        let began = Instant::now();
        let mut stopped = false;
        let reply: ChangeReply = loop {
            let request = ChangeRequest {
                data: true,
                ..change_of(name)
            };
            match link.call(Some(&namespace), "rm", &request).await {
                Ok(reply) => break reply,
                Err(refused)
                    if refused.code != Some(ErrorCode::Conflict) || began.elapsed() > ENDED_MAX =>
                {
                    return Err(refused);
                }
                Err(_) if !stopped => {
                    let stop = change_of(name);
                    let _: ChangeReply = link.call(Some(&namespace), "stop", &stop).await?;
                    stopped = true;
                }
                Err(_) => tokio::time::sleep(LOOK_AGAIN).await,
            }
        };
        if !ctx.out.is_json() {
            say(ctx, &reply, &removed(&reply))?;
        }
        replies.push(reply);
    }
    if ctx.out.is_json() {
        return one_or_all(ctx, target, &replies);
    }
    Ok(Exit::OK)
}

async fn each(
    ctx: &Context,
    target: &Target,
    verb: &str,
    request: impl Fn(ChangeRequest) -> ChangeRequest,
    text: impl Fn(&ChangeReply) -> String,
) -> Result<Exit, CliError> {
    let (namespace, names) = ctx.resolve(target)?;
    let link: Link = ctx.link().await?;
    let mut replies = Vec::new();
    for name in &names {
        let request = request(change_of(name));
        let reply: ChangeReply = link.call(Some(&namespace), verb, &request).await?;
        if !ctx.out.is_json() {
            say(ctx, &reply, &text(&reply))?;
        }
        replies.push(reply);
    }
    if ctx.out.is_json() {
        return one_or_all(ctx, target, &replies);
    }
    Ok(Exit::OK)
}

fn say(ctx: &Context, reply: &ChangeReply, text: &str) -> Result<(), CliError> {
    let name = Tone::Name.paint(reply.workload.as_str());
    if reply.changed {
        ctx.out.line(&format!("{name}  {text}"))
    } else {
        ctx.out.line(&format!("{name}  unchanged"))
    }
}
