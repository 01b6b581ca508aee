//! What a spec may hold depends on its kind.
//!
//! Owns those rules. A manifest that names its kind is held to them when it is read; one that leaves
//! it to the exports, when the component has been inspected (`component::check`).

use crate::error::Problem;
use crate::spec::{Job, Kind, Measure, OnFailure, Replicas, RestartPolicy, Scale, WorkloadSpec};
use crate::units::Cpu;

const ONE_CORE: Cpu = Cpu(1_000);
/// A share is in thousandths of a percent.
const WHOLE: u64 = 100_000;

/// What of this spec contradicts the kind: the key, and what is wrong.
pub(crate) fn of_kind(spec: &WorkloadSpec, kind: Kind) -> Vec<(&'static str, String)> {
    let command = matches!(kind, Kind::Service | Kind::Job | Kind::Cron);
    let mut broken = Vec::new();
    let mut rule = |holds: bool, key: &'static str, what: &str| {
        if !holds {
            broken.push((key, format!("{what}; this is kind = \"{kind}\"")));
        }
    };
    rule(
        command || spec.args.is_empty(),
        "args",
        "are for service, job and cron",
    );
    rule(
        kind == Kind::Http || spec.routes.is_empty(),
        "routes",
        "are for http",
    );
    rule(
        kind == Kind::Messages || spec.bindings.subscribe.is_empty(),
        "bindings.subscribe",
        "is for messages",
    );
    if kind != Kind::Cron {
        rule(spec.schedule.is_none(), "schedule", "is for cron");
        rule(spec.timezone.is_none(), "timezone", "is for cron");
        rule(spec.overlap.is_none(), "overlap", "is for cron");
        rule(spec.catch_up.is_none(), "catch_up", "is for cron");
    } else if spec.schedule.is_none() {
        rule(false, "schedule", "is missing: write it like `0 3 * * *`");
    }
    rule(
        kind.ends() || spec.job == Job::default(),
        "job",
        "is for job and cron",
    );
    if kind.ends() {
        rule(
            matches!(spec.replicas, None | Some(Replicas::Count(1))),
            "replicas",
            "are for what runs on: write job = { completions = N, parallelism = N }",
        );
        rule(spec.scale.is_none(), "scale", "is for what runs on");
        rule(
            spec.restart.policy != Some(RestartPolicy::Always),
            "restart.policy",
            "must be on-failure or never for what ends",
        );
    }
    rule(
        kind == Kind::Http || spec.health.live.is_none(),
        "health.live",
        "asks by HTTP",
    );
    if let Some(scale) = &spec.scale {
        of_scale(spec, kind, scale, &mut rule);
    }
    rule(
        !kind.ends() || spec.update.canary.is_none(),
        "update.canary",
        "is for what runs on",
    );
    rule(
        !kind.ends() || spec.update.by.is_none(),
        "update.by",
        "is for what runs on",
    );
    let percent = spec
        .update
        .canary
        .as_ref()
        .is_some_and(|canary| canary.percent.is_some());
    rule(
        kind == Kind::Http || !percent,
        "update.canary.percent",
        "shares out HTTP requests",
    );
    rule(
        kind == Kind::Http || spec.update.fail_when.is_none(),
        "update.fail_when",
        "judges HTTP answers",
    );
    broken
}

/// What `scale` may follow.
fn of_scale(
    spec: &WorkloadSpec,
    kind: Kind,
    scale: &Scale,
    rule: &mut impl FnMut(bool, &'static str, &str),
) {
    let has = |measure| scale.target.contains_key(measure);
    rule(
        kind != Kind::Service || !has("concurrency"),
        "scale.target",
        "concurrency is for http and messages: write cpu",
    );
    rule(
        kind == Kind::Http || !has("requests_per_second"),
        "scale.target",
        "requests_per_second is for http",
    );
    rule(
        kind == Kind::Messages || !has("pending"),
        "scale.target",
        "pending is for messages",
    );
    rule(
        kind != Kind::Service || scale.min > 0,
        "scale.min",
        "is 1 or more for a service: nothing is asked of it that could wake it",
    );
    let mut subscribed = spec.bindings.subscribe.iter();
    rule(
        !has("pending") || subscribed.any(|one| one.stream.is_some()),
        "scale.target",
        "pending counts what waits in a stream: name one in bindings.subscribe",
    );
    let beyond = out_of_reach(spec, kind, scale);
    rule(
        beyond.is_none(),
        "scale.target",
        beyond.as_deref().unwrap_or_default(),
    );
}

/// Why no replica could ever be seen to carry more than the target, so that the count would never go up.
/// What a host has to give is not known here: a replica may be kept below this by it.
fn out_of_reach(spec: &WorkloadSpec, kind: Kind, scale: &Scale) -> Option<String> {
    let (measure, target) = scale.follows()?;
    let resources = &spec.resources;
    let (most, of, whence) = match measure {
        Measure::Concurrency if matches!(kind, Kind::Http | Kind::Messages) => {
            let seats = u64::from(resources.concurrency) + u64::from(resources.queue);
            (seats, 1, "resources.concurrency and queue")
        }
        // One thread executes a service.
        Measure::Cpu if kind == Kind::Service && resources.cpu > ONE_CORE => (
            100 * ONE_CORE.0,
            resources.cpu.0,
            "percent of resources.cpu, for a service uses one core",
        ),
        Measure::Cpu => (100, 1, "percent of resources.cpu"),
        _ => return None,
    };
    // Within the tolerance the count stays.
    let stays = u64::from(target) * (WHOLE + u64::from(scale.tolerance.0));
    (stays.saturating_mul(of) >= most * WHOLE).then(|| {
        format!(
            "{} = {target} would never make a replica more: one carries {} at most ({whence}), and the target \
             with its tolerance of {} is not less: lower the target",
            measure.as_str(),
            most / of,
            scale.tolerance
        )
    })
}

/// What of a workload could not go back with the others of an atomic deploy.
pub fn not_undone(spec: &WorkloadSpec, kind: Kind) -> Vec<Problem> {
    let problem = |at: &str, what: String| Problem {
        at: at.to_owned(),
        line: None,
        column: None,
        what,
    };
    let mut problems = Vec::new();
    if kind == Kind::Job {
        let what = "a job cannot be deployed with `atomic`: its run cannot be undone; deploy it apart, \
                    or leave `atomic` out";
        problems.push(problem("kind", what.to_owned()));
    }
    if spec.update.on_failure == OnFailure::Pause {
        let what = "\"pause\" leaves it where it is, and with `atomic` all go back together: \
                    leave one of the two out";
        problems.push(problem("update.on_failure", what.to_owned()));
    }
    problems
}
