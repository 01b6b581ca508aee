//! Resident memory of a process and everything it started.
//!
//! Pss and not Rss: a page that several processes share counts once over all of them.

use std::path::Path;

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
}

/// What the tree under `root` holds right now.
pub(crate) fn resident(root: u32) -> Result<Resident> {
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
    let mut resident = Resident::default();
    for process in all.iter().filter(|process| tree.contains(&process.id)) {
        let bytes = pss(process.id)?;
        resident.total += bytes;
        if process.name.starts_with("nats-server") {
            resident.nats += bytes;
        }
    }
    anyhow::ensure!(resident.total > 0, "process {root} is gone");
    Ok(resident)
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

/// `ID (NAME) STATE PARENT ..`; the name may contain spaces and brackets.
fn parse_stat(id: u32, stat: &str) -> Option<Process> {
    let (before, after) = stat.rsplit_once(')')?;
    let name = before.split_once('(')?.1.to_owned();
    let parent = after.split_whitespace().nth(1)?.parse().ok()?;
    Some(Process { id, parent, name })
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
        let process = parse_stat(7, "7 (a (b) c) S 3 7 7 0").expect("it is well formed");
        assert_eq!((process.name.as_str(), process.parent), ("a (b) c", 3));
    }

    #[test]
    fn finds_at_least_itself() {
        let resident = resident(std::process::id()).expect("/proc is there");
        assert!(resident.total > 100 * 1024, "{resident:?}");
    }
}
