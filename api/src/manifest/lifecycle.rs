//! Reads what says how replicas start, prove themselves and are replaced: `restart`, `health`,
//! `update`, `scale`, `job` and the keys of cron.

use super::reader::{Field, Fields};
use super::{COUNT_MAX, DURATIONS, SOME_TIME, grammar};
use crate::spec::{
    Canary, FailWhen, Health, Job, Measure, OnFailure, Overlap, Probe, Promote, Replicas, Restart,
    RestartPolicy, Scale, StatusRange, Update, UpdateOrder, WorkloadSpec, scale_panic,
    scale_tolerance, scale_window,
};
use crate::units::{HumanDuration, Share};

const SHARES: std::ops::RangeInclusive<Share> = Share(0)..=Share(100_000);

/// Hosts tell their load once a second, and the leader keeps that much of it.
const SCALE_WINDOWS: std::ops::RangeInclusive<HumanDuration> =
    HumanDuration::secs(1)..=HumanDuration::secs(3_600);

pub(super) fn restart(field: &Field<'_>) -> Restart {
    let mut restart = Restart::default();
    let Some(mut table) = field.table() else {
        return restart;
    };
    restart.policy = table.take("policy").and_then(|field| {
        field.choice(&[
            ("always", RestartPolicy::Always),
            ("on-failure", RestartPolicy::OnFailure),
            ("never", RestartPolicy::Never),
        ])
    });
    table.unit("backoff", DURATIONS, &mut restart.backoff);
    let backoff_max = table.unit_option("backoff_max", DURATIONS);
    restart.backoff_max = backoff_max.unwrap_or(restart.backoff_max.max(restart.backoff));
    table.count("starts_per_host", 1..=1_000, &mut restart.starts_per_host);
    if restart.backoff > restart.backoff_max {
        let what = format!(
            "must be at least backoff ({}), not {}",
            restart.backoff, restart.backoff_max
        );
        table.wrong_at("backoff_max", what);
    }
    table.finish();
    restart
}

pub(super) fn health(field: &Field<'_>) -> Health {
    let mut health = Health::default();
    let Some(mut table) = field.table() else {
        return health;
    };
    table.unit("start_grace", DURATIONS, &mut health.start_grace);
    if let Some(field) = table.take("ready") {
        health.ready = probe(&field);
    }
    health.live = table.take("live").and_then(|field| probe(&field));
    table.finish();
    health
}

/// A probe, or `false` for none and `true` for the default one.
fn probe(field: &Field<'_>) -> Option<Probe> {
    use crate::document::Value;
    let mut probe = Probe::default();
    match field.node.value {
        Value::Bool(wanted) => return wanted.then_some(probe),
        Value::Table(_) => {}
        _ => {
            field.wrong("must be a table like { path = \"/\" }, or false");
            return None;
        }
    }
    let mut table = field.table()?;
    if let Some(field) = table.take("path")
        && let Some(text) = field.text()
    {
        match grammar::probe_path(text) {
            Ok(()) => text.clone_into(&mut probe.path),
            Err(what) => field.wrong(what),
        }
    }
    if let Some(status) = table
        .take("status")
        .and_then(|field| field.parsed::<StatusRange>())
    {
        probe.status = Some(status);
    }
    table.unit(
        "interval",
        HumanDuration::millis(10)..=HumanDuration::secs(86_400),
        &mut probe.interval,
    );
    table.unit(
        "timeout",
        HumanDuration::millis(1)..=HumanDuration::secs(3_600),
        &mut probe.timeout,
    );
    table.count("pass", 1..=1_000, &mut probe.pass);
    table.count("fail", 1..=1_000, &mut probe.fail);
    table.finish();
    Some(probe)
}

/// Reads `update` and fills in what follows from the rest of the spec, bindings and replicas read.
pub(super) fn update(field: Option<&Field<'_>>, spec: &WorkloadSpec) -> Update {
    // One slot, one host: the old one has to go before the new one can have the volume, the seat or
    // the port.
    let writes = spec.bindings.writes();
    let once = spec.runs_once();
    let listens = spec.bindings.listens();
    let seated = writes || once || listens || matches!(spec.replicas, Some(Replicas::PerHost(_)));
    let mut update = Update::default();
    let stop_first = |update: &mut Update| {
        update.order = UpdateOrder::StopFirst;
        update.max_surge = 0;
        update.max_unavailable = 1;
    };
    if seated {
        stop_first(&mut update);
    }
    let Some(mut table) = field.and_then(|field| field.table()) else {
        return update;
    };
    const ORDERS: [(&str, UpdateOrder); 2] = [
        ("start-first", UpdateOrder::StartFirst),
        ("stop-first", UpdateOrder::StopFirst),
    ];
    table.choice("order", &ORDERS, &mut update.order);
    if update.order == UpdateOrder::StopFirst {
        stop_first(&mut update);
    }
    table.count("max_surge", 0..=COUNT_MAX, &mut update.max_surge);
    table.count(
        "max_unavailable",
        0..=COUNT_MAX,
        &mut update.max_unavailable,
    );
    if update.max_surge == 0 && update.max_unavailable > 0 && !table.has("order") {
        update.order = UpdateOrder::StopFirst;
    }
    table.unit("min_ready", DURATIONS, &mut update.min_ready);
    table.unit(
        "progress_deadline",
        SOME_TIME,
        &mut update.progress_deadline,
    );
    update.by = table.take("by").and_then(|field| {
        let text = field.text()?;
        grammar::label(text)
            .map_err(|what| field.wrong(what))
            .ok()?;
        Some(text.to_owned())
    });
    table.unit("drain", DURATIONS, &mut update.drain);
    const FAILURES: [(&str, OnFailure); 2] =
        [("revert", OnFailure::Revert), ("pause", OnFailure::Pause)];
    table.choice("on_failure", &FAILURES, &mut update.on_failure);
    update.fail_when = table.take("fail_when").and_then(|field| fail_when(&field));
    update.canary = table.take("canary").and_then(|field| canary(&field));
    check_update(&table, &update, (writes, once, listens && spec.per_host()));
    table.finish();
    update
}

fn check_update(table: &Fields<'_>, update: &Update, (writes, once, listens): (bool, bool, bool)) {
    let twice = update.order == UpdateOrder::StartFirst || update.max_surge > 0;
    if (writes || once || listens) && twice {
        let whose = if writes {
            "a slot with a rw volume"
        } else if listens {
            "what listens on a port of every host"
        } else {
            "an exclusive workload"
        };
        let how = "order = \"stop-first\", max_surge = 0";
        table.wrong(format!("{whose} cannot run twice: {how}"));
    } else if update.max_surge == 0 && update.max_unavailable == 0 {
        let key = if table.has("max_unavailable") {
            "max_unavailable"
        } else {
            "max_surge"
        };
        table.wrong_at(
            key,
            "max_surge and max_unavailable are both 0: nothing could ever be replaced",
        );
    } else if update.order == UpdateOrder::StopFirst && update.max_unavailable == 0 {
        table.wrong_at(
            "max_unavailable",
            "must be at least 1 with order = \"stop-first\"",
        );
    } else if update.order == UpdateOrder::StartFirst && update.max_surge == 0 {
        table.wrong_at(
            "max_surge",
            "must be at least 1 with order = \"start-first\"; or write order = \"stop-first\"",
        );
    }
    if update.canary.is_some() && update.order == UpdateOrder::StopFirst {
        table.wrong_at(
            "canary",
            "stands beside what it may replace: it needs order = \"start-first\"",
        );
    }
    if update.progress_deadline <= update.min_ready {
        let what = format!(
            "must be longer than min_ready ({}), not {}: no replica could be in time",
            update.min_ready, update.progress_deadline
        );
        table.wrong_at("progress_deadline", what);
    }
}

fn fail_when(field: &Field<'_>) -> Option<FailWhen> {
    let mut when = FailWhen::default();
    let mut table = field.table()?;
    table.unit("errors", SHARES, &mut when.errors);
    table.count("min_requests", 1..=COUNT_MAX, &mut when.min_requests);
    when.p99 = table.unit_option("p99", SOME_TIME);
    table.finish();
    Some(when)
}

fn canary(field: &Field<'_>) -> Option<Canary> {
    let mut canary = Canary::default();
    let mut table = field.table()?;
    table.count("replicas", 1..=COUNT_MAX, &mut canary.replicas);
    canary.percent = table.count_option("percent", 1..=100);
    table.unit("bake", DURATIONS, &mut canary.bake);
    table.choice(
        "promote",
        &[("auto", Promote::Auto), ("manual", Promote::Manual)],
        &mut canary.promote,
    );
    table.finish();
    Some(canary)
}

pub(super) fn scale(field: &Field<'_>) -> Option<Scale> {
    let mut table = field.table()?;
    let (mut min, mut max) = (1, 1);
    table.count("min", 0..=COUNT_MAX, &mut min);
    for key in ["max", "target"] {
        if !table.has(key) {
            table.wrong(format!(
                "has no `{key}`: write {{ min = 1, max = 10, target = {{ concurrency = 50 }} }}"
            ));
        }
    }
    table.count("max", 1..=COUNT_MAX, &mut max);
    let mut target = std::collections::BTreeMap::new();
    if let Some(field) = table.take("target")
        && let Some(mut keys) = field.table()
    {
        let measures = Measure::ALL.map(Measure::as_str);
        let named = measures.into_iter().filter(|key| keys.has(key)).count();
        for measure in Measure::ALL {
            let most = if measure == Measure::Cpu {
                100
            } else {
                COUNT_MAX
            };
            if let Some(value) = keys.count_option(measure.as_str(), 1..=most) {
                target.insert(measure.as_str().to_owned(), value);
            }
        }
        if named != 1 {
            let what = if named == 0 {
                "names no measure"
            } else {
                "names several measures"
            };
            keys.wrong(format!(
                "{what}: replicas follow one of {}",
                measures.join(", ")
            ));
        }
        keys.finish();
    }
    let (mut window, mut panic, mut tolerance) = (scale_window(), scale_panic(), scale_tolerance());
    table.unit("window", SCALE_WINDOWS, &mut window);
    table.unit("panic", SCALE_WINDOWS, &mut panic);
    table.unit("tolerance", SHARES, &mut tolerance);
    if min > max && table.has("max") {
        table.wrong_at("max", format!("must be at least min ({min}), not {max}"));
    }
    if panic > window {
        table.wrong_at(
            "panic",
            format!("must be at most window ({window}), not {panic}"),
        );
    }
    table.finish();
    Some(Scale {
        min,
        max,
        target,
        window,
        panic,
        tolerance,
    })
}

pub(super) fn job(field: &Field<'_>) -> Job {
    let mut job = Job::default();
    let Some(mut table) = field.table() else {
        return job;
    };
    table.count("completions", 1..=COUNT_MAX, &mut job.completions);
    table.count("parallelism", 1..=COUNT_MAX, &mut job.parallelism);
    table.count("attempts", 1..=1_000, &mut job.attempts);
    table.count("keep", 0..=1_000, &mut job.keep);
    table.finish();
    job
}

/// `schedule`, `timezone`, `overlap`, `catch_up`.
pub(super) fn cron(table: &mut Fields<'_>, spec: &mut WorkloadSpec) {
    let checked = |field: Option<Field<'_>>, check: fn(&str) -> Result<(), String>| {
        let field = field?;
        let text = field.text()?;
        check(text).map_err(|what| field.wrong(what)).ok()?;
        Some(text.to_owned())
    };
    spec.schedule = checked(table.take("schedule"), grammar::schedule);
    spec.timezone = checked(table.take("timezone"), grammar::timezone);
    spec.overlap = table.take("overlap").and_then(|field| {
        field.choice(&[
            ("skip", Overlap::Skip),
            ("allow", Overlap::Allow),
            ("replace", Overlap::Replace),
        ])
    });
    spec.catch_up = table.unit_option("catch_up", DURATIONS);
}
