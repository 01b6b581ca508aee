//! What `services` has found, as a table or as JSON.

use std::io::Write as _;

use anyhow::Result;
use serde_json::{Value, json};

use super::death::Deaths;
use super::load::Found;
use super::{HOSTS, Measured, Way};
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
    ways(&mut out, &mut found.ways, found.rate)?;
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

/// Times in milliseconds: flat out, and at the same rate for all.
fn ways(out: &mut impl std::io::Write, ways: &mut [Way], rate: u32) -> std::io::Result<()> {
    let paced = |text: String| if rate > 0 { text } else { String::new() };
    let head = paced(format!("{:>16}", format!("at {rate}/s")));
    writeln!(out, "\n{:<41}{:>24}{head}", "milliseconds", "flat out")?;
    let head = paced(format!("{:>8}{:>8}", "p50", "p99"));
    writeln!(
        out,
        "{:<41}{:>8}{:>8}{:>8}{head}",
        "a request through", "a second", "p50", "p99"
    )?;
    for way in ways {
        let both = |found: &mut Found| {
            let [p50, p99] = [50, 99].map(|percent| found.percentile_ms(percent));
            format!("{p50:>8.2}{p99:>8.2}")
        };
        let flat_out = both(&mut way.found);
        let same = if rate > 0 {
            both(&mut way.paced)
        } else {
            String::new()
        };
        writeln!(
            out,
            "{:<41}{:>8.0}{flat_out}{same}",
            way.what,
            way.found.per_second()
        )?;
    }
    Ok(())
}

fn to_json(facts: &[(String, String)], mut found: Measured, notes: &[String]) -> Value {
    let ways = found.ways.iter_mut();
    let rate = found.rate;
    let ways: Vec<_> = ways
        .map(|way| {
            let mut json = way.found.json(way.what);
            if rate > 0 {
                json["paced"] = way.paced.json(&format!("{rate} requests a second"));
            }
            json
        })
        .collect();
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
