//! Many simulated gateways: what the store republishes about endpoints, as each of them gets it.
//!
//! Real: nats-server, a connection for each, every message read. Simulated: all else of a gateway; no
//! request is routed. All of them share one thread with each other.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures::StreamExt as _;
use tokio::task::JoinSet;
use wasmorch_api::EndpointTable;

/// No table takes longer than this.
const PATIENCE: Duration = Duration::from_secs(20);
/// Looked at so often whether all have it.
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// How many gateways have a workload's first ready endpoint, and since when the last of them.
type Knowing = HashMap<String, (usize, Instant)>;

fn lock(seen: &Mutex<Knowing>) -> MutexGuard<'_, Knowing> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) struct Gateways {
    count: usize,
    seen: Arc<Mutex<Knowing>>,
    /// Its tasks end with it.
    _runtime: tokio::runtime::Runtime,
}

impl Gateways {
    /// All of them, subscribed.
    pub(super) fn start(url: &str, count: usize) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let seen = Arc::<Mutex<Knowing>>::default();
        runtime.block_on(async {
            let mut connecting = JoinSet::new();
            for _ in 0..count {
                let (url, seen) = (url.to_owned(), seen.clone());
                connecting.spawn(async move { one(&url, seen).await });
            }
            while let Some(connected) = connecting.join_next().await {
                connected.context("a gateway panicked")??;
            }
            anyhow::Ok(())
        })?;
        Ok(Self {
            count,
            seen,
            _runtime: runtime,
        })
    }

    /// When the last of them knew that a workload is ready somewhere.
    pub(super) fn all_know(&self, workload: &str) -> Result<Instant> {
        let began = Instant::now();
        loop {
            let known = lock(&self.seen).get(workload).copied();
            if let Some((_, last)) = known.filter(|(knowing, _)| *knowing >= self.count) {
                return Ok(last);
            }
            ensure!(
                began.elapsed() < PATIENCE,
                "of {} gateways {} know {workload}",
                self.count,
                known.map_or(0, |(knowing, _)| knowing)
            );
            std::thread::park_timeout(LOOK_EVERY);
        }
    }
}

/// Connects and subscribes; its messages are read from then on.
async fn one(url: &str, seen: Arc<Mutex<Knowing>>) -> Result<()> {
    let client = async_nats::connect(url).await?;
    let mut tables = client.subscribe("wasmorch.v1.endpoints.>").await?;
    client.flush().await?;
    tokio::spawn(async move {
        // Kept as a gateway keeps it: the newest table of each workload.
        let mut kept: HashMap<String, EndpointTable> = HashMap::new();
        while let Some(message) = tables.next().await {
            let Ok(table) = serde_json::from_slice::<EndpointTable>(&message.payload) else {
                continue;
            };
            let name = table.workload.to_string();
            let ready = |table: &EndpointTable| table.hosts.iter().any(|host| host.ready > 0);
            if ready(&table) && !kept.get(&name).is_some_and(ready) {
                let now = Instant::now();
                let mut seen = lock(&seen);
                let (knowing, last) = seen.entry(name.clone()).or_insert((0, now));
                *knowing += 1;
                *last = now;
            }
            kept.insert(name, table);
        }
        drop(client);
    });
    Ok(())
}
