//! What a status says of a workload that is followed. Pure: a status in, a verdict out.

use std::time::Duration;

use wasmorch_api::messages::{RolloutView, StatusReply, WorkloadState};
use wasmorch_api::{Kind, RevisionNumber, RolloutState, Timestamp};

use crate::out::table::Tone;
use crate::out::{rollouts, views};

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
        let waits = rollouts::waits(rollout).unwrap_or_default();
        return Some(Verdict::Failed(format!("it still {waits}")));
    }
    let never_begun = own.is_some_and(|rollout| rollout.state == RolloutState::Failed)
        && status.outcome.is_none();
    if summary.kind == Kind::Job && summary.revision == revision && !never_begun {
        return status.outcome.as_ref().map(|outcome| {
            if outcome.completed {
                return Verdict::Done;
            }
            let how = views::how_it_ended(outcome.exit_code, &outcome.reason);
            Verdict::Failed(format!("the job failed: {how}"))
        });
    }
    let other =
        |rollout: &&RolloutView| rollout.revision != revision && summary.revision == revision;
    let back = status.rollout.as_ref().filter(other);
    if back.is_some_and(|rollout| rollout.state == RolloutState::Reverting) {
        // To this very revision: it is not all there yet.
        return None;
    }
    // One to another revision that is over, and left this one in force, says nothing of it.
    let over = back.is_some_and(|rollout| rollout.state.ended());
    let Some(rollout) = status.rollout.as_ref().filter(|_| !over) else {
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
pub(super) fn too_late(status: &StatusReply, now: Timestamp) -> bool {
    let moving = status
        .rollout
        .as_ref()
        .filter(|rollout| !rollout.state.ended());
    // The deadline is that of its start; how long a run takes is its own business.
    let runs = status.summary.kind.ends() && status.replicas.iter().any(|one| !one.state.ended());
    !runs && moving.is_some_and(|rollout| now > rollout.deadline.after(GRACE))
}

/// Whether what does not roll has not come on for as long as a rollout may take: it has another count, or lost what
/// it had, and no leader gives up on that.
pub(super) fn out_of_patience(status: &StatusReply, still: Duration) -> bool {
    let moving = status.rollout.as_ref();
    let moving = moving.is_some_and(|rollout| !rollout.state.ended());
    let runs = status.summary.kind.ends() && status.unplaced.is_none();
    !moving && !runs && still > status.spec.update.progress_deadline.0
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
        _ if status.summary.state == WorkloadState::Stopped => ("stopped", Tone::Dim),
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
        let told = json!({"completed": false, "exit_code": 1, "at": at,
            "reason": "it ended with exit code 1"});
        let once = "the job failed: it ended with exit code 1".into();
        assert_eq!(job(told), Some(Verdict::Failed(once)));
    }

    #[test]
    fn nobody_waits_for_ever() {
        let deadline = Timestamp::from(std::time::SystemTime::UNIX_EPOCH);
        let rolls = status(|s| s["rollout"]["deadline"] = deadline.to_string().into());
        assert!(!too_late(&rolls, deadline.after(GRACE)));
        assert!(too_late(&rolls, deadline.after(GRACE * 2)));
        // Two minutes unless the spec says otherwise, and only where no rollout has its own deadline.
        let (long, short) = (Duration::from_secs(121), Duration::from_secs(119));
        let stands = status(|s| s["rollout"]["state"] = "completed".into());
        assert!(out_of_patience(&stands, long) && !out_of_patience(&stands, short));
        assert!(!out_of_patience(&rolls, long));
        let job = status(|s| (s["kind"], s["rollout"]) = ("job".into(), Value::Null));
        assert!(!out_of_patience(&job, long));
    }

    #[test]
    fn what_did_not_change_is_judged_by_how_it_stands() {
        // Asked for revision 1 again, after revision 2 was tried.
        let again = |state: &str, ready: u32| {
            let status = status(|s| {
                s["revision"] = 1.into();
                s["ready"] = ready.into();
                s["rollout"]["state"] = state.into();
            });
            judge(&status, RevisionNumber(1))
        };
        assert_eq!(again("reverted", 2), Some(Verdict::Done));
        assert_eq!(again("aborted", 2), Some(Verdict::Done));
        assert_eq!(again("reverted", 1), None);
        assert_eq!(again("reverting", 2), None);
        let taken = again("rolling", 2);
        assert_eq!(taken, Some(Verdict::Superseded(RevisionNumber(2))));
        // A first revision that failed, and one that is on its way.
        let first = |state: &str| {
            verdict(|s| {
                s["rollout"]["from"] = Value::Null;
                s["rollout"]["state"] = state.into();
            })
        };
        assert_eq!(first("rolling"), None);
        assert_eq!(first("failed"), Some(Verdict::Failed("failed".into())));
    }
}
