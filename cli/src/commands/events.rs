//! `events`: what happened in the cluster, and what comes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use wasmorch_api::messages::HostView;
use wasmorch_api::{Event, HostId, HumanDuration, Name};

use super::show::every_page;
use super::{Context, Interrupt, now};
use crate::args::EventsArgs;
use crate::error::{CliError, Exit};
use crate::link::Link;
use crate::out::views;

/// Without `--since`, so long ago.
const SINCE: HumanDuration = HumanDuration::secs(3_600);
/// For the names of hosts; without them their ids are shown.
const NAMES_MAX: Duration = Duration::from_secs(1);
/// Between two questions that nobody answers.
const NAMES_PAUSE: Duration = Duration::from_secs(10);

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
    let link = ctx.link().await?;
    let mut events = link.events(&ctx.global.namespace(), from).await?;
    let past = events.past().await?;
    if !args.follow && ctx.out.is_json() {
        ctx.out.json(&past)?;
        return Ok(Exit::OK);
    }
    let mut names = Names::default();
    if !ctx.out.is_json() {
        names.ask(&link, &past).await;
    }
    for event in &past {
        print(ctx, event, &names)?;
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
            if !ctx.out.is_json() {
                names.ask(&link, std::slice::from_ref(&event)).await;
            }
            print(ctx, &event, &names)?;
        }
    }
}

/// The hosts' names, as far as a leader is there to tell them: events carry ids.
#[derive(Default)]
struct Names {
    known: BTreeMap<HostId, Name>,
    /// Asked about in vain: forgotten by the cluster, so not asked about again.
    unknown: BTreeSet<HostId>,
    /// After a question that nobody answered: the next is not asked before.
    again_at: Option<Instant>,
}

impl Names {
    /// Asks when one of these names a host that is not known.
    async fn ask(&mut self, link: &Link, events: &[Event]) {
        let named = events.iter().filter_map(|event| event.host.clone());
        let strange: BTreeSet<HostId> = named
            .filter(|id| !self.known.contains_key(id) && !self.unknown.contains(id))
            .collect();
        if strange.is_empty() {
            return;
        }
        // Events are read without a leader too, and then nobody waits for names.
        let asked = every_page::<HostView>(link, None, "hosts");
        let again_at = self.again_at.get_or_insert_with(Instant::now);
        if Instant::now() < *again_at {
            return;
        }
        let Ok(Ok(hosts)) = tokio::time::timeout(NAMES_MAX, asked).await else {
            *again_at = Instant::now() + NAMES_PAUSE;
            return;
        };
        self.known = hosts.into_iter().map(|host| (host.id, host.name)).collect();
        let known = &self.known;
        self.unknown
            .extend(strange.into_iter().filter(|id| !known.contains_key(id)));
    }
}

fn print(ctx: &Context, event: &Event, names: &Names) -> Result<(), CliError> {
    if ctx.out.is_json() {
        ctx.out.json_line(event)
    } else {
        ctx.out.line(&views::event(event, &names.known))
    }
}
