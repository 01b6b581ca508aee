//! `rollout`: a workload is rolled again and again under constant load, some rolls with a host or the
//! leader killed in the middle. What is counted, and what may fail, is said in `wasmorch_tests::rolls`.

use std::io::Write as _;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;
use wasmorch_tests::rolls::{self, Fault, Plan, Told};
use wasmorch_tests::up::Home;
use wasmorch_tests::{nats, wasmorch};

use crate::machine;

/// Flags of `rollout`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Rolls: of six, one with a host killed and one with the leader killed
    #[arg(long, default_value_t = 30)]
    rolls: usize,
    /// Replicas
    #[arg(long, default_value_t = 6)]
    replicas: u64,
    /// Clients of each of the three gateways that GET, and as many that POST
    #[arg(long, default_value_t = 2)]
    clients: usize,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn fault(n: usize) -> Fault {
    match n % 6 {
        2 => Fault::Host,
        5 => Fault::Leader,
        _ => Fault::None,
    }
}

/// Measures and prints; an error when a request was lost.
pub(crate) fn run(args: &Args) -> Result<()> {
    let facts = machine::describe(&wasmorch(), &nats::binary(), Home::new().path());
    let told = rolls::roll(&Plan {
        faults: (0..args.rolls).map(fault).collect(),
        replicas: args.replicas,
        clients: args.clients,
    });
    show(args, &facts, &told)?;
    let lost = told.lost.len();
    ensure!(lost == 0, "{lost} requests were lost");
    ensure!(told.posts > 0, "no POST was answered");
    ensure!(told.looks > 0, "nobody told which slots were ready");
    ensure!(
        told.short.is_empty(),
        "slots without a ready replica, by rolls: {:?}",
        told.short
    );
    Ok(())
}

fn show(args: &Args, facts: &[(String, String)], told: &Told) -> Result<()> {
    let mut out = std::io::stdout();
    let rows = [Fault::None, Fault::Host, Fault::Leader].map(|fault| {
        let of = told.rolls.iter().enumerate();
        let of = of.filter(|(_, roll)| roll.fault == fault);
        let (numbers, mut took): (Vec<usize>, Vec<Duration>) =
            of.map(|(n, roll)| (n, roll.took)).unzip();
        took.sort_unstable();
        let median = took.get(took.len() / 2).copied().unwrap_or_default();
        let most = took.last().copied().unwrap_or_default();
        let count = |failed: &[rolls::Failed]| {
            failed
                .iter()
                .filter(|one| numbers.contains(&one.roll))
                .count()
        };
        (
            fault,
            numbers.len(),
            median,
            most,
            count(&told.under_way),
            count(&told.lost),
        )
    });
    if args.json {
        let rows = rows.map(|(fault, rolls, median, most, under_way, lost)| {
            json!({
                "rolls": rolls, "fault": fault.name(), "median_s": median.as_secs_f64(),
                "longest_s": most.as_secs_f64(), "under_way": under_way, "lost": lost,
            })
        });
        let all = json!({
            "machine": machine::json(facts), "rows": rows, "answered": told.answered,
            "posts": told.posts, "short": told.short.len(), "looks": told.looks, "replicas": args.replicas,
        });
        return Ok(writeln!(out, "{all:#}")?);
    }
    for (label, fact) in facts {
        writeln!(out, "{label:<13}{fact}")?;
    }
    writeln!(
        out,
        "\n{:<20}{:>6}{:>10}{:>10}{:>18}{:>8}",
        "rolls", "", "median", "longest", "failed under way", "lost"
    )?;
    for (fault, rolls, median, most, under_way, lost) in rows {
        let [median, most] = [median, most].map(|took| took.as_secs_f64());
        writeln!(
            out,
            "{:<20}{rolls:>6}{median:>8.1} s{most:>8.1} s{under_way:>18}{lost:>8}",
            fault.name()
        )?;
    }
    writeln!(
        out,
        "\n{} requests answered, {} of them POSTs, from {} clients by GET and {} by POST of each of three gateways;\n\
         a slot of {} was without a ready replica, but for those of a killed host, in {} of {} looks, {} of them\n\
         while the leader was dead or new",
        told.answered,
        told.posts,
        args.clients,
        args.clients,
        args.replicas,
        told.short.len(),
        told.looks,
        told.leaderless_looks
    )?;
    for one in told.lost.iter().take(20) {
        writeln!(
            out,
            "lost: roll {}, gateway {}, {:?} after {} ms: {}",
            one.roll, one.gateway, one.asked, one.took_ms, one.what
        )?;
    }
    Ok(())
}
