//! What `services` has found, as a table or as JSON.

use std::io::Write as _;

use anyhow::Result;
use serde_json::{Value, json};

use super::death::Deaths;
use super::{HOSTS, Measured};
use crate::machine;
use crate::report::percentile;

fn both(times: &[f64]) -> [f64; 2] {
    [50, 99].map(|percent| percentile(times, percent))
}

pub(super) fn show(
    as_json: bool,
    facts: &[(String, String)],
    mut found: Measured,
    notes: &[String],
) -> Result<()> {
    found.routed.everywhere.sort_by(f64::total_cmp);
    found.routed.known.sort_by(f64::total_cmp);
    let mut out = std::io::stdout();
    if as_json {
        return Ok(writeln!(out, "{:#}", to_json(facts, found, notes))?);
    }
    for (label, fact) in facts {
        writeln!(out, "{label:<13}{fact}")?;
    }
    writeln!(
        out,
        "\n{:<42}{:>12}{:>10}{:>10}{:>10}",
        "a request through", "requests/s", "p50", "p99", "requests"
    )?;
    for way in &mut found.ways {
        let [p50, p99] = [50, 99].map(|percent| way.found.percentile_ms(percent));
        let (rate, count) = (way.found.per_second(), way.found.count());
        writeln!(
            out,
            "{:<42}{rate:>12.0}{p50:>7.2} ms{p99:>7.2} ms{count:>10}",
            way.what
        )?;
    }
    let routed = &found.routed;
    let [p50, p99] = both(&routed.everywhere);
    let (all, many) = (HOSTS.len(), routed.everywhere.len());
    writeln!(
        out,
        "\nfrom ready to routed by all {all} gateways: median {p50:.1} ms, p99 {p99:.1} ms of {many} deploys"
    )?;
    if !routed.known.is_empty() {
        let [p50, p99] = both(&routed.known);
        let (all, many) = (routed.simulated, routed.known.len());
        writeln!(
            out,
            "from ready to known by {all} simulated gateways: median {p50:.1} ms, p99 {p99:.1} ms of {many} deploys"
        )?;
    }
    for (what, times) in &found.from_zero {
        let ([p50, p99], many) = (both(times), times.len());
        writeln!(
            out,
            "from zero, {what}: median {p50:.1} ms, p99 {p99:.1} ms of {many}"
        )?;
    }
    for line in found.deaths.iter().filter_map(Deaths::line) {
        writeln!(out, "{line}")?;
    }
    for note in notes {
        writeln!(out, "note: {note}")?;
    }
    Ok(())
}

fn to_json(facts: &[(String, String)], mut found: Measured, notes: &[String]) -> Value {
    let ways = found.ways.iter_mut();
    let ways: Vec<_> = ways.map(|way| way.found.json(way.what)).collect();
    let figures = |times: &[f64]| {
        let [p50, p99] = both(times);
        json!({ "deploys": times.len(), "p50_ms": p50, "p99_ms": p99 })
    };
    let routed = &found.routed;
    let known = (!routed.known.is_empty()).then(|| figures(&routed.known));
    let from_zero = found.from_zero.iter().map(|(what, times)| {
        let [p50, p99] = both(times);
        json!({ "through": what, "wakes": times.len(), "p50_ms": p50, "p99_ms": p99 })
    });
    json!({
        "machine": machine::json(facts),
        "ways": ways,
        "routed": figures(&routed.everywhere),
        "simulated": json!({ "gateways": routed.simulated, "known": known }),
        "from_zero": from_zero.collect::<Vec<_>>(),
        "deaths": found.deaths.iter().map(Deaths::json).collect::<Vec<_>>(),
        "notes": notes,
    })
}
