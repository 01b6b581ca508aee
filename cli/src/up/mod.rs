//! `up`: a whole cluster in one process tree. A nats-server child, a controller and hosts on this
//! process's own runtime.
//!
//! ```text
//!  lock data ─▶ nats-server ─▶ controller ─▶ hosts ─▶ a leader answers, every host alive ─▶ addresses
//!                   ▲ restarted when it dies                       │
//!  exit 0 ◀─ nats-server ◀─ controller ◀─ hosts (drained) ◀────────┘ Ctrl-C; a second one: at once
//! ```
//!
//! Invariant: nothing it started outlives it, however it ends (see `process`).

mod fetch;
mod nats_server;
mod parts;
pub(crate) mod process;
mod state;
mod wheels;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;
use tokio::time::{Instant, sleep};
use wasmorch_api::messages::{Empty, HostView, ListRequest, Page, VersionReply};
use wasmorch_api::status::HostState;
use wasmorch_api::{HumanDuration, NatsOptions};
use wasmorch_host::TlsSource;

use crate::args::UpArgs;
use crate::cluster::{self, Current};
use crate::commands::{Context, Interrupt};
use crate::error::{CliError, Exit};
use crate::link::Link;
use crate::out::table::{Tone, pairs};
use crate::out::views::took;
use crate::serve;
use nats_server::NatsServer;
use parts::{HostAddresses, Parts};
use state::{Lock, Remembered};

/// A leader may first have to wait for the lease of one that was killed, and hosts compile what
/// they held.
const READY_MAX: Duration = Duration::from_secs(60);
/// Between two looks whether everything is ready.
const LOOK: Duration = Duration::from_millis(20);

/// `up`.
pub(crate) async fn run(ctx: &Context, args: UpArgs) -> Result<Exit, CliError> {
    let started = std::time::Instant::now();
    let mut interrupt = Interrupt::listen()?;
    if let Some(address) = args
        .nats_listen
        .filter(|address| !address.ip().is_loopback())
    {
        return Err(CliError::usage(
            format!("--nats-listen {address} is not on loopback"),
            "until joining is authenticated, use 127.0.0.1, or a NATS server of your own with --nats",
        ));
    }
    // Its mistakes are told before anything runs.
    let tls = args.front.tls()?;
    let scheme = if tls.is_some() { "https" } else { "http" };
    let data = cluster::data_dir(args.data.clone(), "up")?;
    let _lock = Lock::take(&data)?;
    if args.http.port() != 0 {
        // Said now, before anything runs; the host binds it again in a moment.
        drop(serve::listen(args.http)?);
    }
    let mut up = tokio::select! {
        up = start(ctx, &args, tls, data) => up?,
        () = interrupt.next() => return Err(CliError::interrupted("interrupted before it was up")),
    };
    let current = up.announce(ctx, scheme, started.elapsed())?;
    let failure = up.supervise(ctx, &mut interrupt).await;
    if failure.is_none() {
        ctx.out.note(
            "stopping: draining hosts, then the controller, then NATS (Ctrl-C again: at once)",
        );
    }
    tokio::select! {
        () = up.shut_down(ctx) => {}
        () = interrupt.next() => {
            current.remove();
            return Err(CliError::interrupted("stopped at once"));
        }
    }
    current.remove();
    match failure {
        Some(error) => Err(error),
        None => {
            ctx.out
                .note("stopped; the data stays: `wasmorch up` brings every workload back");
            Ok(Exit::OK)
        }
    }
}

/// Everything that runs.
struct Up {
    data: PathBuf,
    options: NatsOptions,
    /// `None`: the server is the user's own.
    server: Option<NatsServer>,
    parts: Parts,
    hosts: Vec<HostAddresses>,
    controller_admin: Option<SocketAddr>,
}

async fn start(
    ctx: &Context,
    args: &UpArgs,
    tls: Option<TlsSource>,
    data: PathBuf,
) -> Result<Up, CliError> {
    let mut remembered = Remembered::read(&data);
    let (server, options) = match cluster::named(&ctx.global) {
        Some(named) => {
            // Its faults are told before anything starts.
            Link::connect(&named, ctx.global.timeout).await?;
            (None, named)
        }
        None => {
            // It may ask, and wait for pip: an interrupt is heard meanwhile.
            let (out, yes) = (ctx.out, args.yes);
            let finding = tokio::task::spawn_blocking(move || fetch::find_or_fetch(out, yes));
            let program = finding
                .await
                .unwrap_or_else(|lost| std::panic::resume_unwind(lost.into_panic()))?;
            let port = remembered.nats_port;
            let server =
                NatsServer::start(program, data.join("nats"), args.nats_listen, port).await?;
            remembered.nats_port = Some(server.address().port());
            let options = NatsOptions {
                url: server.url(),
                ..NatsOptions::default()
            };
            (Some(server), options)
        }
    };
    let mut parts = Parts::default();
    let controller_admin = parts.start_controller(&options).await?;
    let mut hosts = Vec::new();
    let runners_each = parts::runners_each(args.hosts);
    for number in 1..=args.hosts {
        let name = format!("h{number}");
        let http = match number {
            1 => (args.http, None),
            _ => (
                SocketAddr::new(args.http.ip(), 0),
                remembered.http_ports.get(&name).copied(),
            ),
        };
        let (front, data) = ((tls.clone(), args.front.proxy_protocol), data.join(&name));
        parts.start_host(&options, &name, data, http, front, runners_each)?;
        hosts.push(name);
    }
    let hosts = parts.hosts_started(hosts).await?;
    remembered.http_ports = hosts
        .iter()
        .map(|host| (host.name.clone(), host.http.port()))
        .collect();
    remembered.write(&data)?;
    let mut up = Up {
        data,
        options,
        server,
        parts,
        hosts,
        controller_admin,
    };
    up.ready(ctx).await?;
    Ok(up)
}

impl Up {
    /// Waits until a leader answers and it has heard from every host.
    async fn ready(&mut self, ctx: &Context) -> Result<(), CliError> {
        let waiting = all_heard(ctx, &self.options, &self.hosts);
        tokio::select! {
            ready = waiting => ready,
            error = self.parts.next_end() => Err(error),
            how = server_end(&mut self.server) => Err(CliError::new(
                Exit::FAILED,
                "nats-server ended while the cluster started",
                how,
                format!("see {}", self.data.join("nats/server.log").display()),
            )),
        }
    }

    /// Prints every address, and notes this cluster as the one in force.
    fn announce(
        &self,
        ctx: &Context,
        scheme: &str,
        elapsed: Duration,
    ) -> Result<Current, CliError> {
        let current = Current {
            url: self.options.url.clone(),
            pid: i32::try_from(std::process::id()).unwrap_or_default(),
            data: self.data.clone(),
            creds: self.options.creds.clone(),
            js_domain: self.options.js_domain.clone(),
        };
        current.write()?;
        if ctx.out.is_json() {
            ctx.out.json_line(&json!({
                "nats": self.options.url,
                "hosts": self.hosts,
                "admin": self.controller_admin,
                "data": self.data,
                "pid": current.pid,
                "ready_ms": u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX),
            }))?;
            return Ok(current);
        }
        let mut lines = vec![("nats".to_owned(), self.options.url.clone())];
        for host in &self.hosts {
            lines.push((
                format!("gateway {}", host.name),
                format!("{scheme}://{}", host.http),
            ));
        }
        for host in &self.hosts {
            lines.push((
                format!("admin {}", host.name),
                format!("http://{}", host.admin),
            ));
        }
        lines.extend(
            self.controller_admin
                .map(|admin| ("admin controller".to_owned(), format!("http://{admin}"))),
        );
        lines.push(("data".to_owned(), self.data.display().to_string()));
        let lines: Vec<(&str, String)> = lines
            .iter()
            .map(|(name, value)| (name.as_str(), value.clone()))
            .collect();
        let head = format!("{} in {}", Tone::Good.paint("up"), took(elapsed));
        let hint = Tone::Dim.paint("deploy something:  wasmorch deploy app.wasm");
        ctx.out
            .text(&format!("{head}\n\n{}\n{hint}\n", pairs(&lines)))?;
        Ok(current)
    }

    /// Until a signal, or until a part ends that should not: then why.
    async fn supervise(&mut self, ctx: &Context, interrupt: &mut Interrupt) -> Option<CliError> {
        loop {
            tokio::select! {
                () = interrupt.next() => return None,
                error = self.parts.next_end() => return Some(error),
                how = server_end(&mut self.server) => {
                    ctx.out.note(&format!(
                        "{} nats-server ended ({how}); starting it again from its data",
                        Tone::Warn.paint("warning:")
                    ));
                    let server = self.server.as_mut()?;
                    tokio::select! {
                        started = server.restart() => match started {
                            Ok(()) => ctx.out.note("nats-server runs again"),
                            Err(error) => return Some(error),
                        },
                        () = interrupt.next() => return None,
                    }
                }
            }
        }
    }

    /// The controller first: a leader that sees hosts go would move their replicas to those that go
    /// next. The store last.
    async fn shut_down(&mut self, ctx: &Context) {
        if !self.parts.stop_controller().await {
            ctx.out.note("the controller did not stop in time");
        }
        for late in self.parts.stop_hosts().await {
            ctx.out.note(&format!("{late} did not stop in time"));
        }
        if let Some(server) = self.server.take() {
            server.stop().await;
        }
    }
}

/// Never, when the server is not ours.
async fn server_end(server: &mut Option<NatsServer>) -> String {
    match server {
        Some(server) => server.ended().await,
        None => std::future::pending().await,
    }
}

/// Waits until the leader has heard from every host. A host that it remembers counts as alive until
/// it has been silent, so what shows that it was heard is the address it serves at now.
async fn all_heard(
    ctx: &Context,
    options: &NatsOptions,
    hosts: &[HostAddresses],
) -> Result<(), CliError> {
    let wait = ctx
        .global
        .timeout
        .map_or(READY_MAX, |wait| wait.0.max(READY_MAX));
    let link = Link::connect(options, Some(HumanDuration(wait))).await?;
    // This asks again and again while nobody leads.
    let _: VersionReply = link.call(None, "version", &Empty {}).await?;
    let deadline = Instant::now() + wait;
    loop {
        // `up` starts at most 64 hosts, and one page holds them with what else there may be.
        let request = ListRequest {
            limit: Some(1000),
            cursor: None,
        };
        let page: Page<HostView> = link.call(None, "hosts", &request).await?;
        let heard = |host: &HostAddresses| {
            page.items.iter().any(|view| {
                view.id == host.id
                    && view.state == HostState::Alive
                    && view.http == host.http.to_string()
            })
        };
        if hosts.iter().all(heard) {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(CliError::new(
                Exit::FAILED,
                "not every host has reached the controller",
                format!("waited {}", HumanDuration(wait)),
                "run again with WASMORCH_LOG=info to see why",
            ));
        }
        sleep(LOOK).await;
    }
}
