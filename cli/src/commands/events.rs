//! `events`: what happened in the cluster, and what comes.

use wasmorch_api::{Event, HumanDuration};

use super::{Context, Interrupt, now};
use crate::args::EventsArgs;
use crate::error::{CliError, Exit};
use crate::out::views;

/// Without `--since`, so long ago.
const SINCE: HumanDuration = HumanDuration::secs(3_600);

/// `events [-f] [--since D]`.
pub(crate) async fn run(ctx: &Context, args: EventsArgs) -> Result<Exit, CliError> {
    let mut interrupt = Interrupt::listen()?;
    tokio::select! {
        ended = show(ctx, &args) => ended,
        () = interrupt.next() => {
            if args.follow { Ok(Exit::OK) } else { Err(CliError::interrupted("interrupted")) }
        }
    }
}

async fn show(ctx: &Context, args: &EventsArgs) -> Result<Exit, CliError> {
    let since = args.since.unwrap_or(SINCE).0;
    let ms = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
    let from = wasmorch_api::Timestamp(now().0.saturating_sub(ms));
    let mut events = ctx
        .link()
        .await?
        .events(&ctx.global.namespace(), from)
        .await?;
    let past = events.past().await?;
    if !args.follow && ctx.out.is_json() {
        ctx.out.json(&past)?;
        return Ok(Exit::OK);
    }
    for event in &past {
        print(ctx, event)?;
    }
    if !args.follow {
        if past.is_empty() {
            ctx.out
                .note(&format!("no events in the last {}", HumanDuration(since)));
        }
        return Ok(Exit::OK);
    }
    loop {
        if let Some(event) = events.next().await? {
            print(ctx, &event)?;
        }
    }
}

fn print(ctx: &Context, event: &Event) -> Result<(), CliError> {
    if ctx.out.is_json() {
        ctx.out.json_line(event)
    } else {
        ctx.out.line(&views::event(event))
    }
}
