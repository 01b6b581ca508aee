//! `recover`: asks everybody what they hold, and hands the rebuilt state to whoever stores it.
//!
//! Owns who has been heard, of whatever cluster, and the one recover under way. Storing the result
//! ends the term: every sequence and fence of it is void then.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt as _;
use wasmorch_api::backup::Backup;
use wasmorch_api::{ARTIFACT_BYTES_MAX, ApiError, Digest, ErrorCode, Heartbeat, HostId, Timestamp};

use super::ending::{End, in_doubt};
use super::{ControlLoop, Finding, send};
use crate::api::{ApiCall, Reply, Request};
use crate::ears;
use crate::link::Link;
use crate::recover::{self, Rebuilder, Rebuilt, Sources, Told};
use crate::store::Store;

/// Hosts remembered at most.
const VOICES_MAX: usize = 20_000;
/// A host that was heard within this is asked.
const VOICE_FRESH: Duration = Duration::from_secs(5);
/// A leader that has only just begun listens so long before it takes those it has heard for all.
const LISTEN: Duration = Duration::from_secs(3);
/// Hosts asked at the same time.
const ASKED_AT_ONCE: usize = 32;

/// The last heartbeat of every host, of whatever cluster.
#[derive(Debug, Default)]
pub(super) struct Voices(BTreeMap<HostId, (Heartbeat, Timestamp)>);

impl Voices {
    pub(super) fn heard(&mut self, beat: &Heartbeat, at: Timestamp) {
        if self.0.len() < VOICES_MAX || self.0.contains_key(&beat.host) {
            self.0.insert(beat.host.clone(), (beat.clone(), at));
        }
    }

    fn fresh(&self, now: Timestamp) -> Vec<Heartbeat> {
        let fresh = |at: Timestamp| now.since(at) <= VOICE_FRESH;
        self.0
            .values()
            .filter(|(beat, at)| fresh(*at) && !beat.leaving)
            .map(|(beat, _)| beat.clone())
            .collect()
    }
}

/// The recover under way.
#[derive(Debug, Default)]
pub(super) struct Recovering {
    /// Who waits for it.
    call: Option<ApiCall>,
    /// Hosts are being asked.
    gathering: bool,
}

/// A rebuilt state, and who waits for it to be stored.
#[derive(Debug)]
pub(crate) struct Recovery {
    pub(crate) rebuilt: Rebuilt,
    pub(crate) call: ApiCall,
    /// The answer and its memory, for a repeat after the term.
    pub(crate) reply: Reply,
    pub(crate) kept: Option<crate::store::Entry>,
    /// To be taken out of the object store.
    pub(crate) backup: Option<Digest>,
}

impl ControlLoop {
    /// Begins to gather; the call is answered when the result is stored.
    pub(super) fn recover(&mut self, call: ApiCall) {
        if let Some(refusal) = self.no_recover() {
            send(call, Err(refusal));
            return;
        }
        if let Some(waiting) = &self.recovering.call
            && waiting.request.caller().0 != call.request.caller().0
        {
            let busy = "another recover is under way";
            send(
                call,
                Err(ApiError::new(ErrorCode::Busy, busy, "", "wait for it")),
            );
            return;
        }
        // Whoever asked the same before has given up on that answer.
        self.recovering.call = Some(call);
        self.gather_when_due();
    }

    /// Asks everybody once all who are there have had the time to be heard.
    pub(super) fn gather_when_due(&mut self) {
        let now = self.begin.clock.now();
        let listened = now.since(self.begin.cluster.since) >= LISTEN;
        let Some(call) = &self.recovering.call else {
            return;
        };
        if self.recovering.gathering || !listened {
            return;
        }
        let backup = match &call.request {
            Request::Recover(request) => request.backup.clone(),
            _ => None,
        };
        let gather = Gather {
            link: self.begin.asker.link().clone(),
            store: self.begin.store.clone(),
            fence: self.begin.fence,
            beats: self.voices.fresh(now),
            backup,
        };
        let findings = self.begin.findings.clone();
        // When too many questions are out already, the next tick tries again.
        self.recovering.gathering = self.begin.asker.run(async move {
            let sources = gather.run().await.map(Box::new);
            // The loop may be gone.
            let _ = findings.send(Finding::Gathered(sources)).await;
        });
    }

    fn no_recover(&self) -> Option<ApiError> {
        if self.begin.guard.compares() {
            return Some(in_doubt());
        }
        let workloads = self.begin.cluster.workloads().len();
        (self.begin.guard.frozen().is_none() && workloads > 0).then(|| {
            ApiError::new(
                ErrorCode::Conflict,
                "this cluster needs no recovery",
                format!("it is not frozen, and its store holds {workloads} workloads: they would be overwritten"),
                "to undo a change use `wasmorch rollback`; to restore a backup elsewhere use an empty NATS account",
            )
        })
    }

    /// Everybody has told: the state is rebuilt, and storing it ends the term.
    pub(super) fn gathered(&mut self, sources: Result<Box<Sources>, ApiError>) -> Result<(), End> {
        self.recovering.gathering = false;
        let Some(call) = self.recovering.call.take() else {
            return Ok(());
        };
        let now = self.begin.clock.now();
        let by = Rebuilder {
            cluster: self.begin.cluster.cluster.clone(),
            term: self.begin.cluster.term,
            leader: self.begin.cluster.leader.clone(),
            now,
        };
        match sources.and_then(|sources| recover::rebuild(*sources, &by)) {
            Ok(rebuilt) => {
                let body = serde_json::to_vec(&rebuilt.reply).expect("string keys only");
                let reply = Reply::new(body);
                let backup = match &call.request {
                    Request::Recover(request) => request.backup.clone(),
                    _ => None,
                };
                Err(End::Recover(Box::new(Recovery {
                    kept: self.begin.answers.to_store(&call, now, &reply),
                    rebuilt,
                    call,
                    reply,
                    backup,
                })))
            }
            Err(refusal) => {
                send(call, Err(refusal));
                Ok(())
            }
        }
    }
}

struct Gather {
    link: Link,
    store: Store,
    fence: u64,
    beats: Vec<Heartbeat>,
    backup: Option<Digest>,
}

impl Gather {
    async fn run(self) -> Result<Sources, ApiError> {
        let backup = match &self.backup {
            Some(digest) => Some(self.backup(digest).await?),
            None => None,
        };
        let failed = |why: String| {
            let what = "the store cannot be read: nothing was changed";
            ApiError::new(ErrorCode::Unavailable, what, why, "try again")
        };
        let last = self.store.last_sequence().await;
        let last = last.map_err(|error| failed(error.to_string()))?;
        // All of it: what this very leader has written in its term lies behind the fence. The lease is
        // renewed all the time, so that there is always something at `last` or after it.
        let stored = self.store.load(self.fence, last).await;
        let stored = stored.map_err(|error| failed(error.to_string()))?;
        let mut sources = Sources {
            stored: stored.entries,
            last_sequence: last.max(stored.last_sequence),
            backup,
            ..Sources::default()
        };
        let link = &self.link;
        let asked = self.beats.into_iter().map(|beat| async move {
            let held = ears::held(link, &beat.host).await;
            let status = ears::full_status(link, &beat.host).await;
            match held.and_then(|held| Ok((held, status?))) {
                Ok((held, status)) => Ok(Told { beat, held, status }),
                Err(why) => Err((beat, why)),
            }
        });
        let mut answers = futures::stream::iter(asked).buffer_unordered(ASKED_AT_ONCE);
        while let Some(answer) = answers.next().await {
            match answer {
                Ok(told) => sources.hosts.push(told),
                Err(failed) => sources.failed.push(failed),
            }
        }
        // The order of answers is chance.
        sources.hosts.sort_by(|a, b| a.beat.host.cmp(&b.beat.host));
        Ok(sources)
    }

    async fn backup(&self, digest: &Digest) -> Result<Backup, ApiError> {
        let refused = |why: String| {
            let what = "the backup cannot be read: nothing was changed";
            ApiError::new(
                ErrorCode::Invalid,
                what,
                why,
                "pass a file that `wasmorch backup` wrote",
            )
        };
        let fetched = self.store.fetch(digest, ARTIFACT_BYTES_MAX).await;
        let bytes = fetched.map_err(|error| refused(error.to_string()))?;
        if Digest::of(&bytes) != *digest {
            return Err(refused("its bytes have another digest".to_owned()));
        }
        Backup::read(&bytes).map_err(refused)
    }
}
