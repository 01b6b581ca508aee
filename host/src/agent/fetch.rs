//! What a replica needs before it can run: its revision and its artifact, each asked for once at a
//! time and again with backoff.
//!
//! Owns who waits for what. Whether bytes are what their digest says is the driver's to prove.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use wasmorch_api::{Digest, ReplicaState, Revision, RevisionNumber, Timestamp, WorkloadKey};

use super::placement::backoff;
use super::{Agent, Effect, PlacementKey, Timer};
use crate::runner::protocol::{Launch, ReplicaKey, ToRunner};

/// Between two tries of a fetch: from half a second to half a minute.
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(30);

/// One thing that is being fetched.
#[derive(Debug, Default)]
struct Fetch {
    tries: u32,
    /// When to ask again; `None` while an answer is out.
    retry_at: Option<Timestamp>,
}

impl Fetch {
    fn failed(&mut self, now: Timestamp) -> Timestamp {
        self.tries = self.tries.saturating_add(1);
        let at = now.after(backoff(RETRY_FIRST, RETRY_MAX, self.tries));
        self.retry_at = Some(at);
        at
    }

    /// Whether the timer that fired is the one that was set last; then an answer is out again.
    fn due(&mut self, at: Timestamp) -> bool {
        let due = self.retry_at == Some(at);
        if due {
            self.retry_at = None;
        }
        due
    }
}

/// Everything fetched and being fetched.
#[derive(Debug, Default)]
pub(super) struct Fetches {
    known: BTreeMap<(WorkloadKey, RevisionNumber), Arc<Revision>>,
    revisions: BTreeMap<(WorkloadKey, RevisionNumber), Fetch>,
    artifacts: BTreeMap<Digest, (Fetch, BTreeSet<PlacementKey>)>,
}

impl Fetches {
    pub(super) fn revisions(&self) -> impl Iterator<Item = &Arc<Revision>> {
        self.known.values()
    }

    pub(super) fn revision(
        &self,
        workload: &WorkloadKey,
        number: RevisionNumber,
    ) -> Option<&Arc<Revision>> {
        self.known.get(&(workload.clone(), number))
    }

    pub(super) fn keep(&mut self, revision: Arc<Revision>) {
        self.known
            .insert((revision.key(), revision.number), revision);
    }

    pub(super) fn drop_revision(&mut self, workload: &WorkloadKey, number: RevisionNumber) {
        let key = (workload.clone(), number);
        self.known.remove(&key);
        self.revisions.remove(&key);
    }

    /// The timer of each fetch that waits for its next try.
    pub(super) fn waiting(&self) -> Vec<Timer> {
        let revisions = self
            .revisions
            .iter()
            .filter(|(_, fetch)| fetch.retry_at.is_some());
        let artifacts = self
            .artifacts
            .iter()
            .filter(|(_, (fetch, _))| fetch.retry_at.is_some());
        revisions
            .map(|((workload, number), _)| Timer::Revision(workload.clone(), *number))
            .chain(artifacts.map(|(digest, _)| Timer::Artifact(digest.clone())))
            .collect()
    }

    pub(super) fn due_now(&mut self, timer: &Timer, now: Timestamp) {
        let fetch = match timer {
            Timer::Revision(workload, number) => {
                self.revisions.get_mut(&(workload.clone(), *number))
            }
            Timer::Artifact(digest) => self.artifacts.get_mut(digest).map(|(fetch, _)| fetch),
            Timer::Start(_)
            | Timer::DrainOverdue(_)
            | Timer::Lease(_)
            | Timer::Removal
            | Timer::Report => None,
        };
        if let Some(fetch) = fetch {
            fetch.retry_at = Some(now);
        }
    }
}

impl Agent {
    /// Asks for the revision unless that has been done.
    pub(super) fn want_revision(&mut self, workload: &WorkloadKey, number: RevisionNumber) {
        let key = (workload.clone(), number);
        if self.fetches.revisions.contains_key(&key) {
            return;
        }
        self.fetches.revisions.insert(key, Fetch::default());
        self.effects.push(Effect::FetchRevision {
            workload: workload.clone(),
            number,
        });
    }

    /// Asks for the artifact (fetched or only hashed again: the driver's matter) unless an answer
    /// is out already.
    pub(super) fn want_artifact(&mut self, digest: &Digest, placement: &PlacementKey) {
        if let Some((_, waiting)) = self.fetches.artifacts.get_mut(digest) {
            waiting.insert(placement.clone());
            return;
        }
        let waiting = BTreeSet::from([placement.clone()]);
        self.fetches
            .artifacts
            .insert(digest.clone(), (Fetch::default(), waiting));
        self.effects.push(Effect::FetchArtifact {
            digest: digest.clone(),
        });
    }

    pub(super) fn revision_arrived(&mut self, revision: Arc<Revision>, now: Timestamp) {
        let (workload, number) = (revision.key(), revision.number);
        self.fetches.revisions.remove(&(workload.clone(), number));
        let waiting = self.placements_of(&workload, number);
        if waiting.is_empty() {
            return;
        }
        self.fetches.keep(revision);
        self.persist = true;
        for key in waiting {
            self.prepare(&key, now);
        }
    }

    pub(super) fn revision_missing(
        &mut self,
        workload: WorkloadKey,
        number: RevisionNumber,
        reason: &str,
        now: Timestamp,
    ) {
        let Some(fetch) = self.fetches.revisions.get_mut(&(workload.clone(), number)) else {
            return;
        };
        let at = fetch.failed(now);
        for key in self.placements_of(&workload, number) {
            self.explain_waiting(
                &key,
                ReplicaState::Assigned,
                &format!("waiting for revision {number}: {reason}"),
            );
        }
        self.timers.insert((at, Timer::Revision(workload, number)));
    }

    pub(super) fn revision_due(
        &mut self,
        workload: WorkloadKey,
        number: RevisionNumber,
        at: Timestamp,
    ) {
        let key = (workload, number);
        if self
            .fetches
            .revisions
            .get_mut(&key)
            .is_some_and(|fetch| fetch.due(at))
        {
            self.effects.push(Effect::FetchRevision {
                workload: key.0,
                number,
            });
        }
    }

    pub(super) fn artifact_arrived(&mut self, digest: &Digest, path: &Path, _now: Timestamp) {
        let Some((_, waiting)) = self.fetches.artifacts.remove(digest) else {
            return;
        };
        for key in waiting {
            self.launch(&key, digest, path);
        }
    }

    pub(super) fn artifact_failed(
        &mut self,
        digest: &Digest,
        reason: &str,
        retryable: bool,
        now: Timestamp,
    ) {
        if !retryable {
            let Some((_, waiting)) = self.fetches.artifacts.remove(digest) else {
                return;
            };
            for key in waiting {
                if self.waits_for(&key, digest) {
                    self.ended(&key, ReplicaState::Rejected, None, Some(reason), now);
                }
            }
            return;
        }
        let Some((fetch, waiting)) = self.fetches.artifacts.get_mut(digest) else {
            return;
        };
        let at = fetch.failed(now);
        let reason = format!("waiting for its artifact: {reason}");
        for key in waiting.clone() {
            self.explain_waiting(&key, ReplicaState::Preparing, &reason);
        }
        self.timers.insert((at, Timer::Artifact(digest.clone())));
    }

    pub(super) fn artifact_due(&mut self, digest: Digest, at: Timestamp) {
        let Some((fetch, waiting)) = self.fetches.artifacts.get_mut(&digest) else {
            return;
        };
        if !fetch.due(at) {
            return;
        }
        let waiting = waiting.clone();
        if waiting.iter().any(|key| self.waits_for(key, &digest)) {
            self.effects.push(Effect::FetchArtifact { digest });
        } else {
            self.fetches.artifacts.remove(&digest);
        }
    }

    /// Whether the placement's replica stands where this artifact is what it lacks.
    fn waits_for(&self, key: &PlacementKey, digest: &Digest) -> bool {
        let Some(placement) = self.placements.get(key) else {
            return false;
        };
        let revision = self.fetches.revision(&key.workload, placement.revision);
        placement
            .live()
            .is_some_and(|replica| replica.state == ReplicaState::Preparing && !replica.with_runner)
            && revision.is_some_and(|revision| revision.artifact == *digest)
    }

    /// Hands a replica whose artifact lies there to the runner.
    fn launch(&mut self, key: &PlacementKey, digest: &Digest, path: &Path) {
        if !self.waits_for(key, digest) {
            return;
        }
        let Some(placement) = self.placements.get_mut(key) else {
            return;
        };
        let revision = self.fetches.revision(&key.workload, placement.revision);
        let (Some(revision), args) = (revision.cloned(), placement.args.as_deref().cloned()) else {
            return;
        };
        let Some(replica) = placement.live_mut() else {
            return;
        };
        replica.with_runner = true;
        if replica.reason.take().is_some() {
            self.changed
                .insert(ReplicaKey::new(key.workload.clone(), replica.id));
        }
        let launch = Launch {
            revision,
            artifact_path: path.to_owned(),
            args,
            row: None,
        };
        let replica = ReplicaKey::new(key.workload.clone(), replica.id);
        let prepare = ToRunner::Prepare {
            replica,
            launch: Box::new(launch),
        };
        self.effects.push(Effect::ToRunner(prepare));
    }

    /// Says why a replica that stands in `state` waits.
    fn explain_waiting(&mut self, key: &PlacementKey, state: ReplicaState, reason: &str) {
        let live = self
            .placements
            .get_mut(key)
            .and_then(|placement| placement.live_mut());
        let Some(replica) = live.filter(|replica| replica.state == state) else {
            return;
        };
        if replica.explain(reason) {
            self.changed
                .insert(ReplicaKey::new(key.workload.clone(), replica.id));
        }
    }
}
