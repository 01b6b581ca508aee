//! `rebalance`: replicas that do better on another host are told to go there.

use std::collections::BTreeMap;

use wasmorch_api::messages::{MoveView, RebalanceReply};
use wasmorch_api::record::Move;
use wasmorch_api::{ApiError, ErrorCode, Record, Timestamp, WorkloadKey};

use super::Outcome;
use crate::balance::{self, Cursor};
use crate::cluster::Cluster;
use crate::write::Write;

/// More in one question would be stored in more than one batch.
const MOVES_MAX: u32 = 500;

/// Moves at most so many replicas to where they do better; none when all is well. With a cursor it goes on
/// where the answer that gave it left off.
pub fn rebalance(
    cluster: &Cluster,
    max_moves: Option<u32>,
    cursor: Option<&str>,
    now: Timestamp,
) -> Result<Outcome<RebalanceReply>, ApiError> {
    rebalance_within(cluster, max_moves, cursor, balance::LOOKS_MAX, now)
}

/// The same, looking at so many hosts before it leaves off.
pub fn rebalance_within(
    cluster: &Cluster,
    max_moves: Option<u32>,
    cursor: Option<&str>,
    looks: usize,
    now: Timestamp,
) -> Result<Outcome<RebalanceReply>, ApiError> {
    let most = max_moves.filter(|most| *most <= MOVES_MAX).ok_or_else(|| {
        let what = match max_moves {
            None => "rebalance names no limit".to_owned(),
            Some(most) => format!("{most} moves at once are too many"),
        };
        let fix = format!("pass `max_moves`: 0 to {MOVES_MAX}");
        ApiError::new(ErrorCode::Invalid, what, "", fix)
    })?;
    let from = cursor.map(|text| {
        Cursor::read(text).ok_or_else(|| {
            let what = "the cursor is none that rebalance has given";
            let fix = "pass `next` of the last answer, or leave it out to begin anew";
            ApiError::new(ErrorCode::Invalid, what, text, fix)
        })
    });
    let (better, next) = balance::better(cluster, most as usize, from.transpose()?, looks);
    let mut records: BTreeMap<&WorkloadKey, Record> = BTreeMap::new();
    for one in &better {
        let Some(workload) = cluster.workload(&one.key) else {
            continue;
        };
        let record = records
            .entry(&one.key)
            .or_insert_with(|| workload.record.clone());
        record.updated = now;
        record.moves.push(Move {
            placement: one.placement,
            to: one.to.0.clone(),
            successor: None,
        });
    }
    let writes = records.into_values();
    let moves = better.iter().map(|one| MoveView {
        workload: one.key.to_string(),
        slot: one.slot,
        from: one.from.clone(),
        to: one.to.1.clone(),
        why: one.why.clone(),
    });
    let reply = RebalanceReply {
        moves: moves.collect(),
        next: next.map(|cursor| cursor.to_string()),
    };
    Ok(Outcome {
        writes: writes
            .map(|record| Write::Record(Box::new(record)))
            .collect(),
        events: Vec::new(),
        reply,
    })
}
