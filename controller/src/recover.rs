//! Rebuilding the state from what hosts hold, what the store still has, and a backup.
//!
//! Pure. Owns the rules by which three partial memories become one:
//!
//! - What hosts hold runs: every placement of theirs goes on, under its number. A revision that a
//!   host holds is known again. A workload that only hosts know gets a record made of what they hold:
//!   the newest revision, as many replicas as the highest slot.
//! - A record that the store or the backup still has is kept; of two, the one changed last. When
//!   hosts hold something later than it knows, what hosts hold wins.
//! - No number is given twice: placements are numbered on with a gap for what nobody remembers.
//! - The cluster's id is the hosts', so that they obey. Sequences and the term go on beyond
//!   everything that a host has seen.
//!
//! It must not know how hosts are asked or how the store is written.

mod book;
mod tables;

use std::collections::BTreeMap;

use wasmorch_api::backup::Backup;
use wasmorch_api::messages::{HeldReply, RecoverReply};
use wasmorch_api::{
    ApiError, ClusterId, ErrorCode, Heartbeat, LeaderId, Name, StatusReport, Term, Timestamp,
};
use wasmorch_planner::Write;

use crate::store::{Entry, LoadedEntry};
use book::Book;

/// What silent hosts may have seen and nobody else remembers.
const SEQUENCES_SPARE: u64 = 1_000_000;
/// Lines of what was lost in one answer.
const LOST_MAX: usize = 50;

/// What one host told.
#[derive(Debug, Clone)]
pub(crate) struct Told {
    pub(crate) beat: Heartbeat,
    pub(crate) held: HeldReply,
    pub(crate) status: StatusReport,
}

/// Everything that the state can be rebuilt from.
#[derive(Debug, Default)]
pub(crate) struct Sources {
    pub(crate) hosts: Vec<Told>,
    /// Hosts that are heard and did not tell, with why.
    pub(crate) failed: Vec<(Heartbeat, String)>,
    /// What the store has, and its last sequence.
    pub(crate) stored: Vec<LoadedEntry>,
    pub(crate) last_sequence: u64,
    pub(crate) backup: Option<Backup>,
}

/// In whose name it is rebuilt, and when.
#[derive(Debug, Clone)]
pub(crate) struct Rebuilder {
    /// The cluster that the store has begun.
    pub(crate) cluster: ClusterId,
    pub(crate) term: Term,
    pub(crate) leader: LeaderId,
    pub(crate) now: Timestamp,
}

/// The state as it is to be stored.
#[derive(Debug)]
pub(crate) struct Rebuilt {
    pub(crate) cluster: ClusterId,
    pub(crate) term: Term,
    /// The first sequence.
    pub(crate) next_sequence: u64,
    pub(crate) entries: Vec<Entry>,
    pub(crate) reply: RecoverReply,
}

/// Puts the sources together.
pub(crate) fn rebuild(mut sources: Sources, by: &Rebuilder) -> Result<Rebuilt, ApiError> {
    let cluster = cluster(&sources, by)?;
    let mut lost = Vec::new();
    sources.hosts.retain(|told| {
        let ours = told.held.cluster == cluster;
        if !ours {
            let (host, other) = (&told.beat.info.name, &told.held.cluster);
            lost.push(format!(
                "host {host} belongs to cluster {other} and is left alone"
            ));
        }
        ours
    });
    for (beat, why) in &sources.failed {
        lost.push(format!(
            "host {} did not tell what it holds: {why}",
            beat.info.name
        ));
    }
    let beats = || {
        let told = sources.hosts.iter().map(|told| &told.beat);
        told.chain(sources.failed.iter().map(|(beat, _)| beat))
    };
    let term = beats()
        .map(|beat| beat.term)
        .filter(|term| term.is_credible(by.term))
        .chain(sources.backup.as_ref().map(|backup| backup.term))
        .fold(by.term, Term::max)
        .next();
    let seen = beats().map(|beat| beat.sequence.max(beat.table_seq)).max();
    let last = seen.unwrap_or(0).max(sources.last_sequence);
    let next_sequence = last.saturating_add(SEQUENCES_SPARE);

    let mut book = Book::default();
    for entry in &sources.stored {
        book.take(&entry.key, &entry.value, true);
    }
    if let Some(backup) = &sources.backup {
        for (key, value) in &backup.keys {
            book.take(key, value.to_string().as_bytes(), false);
        }
    }
    lost.extend(
        book.unreadable
            .iter()
            .map(|key| format!("the value of {key} cannot be read")),
    );
    let names = Rebuilder {
        cluster: cluster.clone(),
        term,
        ..by.clone()
    };
    book.hold(&sources.hosts, by.now, &mut lost);
    let silent = book.silent(&sources.hosts);
    let sets = book.sets(&sources.hosts, &names);
    let mut reply = RecoverReply {
        cluster: cluster.clone(),
        hosts: names_of(sources.hosts.iter().map(|told| &told.beat)),
        silent,
        workloads: book.records.len() as u64,
        from_backup: book.not_held(),
        revisions: book.revisions.values().map(BTreeMap::len).sum::<usize>() as u64,
        placements: sets
            .iter()
            .flat_map(|set| &set.groups)
            .map(|group| group.slots.len() as u64)
            .sum(),
        lost: Vec::new(),
    };
    if reply.workloads == 0 {
        return Err(nothing(&reply, &lost));
    }
    let mut writes = book.writes();
    let tables = tables::tables(&writes, &sets, &sources.hosts, &names);
    // What hosts run comes last: whatever it names is there before.
    writes.extend(tables);
    writes.extend(sets.into_iter().map(Write::Placements));
    let mut entries: Vec<Entry> = writes
        .iter()
        .map(|write| Entry {
            key: write.key(),
            value: write.body().map(Into::into),
        })
        .collect();
    entries.extend(book.others());
    if lost.len() > LOST_MAX {
        let more = lost.len() - LOST_MAX;
        lost.truncate(LOST_MAX);
        lost.push(format!("and {more} more"));
    }
    reply.lost = lost;
    Ok(Rebuilt {
        cluster,
        term,
        next_sequence,
        entries,
        reply,
    })
}

fn names_of<'a>(beats: impl Iterator<Item = &'a Heartbeat>) -> Vec<Name> {
    beats.map(|beat| beat.info.name.clone()).collect()
}

/// The cluster that the hosts with work belong to. Without any, the backup's: unless hosts have
/// joined the one that the store has begun.
fn cluster(sources: &Sources, by: &Rebuilder) -> Result<ClusterId, ApiError> {
    let mut votes: BTreeMap<&ClusterId, usize> = BTreeMap::new();
    for told in sources
        .hosts
        .iter()
        .filter(|told| !told.held.groups.is_empty())
    {
        *votes.entry(&told.held.cluster).or_default() += 1;
    }
    let backup = sources.backup.as_ref().map(|backup| &backup.cluster);
    if let Some(backup) = backup.filter(|backup| votes.contains_key(backup)) {
        return Ok(backup.clone());
    }
    let most = votes.values().max().copied().unwrap_or(0);
    let first: Vec<&&ClusterId> = votes
        .iter()
        .filter(|(_, count)| **count == most)
        .map(|(cluster, _)| cluster)
        .collect();
    match first.as_slice() {
        [one] => Ok((**one).clone()),
        [] => {
            let joined = sources
                .hosts
                .iter()
                .any(|told| told.held.cluster == by.cluster);
            Ok(backup.filter(|_| !joined).unwrap_or(&by.cluster).clone())
        }
        several => Err(ApiError::new(
            ErrorCode::Conflict,
            "hosts of several clusters are here",
            format!(
                "as many hold work of {}",
                several
                    .iter()
                    .map(ToString::to_string)
                    .collect::<Vec<_>>()
                    .join(" as of ")
            ),
            "stop the hosts of the clusters that do not belong here, or pass a backup of the one that does",
        )),
    }
}

fn nothing(reply: &RecoverReply, lost: &[String]) -> ApiError {
    let mut why = format!(
        "{} hosts told what they hold, and it is nothing",
        reply.hosts.len()
    );
    for line in lost {
        why.push_str("; ");
        why.push_str(line);
    }
    ApiError::new(
        ErrorCode::NotFound,
        "there is nothing to recover",
        why,
        "start the hosts on their data folders, or pass a backup: `wasmorch recover FILE`",
    )
}

#[cfg(test)]
mod tests;
