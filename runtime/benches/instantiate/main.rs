//! What an instance costs, and code before it: `cargo xtask bench instantiate`.
//!
//! The runtime as a runner of the host has it (its pool, its limits, its store), on one thread; beside it, in
//! the same run and by turns, wasmtime alone with its own defaults, on demand and pooled. Guests lie where
//! `WASMORCH_GUESTS` says. A figure counts only after its outcome was checked.

mod bare;
mod outbound;
mod table;

use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use wasmorch_api::Digest;
use wasmorch_runtime::{Artifact, HttpReplica, ReplicaConfig, Runtime, RuntimeConfig};

use self::bare::{Allocator, Bare};
use self::table::{Row, Unit};

/// Whatever stops a benchmark: it is shown, and nobody looks into it.
pub(crate) type Problem = Box<dyn std::error::Error + Send + Sync>;

/// What is compiled, and the path that it answers at: a small guest, and one of four times the size. Both
/// import nothing but WASI.
const COMPILED: [(&str, &str); 2] = [("hello-http", "/"), ("hostile", "/ok")];

/// How much is measured.
pub(crate) struct Settings {
    guests: PathBuf,
    pub(crate) turns: u32,
    instances: u32,
    pub(crate) requests: u32,
    json: bool,
}

impl Settings {
    /// `--turns N`, `--instances N`, `--requests N`, `--json`; `--bench` is cargo's own.
    fn read() -> Result<Self, Problem> {
        let guests = std::env::var_os("WASMORCH_GUESTS")
            .ok_or("WASMORCH_GUESTS is not set; `cargo xtask bench instantiate` sets it")?;
        let mut settings = Self {
            guests: guests.into(),
            turns: 15,
            instances: 400,
            requests: 2000,
            json: false,
        };
        let mut args = std::env::args().skip(1);
        while let Some(arg) = args.next() {
            let mut number = || -> Result<u32, Problem> {
                let text = args.next().ok_or_else(|| format!("{arg} needs a number"))?;
                let number: u32 = text.parse().map_err(|_| format!("{arg}: not a number"))?;
                Ok(number.max(1))
            };
            match arg.as_str() {
                "--turns" => settings.turns = number()?,
                "--instances" => settings.instances = number()?,
                "--requests" => settings.requests = number()?,
                "--json" => settings.json = true,
                "--bench" => {}
                other => return Err(format!("unknown: {other}").into()),
            }
        }
        Ok(settings)
    }

    pub(crate) fn guest(&self, name: &str) -> Result<Bytes, Problem> {
        let path = self.guests.join(name).with_extension("wasm");
        let bytes = std::fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(bytes.into())
    }
}

fn main() -> Result<(), Problem> {
    let settings = Settings::read()?;
    // A runner has one thread for its guests.
    let executor = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let rows = executor.block_on(measure(&settings))?;
    let machine = machine();
    let text = match settings.json {
        true => format!("{:#}\n", table::json(&machine, &rows)),
        false => table::table(&machine, &rows),
    };
    Ok(std::io::stdout().write_all(text.as_bytes())?)
}

async fn measure(settings: &Settings) -> Result<Vec<Row>, Problem> {
    let folder = tempfile::tempdir()?;
    let runtime = Runtime::new(RuntimeConfig {
        compiled_dir: Some(folder.path().to_owned()),
        guest_threads: 1,
        ..RuntimeConfig::default()
    })?;
    if !runtime.pooled() {
        return Err("the pool cannot be reserved here, and a host would have it".into());
    }
    let on_demand = Bare::new(Allocator::OnDemand)?;
    let pooling = Bare::new(Allocator::Pooling)?;
    let peers = [
        ("wasmtime, on demand", &on_demand),
        ("wasmtime, pooling", &pooling),
    ];
    let mut rows = Vec::new();
    for guest in ["hello-http", "hello-http-p3"] {
        rows.extend(instances(&runtime, peers, guest, settings).await?);
    }
    for compiled in COMPILED {
        rows.extend(code(&runtime, &on_demand, compiled, settings).await?);
    }
    rows.extend(outbound::measure(&runtime, settings).await?);
    Ok(rows)
}

/// An instance made and dropped again.
async fn instances(
    runtime: &Runtime,
    peers: [(&'static str, &Bare); 2],
    guest: &str,
    settings: &Settings,
) -> Result<Vec<Row>, Problem> {
    let bytes = settings.guest(guest)?;
    let artifact = load(runtime, bytes.clone()).await?;
    let replica = HttpReplica::prepare(runtime, &artifact, ReplicaConfig::new("bench"))?;
    let what = format!("{guest}: instantiate and drop");
    let mut ours = Row::new(what.clone(), "wasmorch", Unit::Microseconds).aim(10.0);
    let mut theirs = Vec::new();
    for (who, bare) in peers {
        let pre = bare.link(&bare.compile(&bytes)?)?;
        theirs.push((Row::new(what.clone(), who, Unit::Microseconds), bare, pre));
    }
    for turn in 0..=settings.turns {
        for _ in 0..settings.instances {
            let began = Instant::now();
            replica.instantiate().await?;
            if turn > 0 {
                ours.push_time(began.elapsed());
            }
        }
        for (row, bare, pre) in &mut theirs {
            for _ in 0..settings.instances {
                let began = Instant::now();
                bare.instantiate(pre).await?;
                // The first turn touches the memory that the others find.
                if turn > 0 {
                    row.push_time(began.elapsed());
                }
            }
        }
    }
    let theirs = theirs.into_iter().map(|(row, ..)| row);
    Ok(std::iter::once(ours).chain(theirs).collect())
}

/// Code that is compiled, code that is loaded, and the first answer after either.
async fn code(
    runtime: &Runtime,
    peer: &Bare,
    (guest, path): (&str, &str),
    settings: &Settings,
) -> Result<Vec<Row>, Problem> {
    let bytes = settings.guest(guest)?;
    let row = |what: &str, who| Row::new(format!("{guest}: {what}"), who, Unit::Milliseconds);
    let mut compiled = row("compile", "wasmorch, and keep it");
    let mut first = row("bytes to the first answer", "wasmorch");
    let mut cached = row("load what was compiled", "wasmorch").aim(1.0);
    let mut again = row("that to the first answer", "wasmorch");
    let mut theirs = row("compile", "wasmtime");
    let mut theirs_first = row("bytes to the first answer", "wasmtime");
    for turn in 0..=settings.turns {
        let unseen = unseen(&bytes, turn);
        let digest = Digest::of(&unseen);
        let began = Instant::now();
        let artifact = runtime.load(&digest, unseen.clone()).await?;
        let took = began.elapsed();
        answers(runtime, &artifact, path).await?;
        let answered = began.elapsed();
        if artifact.from_cache() {
            return Err("nothing was compiled".into());
        }
        drop(artifact);
        // Nobody has it any more, so it comes from the disk.
        let began = Instant::now();
        let artifact = runtime.load_cached(&digest).await?;
        let artifact = artifact.ok_or("what was compiled is not kept")?;
        let (loaded, began) = (began.elapsed(), began);
        answers(runtime, &artifact, path).await?;
        let answered_again = began.elapsed();
        if !artifact.from_cache() {
            return Err("it was not gone".into());
        }
        let began = Instant::now();
        let component = peer.compile(&unseen)?;
        let took_them = began.elapsed();
        let body = peer.answer(&peer.link(&component)?, path).await?;
        let answered_them = began.elapsed();
        if body.is_empty() {
            return Err("the peer answers nothing".into());
        }
        // The first turn reads files and links for the first time.
        if turn > 0 {
            compiled.push_time(took);
            first.push_time(answered);
            cached.push_time(loaded);
            again.push_time(answered_again);
            theirs.push_time(took_them);
            theirs_first.push_time(answered_them);
        }
    }
    Ok(vec![compiled, theirs, first, theirs_first, cached, again])
}

async fn answers(runtime: &Runtime, artifact: &Arc<Artifact>, path: &str) -> Result<(), Problem> {
    let replica = HttpReplica::prepare(runtime, artifact, ReplicaConfig::new("bench"))?;
    match whole(&replica, path).await?.is_empty() {
        false => Ok(()),
        true => Err("an empty answer".into()),
    }
}

/// The whole body of an answer that is well.
pub(crate) async fn whole(replica: &HttpReplica, path: &str) -> Result<Bytes, Problem> {
    let body = Empty::new().map_err(|never| match never {}).boxed_unsync();
    let request = http::Request::get(path)
        .header("host", "bench")
        .body(body)?;
    let response = replica.handle(request).await?;
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    match status.is_success() {
        true => Ok(body),
        false => Err(format!("{status}: {}", String::from_utf8_lossy(&body)).into()),
    }
}

pub(crate) async fn load(runtime: &Runtime, bytes: Bytes) -> Result<Arc<Artifact>, Problem> {
    Ok(runtime.load(&Digest::of(&bytes), bytes).await?)
}

/// The same component with a custom section, and so with a digest of its own.
fn unseen(component: &[u8], number: u32) -> Bytes {
    const NAME: &str = "bench";
    let number = number.to_le_bytes();
    // Both lengths are far below 128: one byte each.
    let mut bytes = component.to_vec();
    bytes.extend([0, (1 + NAME.len() + number.len()) as u8, NAME.len() as u8]);
    bytes.extend(NAME.as_bytes());
    bytes.extend(number);
    bytes.into()
}

fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let info = read("/proc/cpuinfo");
    let model = info
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or(std::env::consts::ARCH, |(_, model)| model);
    let load = read("/proc/loadavg");
    let load: Vec<&str> = load.split(' ').take(3).collect();
    let build = match cfg!(debug_assertions) {
        true => "dev profile",
        false => "optimised",
    };
    format!("{model}, {cores} cores, load {}; {build}", load.join(" "))
}
