//! One term: from the won lease to the last joined task.
//!
//! A clean stop goes in order: no new calls, those in hand are answered, the loop ends, the lease is
//! given back. A lost lease ends everything at once.

use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use wasmorch_api::Term;
use wasmorch_api::record::TermRecord;
use wasmorch_api::subjects::key;

use super::keeper::Keeper;
use super::restore::{Minted, Restored, next_term, restore};
use super::{Controller, Memory, Won};
use crate::api::{Api, ApiCall, CALLS_MAX, Identity};
use crate::clock::Clock;
use crate::control_loop::{Begin, ControlLoop, End, FINDINGS_MAX, Inputs, Recovery};
use crate::ears::{Asker, Ears};
use crate::events;
use crate::inbox::Inbox;
use crate::lease::LeaseClock;
use crate::link::LinkError;
use crate::store::StoreError;

/// Calls in hand have so long to finish at a clean stop.
const DRAIN: Duration = Duration::from_secs(5);
/// Minting is tried again when `term` changed between reading and writing.
const MINT_TRIES: u32 = 5;

/// What ends a term, and what it ends.
#[derive(Clone, Copy)]
struct Tokens<'a> {
    /// The lease is lost.
    lost: &'a CancellationToken,
    /// The lease is not renewed any more.
    released: &'a CancellationToken,
    shutdown: &'a CancellationToken,
}

impl Controller {
    /// Leads one term. `Err`: it did not get so far as to serve.
    pub(super) async fn lead(
        &self,
        won: Won,
        memory: &mut Memory,
        shutdown: &CancellationToken,
    ) -> Result<End, StoreError> {
        let clock = LeaseClock::won(self.times, won.sent);
        let keeper = Keeper::new(
            self.store.clone(),
            self.leader.clone(),
            self.times,
            clock.clone(),
            won.sequence,
        );
        let (lost, released) = (CancellationToken::new(), CancellationToken::new());
        // Dropped with this future, should that be dropped: no lease is kept for nobody.
        let renewing = keeper.clone().renew(lost.clone(), released.clone());
        let renewing = AbortOnDropHandle::new(tokio::spawn(renewing));
        let tokens = Tokens {
            lost: &lost,
            released: &released,
            shutdown,
        };
        let end = self.term(&keeper, memory, tokens).await;
        released.cancel();
        // A panic of the renewal has been reported by the runtime; the lease then ends by itself.
        let _ = renewing.await;
        clock.drop_now();
        if !lost.is_cancelled() {
            keeper.give_back().await;
        }
        end
    }

    async fn term(
        &self,
        keeper: &Keeper,
        memory: &mut Memory,
        tokens: Tokens<'_>,
    ) -> Result<End, StoreError> {
        let Tokens {
            lost,
            released,
            shutdown,
        } = tokens;
        let began = Instant::now();
        let loading = async {
            // Written when the lease was won, or renewed since: this clock is behind by half a second at most.
            let Some(written) = self.store.lease_written().await? else {
                return Ok(None);
            };
            let (before, _) = self.store.read_term().await?;
            // The servers' clocks may differ, and one without power starts late: no term begins before the last.
            let clock = Clock::at(before.map_or(written, |before| written.max(before.at)));
            let Some(minted) = self.mint(memory.floor, &clock, keeper.clock()).await? else {
                return Ok(None);
            };
            keeper.leads(minted.record.term);
            let loaded = self.store.load(minted.fence, minted.fence).await?;
            Ok::<_, StoreError>(Some((clock, minted, loaded)))
        };
        let ended = || End::Deposed("the lease has ended".to_owned());
        let loaded = tokio::select! {
            () = lost.cancelled() => return Ok(ended()),
            () = shutdown.cancelled() => return Ok(End::Stopped),
            loaded = loading => loaded?,
        };
        let Some((clock, minted, loaded)) = loaded else {
            return Ok(ended());
        };
        let term = minted.record.term;
        memory.floor = memory.floor.max(term);
        let mut restored = restore(&minted, loaded, &clock);
        restored.cluster.detection = self.detection;
        restored.cluster.value_bytes_max = self.store.value_bytes_max();
        if let Some(why) = memory.contradicts(&minted.record) {
            restored.guard.freeze(why);
        }
        let cluster = &restored.cluster;
        let (hosts, workloads) = (cluster.hosts().len(), cluster.workloads().len());
        let took_ms = began.elapsed().as_millis();
        tracing::info!(%term, hosts, workloads, took_ms, "leading");
        let running = self.begin(&minted, restored, keeper, clock, lost).await?;
        self.open_api(&running, &minted.record, keeper).await?;
        let rebuild = async |recovery| {
            // The lease is about to be emptied with the rest: it holds for what the clock still gives.
            released.cancel();
            self.rebuild(recovery, &minted.record, clock.now()).await
        };
        let end = running.until_over(shutdown, rebuild).await;
        self.metrics.led(0);
        Ok(end)
    }

    /// Begins the next term, and the cluster with the first. `None`: the lease is over.
    async fn mint(
        &self,
        floor: Term,
        clock: &Clock,
        lease: &LeaseClock,
    ) -> Result<Option<Minted>, StoreError> {
        let mut tries = 0;
        loop {
            tries += 1;
            let (before, sequence) = self.store.read_term().await?;
            let record = next_term(before, floor, &self.leader, clock, rand::random());
            let record = record.ok_or_else(|| StoreError::Unreadable {
                key: key::TERM.to_owned(),
                what: "no term can follow the stored one".to_owned(),
            })?;
            // A process that was frozen since it won the lease would depose whoever leads by now. One
            // that freezes right here still may: then the other steps down, and nothing is lost.
            if !lease.holds(Instant::now()) {
                return Ok(None);
            }
            match self.store.write_term(&record, sequence).await {
                Ok(fence) => return Ok(Some(Minted { record, fence })),
                // Our own write whose answer was lost, or a leader before us that was slow.
                Err(StoreError::Fenced) if tries < MINT_TRIES => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Starts the control loop on what was loaded, and everything that feeds it.
    async fn begin(
        &self,
        minted: &Minted,
        mut restored: Restored,
        keeper: &Keeper,
        clock: Clock,
        lost: &CancellationToken,
    ) -> Result<Running, StoreError> {
        let (calls_in, calls) = mpsc::channel(CALLS_MAX);
        let heard = Inbox::default();
        let (findings_in, findings) = mpsc::channel(FINDINGS_MAX);
        let (term, link) = (minted.record.term, self.link.clone());
        let (events, publisher) = events::queue(term, link.clone(), self.metrics.clone());
        let (over, stop) = (lost.child_token(), CancellationToken::new());
        let guard = over.clone().drop_guard();
        let hearing = TaskTracker::new();
        let ears = Ears {
            link,
            clock,
            inbox: heard.clone(),
            metrics: self.metrics.clone(),
        };
        ears.listen(&hearing, &over).await.map_err(unavailable)?;
        // What reading has taken was no silence of the hosts.
        restored.cluster.listen_from(clock.now());
        restored.guard.listen_from(clock.now());
        let begin = Begin {
            cluster: restored.cluster,
            guard: restored.guard,
            answers: restored.answers,
            fence: minted.fence,
            store: self.store.clone(),
            lease: keeper.clock().clone(),
            clock,
            events,
            asker: Asker::new(&ears, &hearing, &over),
            findings: findings_in,
            metrics: self.metrics.clone(),
        };
        let inputs = Inputs {
            calls,
            heard,
            findings,
        };
        let main = ControlLoop::new(begin).run(inputs, stop.clone(), lost.clone());
        Ok(Running {
            intake: over.child_token(),
            _over: guard,
            over,
            stop,
            calling: TaskTracker::new(),
            hearing,
            main: AbortOnDropHandle::new(tokio::spawn(main)),
            publishing: AbortOnDropHandle::new(tokio::spawn(publisher.run())),
            calls: calls_in,
        })
    }

    /// Opens the API of a running term.
    async fn open_api(
        &self,
        running: &Running,
        record: &TermRecord,
        keeper: &Keeper,
    ) -> Result<(), StoreError> {
        let api = Api {
            link: self.link.clone(),
            lease: keeper.clock().clone(),
            artifacts: self.artifacts.clone(),
            calls: running.calls.clone(),
            metrics: self.metrics.clone(),
        };
        let identity = Identity {
            cluster: record.cluster.clone(),
            term: record.term,
            leader: record.leader.clone(),
            since: record.at,
        };
        let opened = api
            .serve(&identity, &running.calling, &running.intake)
            .await;
        opened.map_err(unavailable)?;
        self.metrics.led(record.term.0);
        Ok(())
    }
}

fn unavailable(error: LinkError) -> StoreError {
    StoreError::Unavailable(error.to_string())
}

/// The tasks of a term. Dropping it ends them.
struct Running {
    /// Ends everything but the loop and the publisher, which end by themselves.
    over: CancellationToken,
    _over: DropGuard,
    /// Ends the taking of calls.
    intake: CancellationToken,
    /// Ends the loop, after what it has in hand.
    stop: CancellationToken,
    calling: TaskTracker,
    hearing: TaskTracker,
    main: AbortOnDropHandle<End>,
    publishing: AbortOnDropHandle<()>,
    /// Kept until the loop has ended: it never reads from a queue that nobody can write to.
    calls: mpsc::Sender<ApiCall>,
}

impl Running {
    /// Waits for the end of the term, or ends it in order.
    async fn until_over(
        mut self,
        shutdown: &CancellationToken,
        rebuild: impl AsyncFnOnce(Recovery) -> End,
    ) -> End {
        let joined = tokio::select! {
            joined = &mut self.main => joined,
            () = shutdown.cancelled() => {
                self.intake.cancel();
                self.calling.close();
                if tokio::time::timeout(DRAIN, self.calling.wait()).await.is_err() {
                    tracing::warn!("calls are left unanswered");
                }
                self.stop.cancel();
                (&mut self.main).await
            }
        };
        // Who waits for a recover is answered by a task of this term.
        let joined = match joined {
            Ok(End::Recover(recovery)) => Ok(rebuild(*recovery).await),
            joined => joined,
        };
        self.over.cancel();
        self.calling.close();
        self.hearing.close();
        let ending = async {
            self.calling.wait().await;
            self.hearing.wait().await;
            // The loop is gone, and with it the events' sender: what was said is published.
            // A panic there has been reported by the runtime.
            let _ = (&mut self.publishing).await;
        };
        if tokio::time::timeout(DRAIN, ending).await.is_err() {
            tracing::warn!("tasks of the term were broken off");
        }
        joined.unwrap_or_else(|panic| End::Deposed(format!("the control loop broke off: {panic}")))
    }
}
