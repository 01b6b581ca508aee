//! Follows rollouts until they end: the waiting half of `deploy`, `rollback`, `restart`.
//!
//! Asks for `status` again and again: at once after an event of the namespace, else after a pause
//! that grows, so that what is ready in 40 ms is seen in 50 and what takes minutes costs little.
//! What a status means is decided by [`judge`], which is pure.
//!
//! What a deploy left unchanged is looked at first, without a word: most often it is up.

use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use serde_json::json;
use wasmorch_api::messages::{
    Deployed, ReplicaView, RolloutView, StatusReply, WorkloadRequest, WorkloadState,
};
use wasmorch_api::{Kind, Name, ReplicaState, RevisionNumber, RolloutState, subjects};

use super::verdict::{Verdict, judge, out_of_patience, too_late};
use super::{Context, now};
use crate::error::{CliError, Exit};
use crate::link::{Link, Subscription};
use crate::out::human::harmless;
use crate::out::progress::Progress;
use crate::out::table::Tone;
use crate::out::{rollouts, views};

/// The first pause between two questions.
const PAUSE_MIN: Duration = Duration::from_millis(10);
/// The longest.
const PAUSE_MAX: Duration = Duration::from_millis(500);
/// One workload on its way.
pub(crate) struct Followed {
    pub(crate) name: Name,
    pub(crate) revision: RevisionNumber,
    /// This command changed it.
    pub(crate) changed: bool,
    /// It had its verdict at the first look, before anything was waited for.
    pub(crate) at_once: bool,
    pub(crate) last: Option<StatusReply>,
    /// The rollout that began with it.
    begun: Option<RolloutView>,
    pub(crate) verdict: Option<Verdict>,
    bar: ProgressBar,
    said: String,
    /// So many were ready at the most.
    best: u32,
    /// Since when no more were.
    best_at: Instant,
    said_unplaced: bool,
    said_waits: Option<String>,
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
            changed: true,
            at_once: false,
            last: None,
            begun: None,
            verdict: None,
            bar: ProgressBar::hidden(),
            said: String::new(),
            best: 0,
            best_at: Instant::now(),
            said_unplaced: false,
            said_waits: None,
        }
    }

    /// One of a deploy's or a rollback's answer.
    pub(crate) fn of(deployed: &Deployed) -> Self {
        Self {
            changed: deployed.changed,
            begun: deployed.rollout.clone(),
            ..Self::new(deployed.name.clone(), deployed.revision)
        }
    }

    /// Its rollout, as it was heard of last.
    pub(crate) fn rollout(&self) -> Option<&RolloutView> {
        let last = self.last.as_ref();
        last.map_or(self.begun.as_ref(), |last| last.rollout.as_ref())
    }

    /// A look at what did not change or does not roll, without a word of it.
    async fn look(&mut self, link: &Link, namespace: &Name) -> Result<(), CliError> {
        match link
            .call::<_, StatusReply>(Some(namespace), "status", &status_of(&self.name))
            .await
        {
            Ok(status) => {
                let up = matches!(
                    status.summary.state,
                    WorkloadState::Ready | WorkloadState::Idle
                );
                self.verdict = match judge(&status, self.revision) {
                    // What failed once, and came to life since, is as asked.
                    Some(Verdict::Failed(_))
                        if !self.changed && up && status.summary.revision == self.revision =>
                    {
                        Some(Verdict::Done)
                    }
                    verdict => verdict,
                };
                self.last = Some(status);
            }
            Err(error) if error.exit == Exit::NOT_FOUND => self.verdict = Some(removed()),
            // Nobody to ask for now: it is asked again with the others.
            Err(error) if error.exit == Exit::UNAVAILABLE => {}
            Err(error) => return Err(error),
        }
        self.at_once = self.verdict.is_some();
        Ok(())
    }

    /// What it waits for, whenever that is different.
    fn say_waits(&mut self, status: &StatusReply, progress: &Progress) -> Result<(), CliError> {
        let moving = { status.rollout.as_ref() }
            .filter(|view| view.revision == self.revision && !view.state.ended());
        let waits = moving.and_then(rollouts::waits);
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
        // More than ever before is progress; what comes and goes is none.
        if ready > self.best {
            self.best = ready;
            self.best_at = Instant::now();
        }
        self.verdict = judge(&status, self.revision);
        // What waits for others has no deadline of its own, or its end will be told.
        let waits = self.said_waits.is_some();
        let late = too_late(&status, now()) || out_of_patience(&status, self.best_at.elapsed());
        if self.verdict.is_none() && !waits && late {
            let why = format!("not ready in time ({})", self.said);
            self.verdict = Some(Verdict::Failed(why));
        }
        self.last = Some(status);
        Ok(())
    }
}

fn status_of(workload: &Name) -> WorkloadRequest {
    WorkloadRequest {
        workload: workload.clone(),
        all: false,
    }
}

fn removed() -> Verdict {
    Verdict::Failed("it was removed meanwhile".into())
}

/// Waits until each has its verdict. Can be dropped at any time.
pub(crate) async fn follow(
    ctx: &Context,
    link: &Link,
    namespace: &Name,
    workloads: &mut [Followed],
    progress: &Progress,
) -> Result<(), CliError> {
    // Of what is stopped, or waits for its time, no rollout begins.
    let still = |followed: &&mut Followed| !followed.changed || followed.begun.is_none();
    for followed in workloads.iter_mut().filter(still) {
        followed.look(link, namespace).await?;
    }
    if workloads.iter().all(|followed| followed.verdict.is_some()) {
        return Ok(());
    }
    // Before the first question, so that no change falls between the two.
    let mut events = link.subscribe(subjects::events(Some(namespace))).await?;
    for followed in workloads.iter_mut().filter(|one| one.verdict.is_none()) {
        followed.bar = progress.rollout(followed.name.as_str(), 1);
    }
    let mut pause = PAUSE_MIN;
    loop {
        for followed in workloads
            .iter_mut()
            .filter(|followed| followed.verdict.is_none())
        {
            match link
                .call::<_, StatusReply>(Some(namespace), "status", &status_of(&followed.name))
                .await
            {
                Ok(status) => followed.take(status, progress)?,
                // Nobody to ask for now: the rollout itself does not depend on us.
                Err(error) if error.exit == Exit::UNAVAILABLE => {
                    let still = followed.best_at.elapsed();
                    let late = { followed.last.as_ref() }
                        .is_none_or(|last| too_late(last, now()) || out_of_patience(last, still));
                    if late {
                        clear(workloads);
                        return Err(error);
                    }
                    ctx.out
                        .note(&format!("{}  {error}", Tone::Warn.paint("waiting:")));
                }
                Err(error) if error.exit == Exit::NOT_FOUND => {
                    followed.verdict = Some(removed());
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
