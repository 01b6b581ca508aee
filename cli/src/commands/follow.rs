//! Follows rollouts until they end: the waiting half of `deploy`, `rollback`, `restart`.
//!
//! Asks for `status` again and again: at once after an event of the namespace, else after a pause
//! that grows, so that what is ready in 40 ms is seen in 50 and what takes minutes costs little.
//! What a status means is decided by [`judge`], which is pure.

use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use serde_json::json;
use wasmorch_api::messages::{ReplicaView, StatusReply, WorkloadRequest, WorkloadState};
use wasmorch_api::{Kind, Name, ReplicaState, RevisionNumber, RolloutState, Timestamp, subjects};

use super::{Context, now};
use crate::error::{CliError, Exit};
use crate::link::{Link, Subscription};
use crate::out::human::harmless;
use crate::out::progress::Progress;
use crate::out::table::Tone;
use crate::out::views;

/// The first pause between two questions.
const PAUSE_MIN: Duration = Duration::from_millis(10);
/// The longest.
const PAUSE_MAX: Duration = Duration::from_millis(500);
/// How long after the rollout's own deadline a leader may take to say so.
const GRACE: Duration = Duration::from_secs(15);

/// How a followed workload ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// As asked.
    Done,
    /// Not as asked, and why.
    Failed(String),
    /// Another deploy took its place.
    Superseded(RevisionNumber),
}

/// One workload on its way.
pub(crate) struct Followed {
    pub(crate) name: Name,
    pub(crate) revision: RevisionNumber,
    pub(crate) last: Option<StatusReply>,
    pub(crate) verdict: Option<Verdict>,
    bar: ProgressBar,
    said: String,
    said_unplaced: bool,
    said_waits: Option<String>,
}

/// What this status says about the way to `revision`; `None`: still on it.
pub(crate) fn judge(status: &StatusReply, revision: RevisionNumber) -> Option<Verdict> {
    let summary = &status.summary;
    let own = status.rollout.as_ref();
    let own = own.filter(|rollout| rollout.revision == revision);
    // Stored is all there is to wait for, unless it waits for others or may go back with them.
    let bound = own.is_some_and(|rollout| {
        let bonds = !rollout.with.is_empty() || !rollout.waits_for.is_empty();
        let failed = rollout.state == RolloutState::Failed;
        (bonds || failed) && rollout.state != RolloutState::Completed
    });
    if summary.kind == Kind::Cron && !bound {
        return Some(Verdict::Done);
    }
    // It goes on by itself once a person has decided about the other.
    if let Some(rollout) = own.filter(|rollout| !rollout.state.ended())
        && rollout.waits_for.iter().any(|one| one.for_a_person)
    {
        let waits = views::waits(rollout).unwrap_or_default();
        return Some(Verdict::Failed(format!("it still {waits}")));
    }
    let never_begun = own.is_some_and(|rollout| rollout.state == RolloutState::Failed)
        && status.outcome.is_none();
    if summary.kind == Kind::Job && summary.revision == revision && !never_begun {
        return status.outcome.as_ref().map(|outcome| {
            if outcome.completed {
                return Verdict::Done;
            }
            let code = outcome.exit_code.map(|code| format!("exit code {code}"));
            let reason = Some(outcome.reason.clone()).filter(|reason| !reason.is_empty());
            let parts: Vec<String> = [code, reason].into_iter().flatten().collect();
            Verdict::Failed(format!("the job failed: {}", parts.join(", ")))
        });
    }
    let Some(rollout) = &status.rollout else {
        if summary.revision != revision {
            return Some(Verdict::Superseded(summary.revision));
        }
        return (summary.ready >= summary.desired).then_some(Verdict::Done);
    };
    if rollout.revision != revision {
        return Some(Verdict::Superseded(rollout.revision));
    }
    let why = |what: &str| match &rollout.reason {
        Some(reason) => format!("{what}: {reason}"),
        None => what.to_owned(),
    };
    match rollout.state {
        // Another count at the same revision: no rollout moves.
        RolloutState::Completed => (summary.ready >= summary.desired).then_some(Verdict::Done),
        RolloutState::Reverted => {
            let back = format!("it went back to revision {}", summary.revision);
            Some(Verdict::Failed(format!("{}; {back}", why("reverted"))))
        }
        RolloutState::Aborted => Some(Verdict::Failed(why("aborted"))),
        RolloutState::Failed => Some(Verdict::Failed(why("failed"))),
        RolloutState::Paused => Some(Verdict::Failed(why("paused"))),
        // The canaries have done their part; the rest is a person's.
        RolloutState::Baking if awaits_a_person(status).is_some() => Some(Verdict::Done),
        // There is nothing to go back to, so ready is all that can be waited for; a service has
        // proven nothing before it has lived for `min_ready`, and what was deployed together may yet
        // be stopped together.
        RolloutState::Rolling
            if rollout.from.is_none()
                && rollout.with.is_empty()
                && rollout.waits_for.is_empty()
                && summary.kind != Kind::Service
                && rollout.ready >= rollout.desired =>
        {
            Some(Verdict::Done)
        }
        _ => None,
    }
}

/// The moment after which nobody will come back to say how it ended.
fn too_late(status: &StatusReply, now: Timestamp) -> bool {
    let moving = status
        .rollout
        .as_ref()
        .filter(|rollout| !rollout.state.ended());
    moving.is_some_and(|rollout| now > rollout.deadline.after(GRACE))
}

/// How far it is, in a few words; a new text is a new line.
fn standing(status: &StatusReply) -> String {
    let summary = &status.summary;
    let (ready, desired) = match &status.rollout {
        Some(rollout) if !rollout.state.ended() => (rollout.ready, rollout.desired),
        _ => (summary.ready, summary.desired),
    };
    let state = match &status.rollout {
        Some(rollout) if rollout.state == RolloutState::Reverting => " (reverting)",
        Some(rollout) if rollout.state == RolloutState::Canary => " (canary)",
        Some(rollout) if rollout.state == RolloutState::Baking => " (canary, baking)",
        _ => "",
    };
    format!("{ready}/{desired} ready{state}")
}

/// What the slowest replica is doing, for the bar.
fn activity(replicas: &[ReplicaView], revision: RevisionNumber) -> String {
    let waiting = replicas
        .iter()
        .filter(|replica| replica.revision == revision && !replica.ready && !replica.state.ended());
    match waiting.min_by_key(|replica| replica.state) {
        Some(replica) => match &replica.reason {
            Some(reason) => harmless(reason.lines().next().unwrap_or_default()),
            None if replica.state == ReplicaState::Running => "not yet ready".into(),
            None => replica.state.to_string(),
        },
        None => String::new(),
    }
}

impl Followed {
    pub(crate) fn new(name: Name, revision: RevisionNumber) -> Self {
        Self {
            name,
            revision,
            last: None,
            verdict: None,
            bar: ProgressBar::hidden(),
            said: String::new(),
            said_unplaced: false,
            said_waits: None,
        }
    }

    /// What it waits for, whenever that is different.
    fn say_waits(&mut self, status: &StatusReply, progress: &Progress) -> Result<(), CliError> {
        let moving = { status.rollout.as_ref() }
            .filter(|view| view.revision == self.revision && !view.state.ended());
        let waits = moving.and_then(views::waits);
        if let (Some(said), Some(view)) = (&waits, moving)
            && waits != self.said_waits
        {
            let object = json!({
                "stage": "waits", "workload": self.name, "revision": self.revision,
                "waits_for": view.waits_for,
            });
            progress.stage(&format!("{}  {said}", self.name), &object)?;
        }
        self.said_waits = waits;
        Ok(())
    }

    /// A job of several completions says how many it has.
    fn say_run(&mut self, status: &StatusReply, progress: &Progress) -> Result<(), CliError> {
        let run = status.run.as_ref().filter(|run| run.completions > 1);
        let Some(run) = run.filter(|_| status.summary.kind == Kind::Job) else {
            return Ok(());
        };
        self.bar.set_length(u64::from(run.completions));
        self.bar.set_position(u64::from(run.completed));
        let standing = format!("{} of {} completed", run.completed, run.completions);
        if standing != self.said && self.bar.is_hidden() {
            let object = json!({
                "stage": "run", "workload": self.name, "revision": self.revision,
                "completed": run.completed, "completions": run.completions,
            });
            progress.stage(&format!("{}  {standing}", self.name), &object)?;
        }
        self.said = standing;
        Ok(())
    }

    /// Takes a status in and says what is new in it.
    fn take(&mut self, status: StatusReply, progress: &Progress) -> Result<(), CliError> {
        let standing = standing(&status);
        self.bar.set_length(u64::from(status.summary.desired));
        let ready = status
            .rollout
            .as_ref()
            .map_or(status.summary.ready, |view| view.ready);
        self.bar.set_position(u64::from(ready));
        self.bar
            .set_message(activity(&status.replicas, self.revision));
        if let Some(unplaced) = status.unplaced.as_ref().filter(|_| !self.said_unplaced) {
            self.said_unplaced = true;
            let object = json!({"stage": "unplaced", "workload": self.name, "unplaced": unplaced});
            progress.stage(views::unplaced(unplaced).trim_end(), &object)?;
        }
        self.say_waits(&status, progress)?;
        self.say_run(&status, progress)?;
        if standing != self.said && !status.summary.kind.ends() {
            let object = json!({
                "stage": "rollout", "workload": self.name, "revision": self.revision,
                "state": status.summary.state, "ready": ready, "desired": status.summary.desired,
            });
            // A bar shows it already.
            if self.bar.is_hidden() {
                progress.stage(&format!("{}  {standing}", self.name), &object)?;
            }
            self.said = standing;
        }
        self.verdict = judge(&status, self.revision);
        // What waits for others has no deadline of its own, or its end will be told.
        let waits = self.said_waits.is_some();
        if self.verdict.is_none() && !waits && too_late(&status, now()) {
            let why = format!("not ready in time ({})", self.said);
            self.verdict = Some(Verdict::Failed(why));
        }
        self.last = Some(status);
        Ok(())
    }
}

/// Waits until each has its verdict. Can be dropped at any time.
pub(crate) async fn follow(
    ctx: &Context,
    link: &Link,
    namespace: &Name,
    workloads: &mut [Followed],
    progress: &Progress,
) -> Result<(), CliError> {
    // Before the first question, so that no change falls between the two.
    let mut events = link.subscribe(subjects::events(Some(namespace))).await?;
    for followed in workloads.iter_mut() {
        followed.bar = progress.rollout(followed.name.as_str(), 1);
    }
    let mut pause = PAUSE_MIN;
    loop {
        for followed in workloads
            .iter_mut()
            .filter(|followed| followed.verdict.is_none())
        {
            let request = WorkloadRequest {
                workload: followed.name.clone(),
                all: false,
            };
            match link
                .call::<_, StatusReply>(Some(namespace), "status", &request)
                .await
            {
                Ok(status) => followed.take(status, progress)?,
                // Nobody to ask for now: the rollout itself does not depend on us.
                Err(error) if error.exit == Exit::UNAVAILABLE => {
                    let late = followed
                        .last
                        .as_ref()
                        .is_none_or(|last| too_late(last, now()));
                    if late {
                        clear(workloads);
                        return Err(error);
                    }
                    ctx.out
                        .note(&format!("{}  {error}", Tone::Warn.paint("waiting:")));
                }
                Err(error) if error.exit == Exit::NOT_FOUND => {
                    followed.verdict = Some(Verdict::Failed("it was removed meanwhile".into()));
                }
                Err(error) => {
                    clear(workloads);
                    return Err(error);
                }
            }
        }
        if workloads.iter().all(|followed| followed.verdict.is_some()) {
            clear(workloads);
            return Ok(());
        }
        pause = wait(&mut events, pause).await;
    }
}

fn clear(workloads: &[Followed]) {
    workloads
        .iter()
        .for_each(|followed| followed.bar.finish_and_clear());
}

/// Until an event or for `pause`; the next pause.
async fn wait(events: &mut Subscription, pause: Duration) -> Duration {
    let started = Instant::now();
    tokio::select! {
        event = events.next() => {
            if event.is_none() {
                // The connection is gone for good: do not spin on it.
                tokio::time::sleep(pause.saturating_sub(started.elapsed())).await;
            }
            PAUSE_MIN
        }
        () = tokio::time::sleep(pause) => (pause * 3 / 2).min(PAUSE_MAX),
    }
}

/// What canaries that have been watched long enough wait for.
pub(crate) fn awaits_a_person(status: &StatusReply) -> Option<&str> {
    let rollout = status.rollout.as_ref()?;
    let reason = rollout.reason.as_deref()?;
    (rollout.state == RolloutState::Baking).then_some(reason)
}

/// The word for a workload that ended as asked.
pub(crate) fn done_word(status: &StatusReply) -> (&'static str, Tone) {
    match status.summary.kind {
        Kind::Job => ("completed", Tone::Good),
        Kind::Cron => ("stored", Tone::Good),
        _ if status.summary.state == WorkloadState::Idle || status.summary.desired == 0 => {
            ("idle", Tone::Dim)
        }
        _ if awaits_a_person(status).is_some() => ("canary", Tone::Warn),
        _ => ("ready", Tone::Good),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn status(change: impl FnOnce(&mut Value)) -> StatusReply {
        let mut value = json!({
            "namespace": "default", "name": "web", "kind": "http", "revision": 2,
            "desired": 2, "ready": 0, "state": "rolling", "urls": [],
            "spec": {"name": "web"}, "replicas": [],
            "rollout": {
                "revision": 2, "from": 1, "state": "rolling", "updated": 0, "ready": 0,
                "desired": 2, "deadline": "2026-01-01T00:02:00Z",
            },
        });
        change(&mut value);
        serde_json::from_value(value).unwrap()
    }

    fn verdict(change: impl FnOnce(&mut Value)) -> Option<Verdict> {
        judge(&status(change), RevisionNumber(2))
    }

    #[test]
    fn an_update_is_done_when_its_rollout_is() {
        assert_eq!(verdict(|_| {}), None);
        assert_eq!(verdict(|s| s["rollout"]["ready"] = 2.into()), None);
        let completed = |ready: u32| {
            verdict(|s| {
                s["rollout"]["state"] = "completed".into();
                s["ready"] = ready.into();
            })
        };
        assert_eq!(completed(1), None);
        assert_eq!(completed(2), Some(Verdict::Done));
    }

    #[test]
    fn a_first_revision_is_done_when_it_is_ready() {
        let first = |kind: &str| {
            verdict(|s| {
                s["kind"] = kind.into();
                s["rollout"]["from"] = Value::Null;
                s["rollout"]["ready"] = 2.into();
            })
        };
        assert_eq!(first("http"), Some(Verdict::Done));
        assert_eq!(first("messages"), Some(Verdict::Done));
        assert_eq!(first("service"), None);
    }

    #[test]
    fn what_goes_with_others_is_done_with_them() {
        let first = |change: fn(&mut Value)| {
            verdict(|s| {
                s["rollout"]["from"] = Value::Null;
                s["rollout"]["ready"] = 2.into();
                change(s);
            })
        };
        assert_eq!(first(|_| {}), Some(Verdict::Done));
        assert_eq!(first(|s| s["rollout"]["with"] = json!(["orders"])), None);
        let waits = |person: bool| {
            verdict(|s| {
                s["rollout"]["waits_for"] = json!([
                    {"workload": "orders", "why": "its rollout is paused", "for_a_person": person}
                ]);
            })
        };
        assert_eq!(waits(false), None);
        let why = "it still waits for orders (its rollout is paused)";
        assert_eq!(waits(true), Some(Verdict::Failed(why.into())));
    }

    #[test]
    fn failures_say_why() {
        let reverted = verdict(|s| {
            s["revision"] = 1.into();
            s["rollout"]["state"] = "reverted".into();
            s["rollout"]["reason"] = "the guest trapped".into();
        });
        let why = "reverted: the guest trapped; it went back to revision 1";
        assert_eq!(reverted, Some(Verdict::Failed(why.into())));
        assert_eq!(
            verdict(|s| s["rollout"]["state"] = "reverting".into()),
            None
        );
        let other = verdict(|s| s["rollout"]["revision"] = 3.into());
        assert_eq!(other, Some(Verdict::Superseded(RevisionNumber(3))));
    }

    #[test]
    fn a_job_is_done_when_its_run_is() {
        let job = |outcome: Value| {
            verdict(|s| {
                s["kind"] = "job".into();
                s["outcome"] = outcome;
            })
        };
        assert_eq!(job(Value::Null), None);
        let at = "2026-01-01T00:00:00Z";
        assert_eq!(
            job(json!({"completed": true, "at": at})),
            Some(Verdict::Done)
        );
        assert_eq!(
            job(json!({"completed": false, "exit_code": 3, "reason": "no input", "at": at})),
            Some(Verdict::Failed(
                "the job failed: exit code 3, no input".into()
            ))
        );
    }

    #[test]
    fn nobody_waits_for_ever() {
        let deadline = Timestamp::from(std::time::SystemTime::UNIX_EPOCH);
        let status = status(|s| s["rollout"]["deadline"] = deadline.to_string().into());
        assert!(!too_late(&status, deadline.after(GRACE)));
        assert!(too_late(&status, deadline.after(GRACE * 2)));
    }
}
