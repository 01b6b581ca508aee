//! Reads what says where replicas run and what happens when their host is silent: `constraints`,
//! `affinity`, `tolerate`, `spread`, `disconnect`.

use super::grammar;
use super::reader::{Field, Fields, echo};
use super::{COUNT_MAX, DURATIONS};
use crate::spec::{Affinity, Constraint, Disconnect, LabelTest, Reconcile, WorkloadSpec};
use crate::units::HumanDuration;

/// More constraints make no placement clearer, and each is tested against every host class.
const CONSTRAINTS_MAX: usize = 1_000;
/// Values in one `in` or `not_in`.
const VALUES_MAX: usize = 1_000;
/// Three heartbeats: less would end what runs whenever a message is late.
const STOP_AFTER_MIN: HumanDuration = HumanDuration::secs(3);
/// Labels in `spread`: each divides the hosts further.
const SPREAD_MAX: usize = 8;

pub(super) fn read(table: &mut Fields<'_>, spec: &mut WorkloadSpec) {
    if let Some(field) = table.take("constraints") {
        let constraints = field.list(CONSTRAINTS_MAX, |field| constraint(&field));
        spec.constraints = constraints.unwrap_or_default();
    }
    if let Some(field) = table.take("affinity") {
        spec.affinity = field
            .list(CONSTRAINTS_MAX, |field| affinity(&field))
            .unwrap_or_default();
    }
    table.texts("tolerate", VALUES_MAX, grammar::taint, &mut spec.tolerate);
    table.texts("spread", SPREAD_MAX, grammar::label, &mut spec.spread);
    if let Some(field) = table.take("disconnect") {
        spec.disconnect = disconnect(&field);
    }
}

fn constraint(field: &Field<'_>) -> Option<Constraint> {
    let mut table = field.table()?;
    if table.has("distinct") {
        let distinct = label(table.take("distinct"));
        let mut max = 1;
        table.count("max", 1..=COUNT_MAX, &mut max);
        if table.has("label") {
            table.take("label");
            table.wrong("has both `label` and `distinct`: write two constraints");
        }
        table.finish();
        return Some(Constraint::Distinct {
            distinct: distinct?,
            max,
        });
    }
    if !table.has("label") {
        table.wrong("names no host label: write { label = \"zone\", eq = \"a\" } or { distinct = \"host\" }");
    }
    let label = label(table.take("label"));
    let test = label_test(&mut table);
    table.finish();
    Some(Constraint::Label {
        label: label?,
        test: test?,
    })
}

fn affinity(field: &Field<'_>) -> Option<Affinity> {
    let mut table = field.table()?;
    if !table.has("label") {
        table.wrong("names no host label: write { label = \"disk\", eq = \"ssd\", weight = 50 }");
    }
    let label = label(table.take("label"));
    let test = label_test(&mut table);
    let weight = match table.take("weight") {
        Some(field) => field.integer(-100..=100),
        None => {
            table.wrong("has no `weight`: -100 (away from) to 100 (towards)");
            None
        }
    };
    table.finish();
    Some(Affinity {
        label: label?,
        weight: weight?,
        test: test?,
    })
}

fn label(field: Option<Field<'_>>) -> Option<String> {
    let field = field?;
    let text = field.text()?;
    grammar::label(text)
        .map_err(|what| field.wrong(what))
        .ok()?;
    Some(text.to_owned())
}

fn value(field: &Field<'_>) -> Option<String> {
    let text = field.text()?;
    grammar::label_value(text)
        .map_err(|what| field.wrong(what))
        .ok()?;
    Some(text.to_owned())
}

/// Exactly one of the six operators.
fn label_test(table: &mut Fields<'_>) -> Option<LabelTest> {
    let values = |field: Field<'_>| {
        let values = field.list(VALUES_MAX, |field| value(&field))?;
        if values.is_empty() {
            field.wrong("is empty: name at least one value");
            return None;
        }
        Some(values)
    };
    let given = ["eq", "ne", "in", "not_in", "matches", "exists"].map(|key| table.has(key));
    let given = given.into_iter().filter(|given| *given).count();
    let tests = [
        table
            .take("eq")
            .and_then(|field| value(&field))
            .map(LabelTest::Eq),
        table
            .take("ne")
            .and_then(|field| value(&field))
            .map(LabelTest::Ne),
        table.take("in").and_then(values).map(LabelTest::In),
        table.take("not_in").and_then(values).map(LabelTest::NotIn),
        table
            .take("matches")
            .and_then(|field| value(&field))
            .map(LabelTest::Matches),
        table
            .take("exists")
            .and_then(|field| field.flag())
            .map(LabelTest::Exists),
    ];
    if given != 1 {
        table.wrong(format!(
            "has {} conditions: exactly one of eq, ne, in, not_in, matches, exists is needed",
            if given == 0 {
                "no".to_owned()
            } else {
                given.to_string()
            }
        ));
        return None;
    }
    tests.into_iter().flatten().next()
}

fn disconnect(field: &Field<'_>) -> Disconnect {
    const RECONCILE: [(&str, Reconcile); 4] = [
        ("keep_original", Reconcile::KeepOriginal),
        ("keep_replacement", Reconcile::KeepReplacement),
        ("longest_running", Reconcile::LongestRunning),
        ("best_score", Reconcile::BestScore),
    ];
    let mut disconnect = Disconnect::default();
    let Some(mut table) = field.table() else {
        return disconnect;
    };
    table.unit("lost_after", DURATIONS, &mut disconnect.lost_after);
    table.flag("replace", &mut disconnect.replace);
    table.choice("reconcile", &RECONCILE, &mut disconnect.reconcile);
    disconnect.stop_after = table.unit_option("stop_after", DURATIONS);
    table.flag("exclusive", &mut disconnect.exclusive);
    if let Some(stop_after) = disconnect
        .stop_after
        .filter(|stop| *stop >= disconnect.lost_after)
    {
        table.wrong_at("stop_after", format!(
            "must be less than lost_after ({}), not {stop_after}: the host ends it before another may replace it",
            disconnect.lost_after
        ));
    }
    if let Some(stop_after) = disconnect.stop_after.filter(|stop| *stop < STOP_AFTER_MIN) {
        table.wrong_at("stop_after", format!(
            "must be at least {STOP_AFTER_MIN}, not {stop_after}: a host is heard once a second, and one message may be lost"
        ));
    }
    if disconnect.exclusive && !table.has("stop_after") {
        table.wrong_at(
            "exclusive",
            "needs `stop_after`: without it a silent host keeps the replica running",
        );
    }
    table.finish();
    disconnect
}

/// One on every host is as many on every host: a limit for each value of another label contradicts it.
pub(super) fn check_per_host(table: &Fields<'_>, spec: &WorkloadSpec) {
    let limit = spec.constraints.iter().find_map(|one| match one {
        Constraint::Distinct { distinct, .. } if distinct != "host" => Some(distinct),
        _ => None,
    });
    if let Some(label) = limit.filter(|_| spec.per_host()) {
        table.wrong_at("constraints", format!(
            "distinct {} beside replicas = \"per-host\": choose the hosts by their labels, or write replicas = N",
            echo(label)
        ));
    }
}

/// A volume that may begin empty elsewhere must not be written in two places.
pub(super) fn check_volumes(table: &Fields<'_>, spec: &WorkloadSpec) {
    for (name, volume) in &spec.bindings.volume {
        if volume.on_host_loss == "new" && spec.disconnect.stop_after.is_none() {
            table.wrong_at("disconnect", format!(
                "needs `stop_after`: volume {} may begin anew elsewhere (on_host_loss = \"new\")",
                echo(name)
            ));
        }
    }
}
