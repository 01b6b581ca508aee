//! Whether the store takes what a plan writes of a workload: one value is one message.
//!
//! What a set of placements needs is a dimension of its host; records and tables grow with what they
//! name, and nothing books that.

use serde_json::Value;
use wasmorch_api::Record;

use super::BrokenRule;
use crate::cluster::Cluster;
use crate::plan::Plan;
use crate::write::json_bytes;

/// What one entry of a record or a table needs at most. Nothing is written out for its size alone
/// unless it could be too large.
const ENTRY_BYTES_MAX: usize = 2 << 10;

/// No record and no table is larger than the store takes.
pub(super) fn fit(cluster: &Cluster, plan: &Plan, broken: &mut Vec<BrokenRule>) {
    let most = cluster.value_bytes_max;
    let could = |entries: usize| entries.saturating_mul(ENTRY_BYTES_MAX) > most;
    let mut note = |workload, what, bytes: usize| {
        if bytes > most {
            broken.push(BrokenRule::TooLarge {
                workload,
                what,
                bytes,
                most,
            });
        }
    };
    for record in plan.update.iter().filter(|one| could(entries(one))) {
        note(record.key(), "record", json_bytes(record));
    }
    for table in plan.endpoints.iter().filter(|one| could(one.len())) {
        note(table.key(), "endpoint table", table.bytes());
    }
}

/// How many things a record names.
fn entries(record: &Record) -> usize {
    let runs = record.earlier.iter().chain(&record.run);
    let of_runs: usize = runs
        .map(|run| 1 + run.counted.len() + run.tries.len() + run.args.iter().flatten().count())
        .sum();
    let answers = record.answered.iter().map(|one| {
        // The answer to a deploy names all of its manifest.
        let workloads = one.reply.get("workloads").and_then(Value::as_array);
        1 + workloads.map_or(0, Vec::len)
    });
    let named = record.homes.len() + record.crash_loop.len() + record.moves.len();
    named + of_runs + answers.sum::<usize>()
}
