//! How what was followed has ended, for tools and as the one error. Pure.

use serde_json::{Value, json};
use wasmorch_api::messages::WorkloadState;
use wasmorch_api::{Kind, Problem, RolloutState};

use super::follow::Followed;
use super::verdict::{Verdict, awaits_a_person};
use crate::error::{CliError, Exit};

/// The last object of `deploy --json`: an answer of the API, with how each fared. `index` is what it was answered
/// or, where its rollout went on since, the newest that is known.
pub(super) fn result(index: u64, all: &[Followed]) -> Value {
    let seen = all.iter().filter_map(|one| Some(one.last.as_ref()?.index));
    let index = seen.max().map_or(index, |seen| seen.max(index));
    json!({ "index": index, "workloads": all.iter().map(result_of).collect::<Vec<_>>() })
}

fn result_of(followed: &Followed) -> Value {
    let summary = followed.last.as_ref().map(|status| &status.summary);
    let reason = match &followed.verdict {
        Some(Verdict::Failed(reason)) => Some(reason.clone()),
        Some(Verdict::Superseded(by)) => Some(format!("revision {by} took its place")),
        _ => { followed.last.as_ref() }.and_then(|last| awaits_a_person(last).map(str::to_owned)),
    };
    json!({
        "name": followed.name,
        "revision": followed.revision,
        "changed": followed.changed,
        "succeeded": followed.verdict == Some(Verdict::Done),
        "state": summary.map_or(WorkloadState::Pending, |summary| summary.state),
        "ready": summary.map_or(0, |summary| summary.ready),
        "desired": summary.map_or(0, |summary| summary.desired),
        "rollout": followed.last.as_ref().and_then(|status| status.rollout.as_ref()),
        "outcome": followed.last.as_ref().and_then(|status| status.outcome.as_ref()),
        "urls": summary.map(|summary| summary.urls.clone()).unwrap_or_default(),
        "reason": reason,
    })
}

/// The one error of all that did not end as asked.
pub(super) fn failure(all: &[Followed]) -> Option<CliError> {
    let mut failed = Vec::new();
    for followed in all {
        match &followed.verdict {
            Some(Verdict::Failed(reason)) => failed.push((Exit::FAILED, followed, reason.clone())),
            Some(Verdict::Superseded(by)) => {
                let why = format!(
                    "revision {by} took the place of revision {}",
                    followed.revision
                );
                failed.push((Exit::CONFLICT, followed, why));
            }
            _ => {}
        }
    }
    let (exit, first, why) = failed.first()?.clone();
    let fix = format!(
        "`wasmorch why {0}` and `wasmorch logs {0}` tell more{1}",
        first.name,
        again(first)
    );
    if failed.len() == 1 {
        let unchanged = if first.changed {
            ""
        } else {
            "is unchanged, and "
        };
        let what = format!("{} {unchanged}did not get there", first.name);
        return Some(CliError::new(exit, what, why, fix));
    }
    let exit = if failed.iter().all(|(exit, ..)| *exit == Exit::CONFLICT) {
        exit
    } else {
        Exit::FAILED
    };
    let problems = failed.iter().map(|(_, followed, why)| Problem {
        at: followed.name.to_string(),
        line: None,
        column: None,
        what: why.clone(),
    });
    let what = format!(
        "{} of {} workloads did not get there",
        failed.len(),
        all.len()
    );
    Some(CliError::new(exit, what, "", fix).with_problems(None, problems.collect()))
}

/// What has another try made of the same revision: the same deploy once more has not.
fn again(followed: &Followed) -> String {
    let failed = matches!(followed.verdict, Some(Verdict::Failed(_)));
    let Some(status) = followed
        .last
        .as_ref()
        .filter(|_| failed && !followed.changed)
    else {
        return String::new();
    };
    let state = status.rollout.as_ref().map(|rollout| rollout.state);
    let (name, kind) = (&followed.name, status.summary.kind);
    match state {
        Some(RolloutState::Paused) => format!("\n`wasmorch rollout resume {name}` lets it go on"),
        Some(state) if !state.ended() => String::new(),
        _ if kind.ends() && kind != Kind::Cron => {
            format!("\n`wasmorch start {name}` runs it again")
        }
        _ => format!("\n`wasmorch restart {name}` tries it again"),
    }
}

#[cfg(test)]
mod tests {
    use wasmorch_api::RevisionNumber;

    use super::*;

    fn ended(name: &str, verdict: Verdict) -> Followed {
        let mut followed = Followed::new(name.parse().unwrap(), RevisionNumber(2));
        followed.verdict = Some(verdict);
        followed
    }

    /// Not changed by this deploy.
    fn stood(kind: &str, rollout: &str, verdict: Verdict) -> Followed {
        let mut followed = ended("web", verdict);
        followed.changed = false;
        let status = json!({
            "namespace": "default", "name": "web", "kind": kind, "revision": 2, "desired": 1,
            "ready": 0, "state": "failed", "urls": [], "spec": {"name": "web"}, "replicas": [],
            "rollout": {
                "revision": 2, "from": null, "state": rollout, "updated": 0, "ready": 0,
                "desired": 1, "deadline": "2026-01-01T00:02:00Z",
            },
            "index": 9,
        });
        followed.last = Some(serde_json::from_value(status).unwrap());
        followed
    }

    #[test]
    fn what_failed_decides_the_exit_code() {
        let done = || ended("a", Verdict::Done);
        let failed = || ended("b", Verdict::Failed("trap".into()));
        let lost = || ended("c", Verdict::Superseded(RevisionNumber(3)));
        assert!(failure(&[done()]).is_none());
        let one = failure(&[done(), failed()]).unwrap();
        assert_eq!((one.exit, one.why.as_str()), (Exit::FAILED, "trap"));
        assert_eq!(failure(&[lost()]).unwrap().exit, Exit::CONFLICT);
        let both = failure(&[failed(), lost(), done()]).unwrap();
        assert_eq!((both.exit, both.problems.len()), (Exit::FAILED, 2));
    }

    #[test]
    fn what_failed_before_and_is_asked_for_again_says_so() {
        let told = |kind, rollout| {
            let before = stood(kind, rollout, Verdict::Failed("failed".into()));
            let error = failure(&[before]).unwrap();
            assert_eq!(error.exit, Exit::FAILED);
            assert!(error.what.contains("unchanged"), "{}", error.what);
            error.fix
        };
        assert!(told("http", "failed").contains("wasmorch restart web"));
        assert!(told("job", "failed").contains("wasmorch start web"));
        assert!(told("http", "paused").contains("wasmorch rollout resume web"));
    }

    #[test]
    fn results_have_one_shape() {
        let before = stood("http", "completed", Verdict::Done);
        let all = [ended("new", Verdict::Done), before];
        let object = result(5, &all);
        // Its rollout has been written to since it was answered.
        assert_eq!(object["index"], 9);
        assert_eq!(result(5, &all[..1])["index"], 5);
        let keys = |at: usize| {
            let one = object["workloads"][at].as_object().unwrap();
            one.keys().cloned().collect::<Vec<_>>()
        };
        assert_eq!(keys(0), keys(1));
        let changed = |at: usize| object["workloads"][at]["changed"].clone();
        assert_eq!((changed(0), changed(1)), (true.into(), false.into()));
    }
}
