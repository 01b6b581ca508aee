//! Resident memory of a process and everything it started.
//!
//! Pss and not Rss: a page that several processes share counts once over all of them.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};

/// Proportional set sizes of a process tree, in bytes.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Resident {
    /// The whole tree.
    pub(crate) total: u64,
    /// What of it is nats-server's.
    pub(crate) nats: u64,
}

struct Process {
    id: u32,
    parent: u32,
    name: String,
    /// Processor time in clock ticks, its own and the kernel's for it.
    ticks: u64,
}

/// What the tree under `root` holds right now.
pub(crate) fn resident(root: u32) -> Result<Resident> {
    let mut resident = Resident::default();
    for process in tree(root)? {
        let bytes = pss(process.id)?;
        resident.total += bytes;
        if process.name.starts_with("nats-server") {
            resident.nats += bytes;
        }
    }
    anyhow::ensure!(resident.total > 0, "process {root} is gone");
    Ok(resident)
}

/// Processor time that the tree under `root` has used so far.
pub(crate) fn cpu(root: u32) -> Result<Duration> {
    let ticks = rustix::param::clock_ticks_per_second().max(1);
    let used: u64 = tree(root)?.iter().map(|process| process.ticks).sum();
    Ok(Duration::from_micros(used * 1_000_000 / ticks))
}

/// A process and all that it started.
fn tree(root: u32) -> Result<Vec<Process>> {
    let all = processes()?;
    let mut tree = vec![root];
    let mut next = 0;
    while let Some(&parent) = tree.get(next) {
        tree.extend(
            all.iter()
                .filter(|process| process.parent == parent)
                .map(|process| process.id),
        );
        next += 1;
    }
    let inside = all.into_iter().filter(|process| tree.contains(&process.id));
    Ok(inside.collect())
}

fn processes() -> Result<Vec<Process>> {
    let entries = std::fs::read_dir("/proc").context("memory is read from /proc: Linux only")?;
    let ids = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    // One that ended between the listing and the look is no part of the tree any more.
    Ok(ids
        .filter_map(|id| {
            parse_stat(
                id,
                &std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?,
            )
        })
        .collect())
}

/// `ID (NAME) STATE PARENT .. USER SYSTEM ..`; the name may contain spaces and brackets.
fn parse_stat(id: u32, stat: &str) -> Option<Process> {
    let (before, after) = stat.rsplit_once(')')?;
    let name = before.split_once('(')?.1.to_owned();
    let words: Vec<&str> = after.split_whitespace().collect();
    let number = |at: usize| words.get(at)?.parse::<u64>().ok();
    let parent = u32::try_from(number(1)?).ok()?;
    Some(Process {
        id,
        parent,
        name,
        ticks: number(11)? + number(12)?,
    })
}

fn pss(id: u32) -> Result<u64> {
    let path = format!("/proc/{id}/smaps_rollup");
    let text = std::fs::read_to_string(Path::new(&path)).with_context(|| path.clone())?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
    let kib: u64 = line
        .and_then(|line| line.split_whitespace().next()?.parse().ok())
        .with_context(|| format!("{path} has no Pss"))?;
    Ok(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_name_with_brackets() {
        let process = parse_stat(7, "7 (a (b) c) S 3 7 7 0 -1 0 0 0 0 0 40 2 0 0")
            .expect("it is well formed");
        assert_eq!((process.name.as_str(), process.parent), ("a (b) c", 3));
        assert_eq!(process.ticks, 42);
    }

    #[test]
    fn finds_at_least_itself() {
        let resident = resident(std::process::id()).expect("/proc is there");
        assert!(resident.total > 100 * 1024, "{resident:?}");
    }
}
