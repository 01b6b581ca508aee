//! The host's copy of what gateways route by, as the store tells it: changes one by one, and now
//! and then everything.
//!
//! Owns which of two tellings is the newer. The copy outlives a runner and, on disk, the daemon,
//! so that routing works after a restart without NATS. How requests are routed is the gateway's.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use wasmorch_api::{EndpointTable, RouteTable, WorkloadKey};

use crate::runner::protocol::ToRunner;

/// The tables as they lie on disk, each with its store sequence.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct TablesFile {
    /// Every workload's routes.
    pub routes: Vec<(RouteTable, u64)>,
    /// Every workload's endpoints.
    pub endpoints: Vec<(EndpointTable, u64)>,
}

/// One change, live from the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TableChange {
    /// New routes.
    Routes(RouteTable, u64),
    /// A workload has no routes any more.
    RoutesGone(WorkloadKey, u64),
    /// New endpoints.
    Endpoints(EndpointTable, u64),
    /// A workload has no endpoints any more.
    EndpointsGone(WorkloadKey, u64),
}

impl TableChange {
    /// Its place in the store.
    pub(crate) fn sequence(&self) -> u64 {
        match self {
            Self::Routes(_, sequence)
            | Self::RoutesGone(_, sequence)
            | Self::Endpoints(_, sequence)
            | Self::EndpointsGone(_, sequence) => *sequence,
        }
    }
}

/// All tables of one kind.
#[derive(Debug)]
struct Side<T> {
    live: BTreeMap<WorkloadKey, (T, u64)>,
    /// Deleted since the last full reading: one that is older must not bring them back.
    gone: BTreeMap<WorkloadKey, u64>,
}

impl<T> Default for Side<T> {
    fn default() -> Self {
        Self {
            live: BTreeMap::new(),
            gone: BTreeMap::new(),
        }
    }
}

impl<T: Clone> Side<T> {
    fn newest(&self, key: &WorkloadKey) -> Option<u64> {
        let live = self.live.get(key).map(|(_, sequence)| *sequence);
        live.max(self.gone.get(key).copied())
    }

    /// `true` when this is news.
    fn put(&mut self, key: WorkloadKey, table: T, sequence: u64) -> bool {
        if self.newest(&key).is_some_and(|newest| newest >= sequence) {
            return false;
        }
        self.gone.remove(&key);
        self.live.insert(key, (table, sequence));
        true
    }

    fn remove(&mut self, key: WorkloadKey, sequence: u64) -> bool {
        if self.newest(&key).is_some_and(|newest| newest >= sequence) {
            return false;
        }
        self.gone.insert(key.clone(), sequence);
        self.live.remove(&key).is_some()
    }

    /// Everything there is up to the sequence `as_of`.
    fn replace(&mut self, tables: Vec<(WorkloadKey, T, u64)>, as_of: u64) {
        let read: BTreeMap<_, _> = tables
            .into_iter()
            .map(|(key, table, sequence)| (key, (table, sequence)))
            .collect();
        self.live
            .retain(|key, (_, sequence)| *sequence > as_of || read.contains_key(key));
        for (key, (table, sequence)) in read {
            self.put(key, table, sequence);
        }
        self.gone.retain(|_, sequence| *sequence > as_of);
    }

    fn all(&self) -> Vec<(T, u64)> {
        self.live.values().cloned().collect()
    }
}

/// Routes and endpoints of every workload.
#[derive(Debug, Default)]
pub(crate) struct Tables {
    routes: Side<RouteTable>,
    endpoints: Side<EndpointTable>,
    /// The highest sequence heard of, deletions included: a full set says with it what it replaces.
    newest: u64,
    /// Something has changed since it was last written to disk.
    dirty: bool,
}

impl Tables {
    /// Takes up what lay on disk.
    pub(crate) fn load(file: TablesFile) -> Self {
        let mut tables = Self::default();
        for (table, sequence) in file.routes {
            tables.newest = tables.newest.max(sequence);
            tables.routes.put(table.key(), table, sequence);
        }
        for (table, sequence) in file.endpoints {
            tables.newest = tables.newest.max(sequence);
            tables.endpoints.put(table.key(), table, sequence);
        }
        tables
    }

    /// Folds a change in; the message for the runner when it is news.
    pub(crate) fn change(&mut self, change: TableChange) -> Option<ToRunner> {
        self.newest = self.newest.max(change.sequence());
        let news = match change.clone() {
            TableChange::Routes(table, sequence) => self.routes.put(table.key(), table, sequence),
            TableChange::RoutesGone(key, sequence) => self.routes.remove(key, sequence),
            TableChange::Endpoints(table, sequence) => {
                self.endpoints.put(table.key(), table, sequence)
            }
            TableChange::EndpointsGone(key, sequence) => self.endpoints.remove(key, sequence),
        };
        self.dirty |= news;
        news.then(|| message(change))
    }

    /// Whether a host has less to send requests to after the change.
    pub(crate) fn is_withdrawn_by(&self, change: &TableChange) -> bool {
        let (key, after) = match change {
            TableChange::Routes(..) | TableChange::RoutesGone(..) => return false,
            TableChange::Endpoints(table, _) => (table.key(), Some(table)),
            TableChange::EndpointsGone(key, _) => (key.clone(), None),
        };
        let before = self.endpoints.live.get(&key);
        before.is_some_and(|(before, _)| before.is_withdrawn_by(after))
    }

    /// Folds a full reading in, complete up to these sequences: (routes, endpoints).
    pub(crate) fn replace(&mut self, read: TablesFile, as_of: (u64, u64)) -> ToRunner {
        let routes = read
            .routes
            .into_iter()
            .map(|(table, seq)| (table.key(), table, seq));
        self.routes.replace(routes.collect(), as_of.0);
        let endpoints = read
            .endpoints
            .into_iter()
            .map(|(table, seq)| (table.key(), table, seq));
        self.endpoints.replace(endpoints.collect(), as_of.1);
        self.newest = self.newest.max(as_of.0).max(as_of.1);
        self.dirty = true;
        self.message()
    }

    /// Everything, for a runner that knows nothing yet.
    pub(crate) fn message(&self) -> ToRunner {
        ToRunner::Tables {
            routes: self.routes.all(),
            endpoints: self.endpoints.all(),
            as_of: self.newest,
        }
    }

    /// What was taken for the disk did not get there: it is to be taken again.
    pub(crate) fn keep_dirty(&mut self) {
        self.dirty = true;
    }

    /// Everything, for the disk, if it has changed since the last call.
    pub(crate) fn take_dirty(&mut self) -> Option<TablesFile> {
        std::mem::take(&mut self.dirty).then(|| TablesFile {
            routes: self.routes.all(),
            endpoints: self.endpoints.all(),
        })
    }
}

fn message(change: TableChange) -> ToRunner {
    match change {
        TableChange::Routes(table, sequence) => ToRunner::Routes {
            changed: vec![(table, sequence)],
            removed: Vec::new(),
        },
        TableChange::RoutesGone(key, sequence) => ToRunner::Routes {
            changed: Vec::new(),
            removed: vec![(key, sequence)],
        },
        TableChange::Endpoints(table, sequence) => ToRunner::Endpoints {
            changed: vec![(table, sequence)],
            removed: Vec::new(),
        },
        TableChange::EndpointsGone(key, sequence) => ToRunner::Endpoints {
            changed: Vec::new(),
            removed: vec![(key, sequence)],
        },
    }
}

#[cfg(test)]
mod tests {
    use wasmorch_api::{Name, Term};

    use super::*;

    fn key(name: &str) -> WorkloadKey {
        WorkloadKey::new(Name::default(), name.parse().unwrap())
    }

    fn table(name: &str) -> EndpointTable {
        EndpointTable {
            cluster: "c1".parse().unwrap(),
            term: Term(1),
            namespace: Name::default(),
            workload: name.parse().unwrap(),
            hosts: Vec::new(),
            canary: None,
        }
    }

    fn put(name: &str, sequence: u64) -> TableChange {
        TableChange::Endpoints(table(name), sequence)
    }

    fn names(tables: &Tables) -> Vec<(String, u64)> {
        tables
            .endpoints
            .live
            .iter()
            .map(|(key, (_, seq))| (key.name.to_string(), *seq))
            .collect()
    }

    #[test]
    fn the_newer_telling_counts() {
        let mut tables = Tables::default();
        assert!(tables.change(put("a", 5)).is_some());
        assert!(tables.change(put("a", 4)).is_none());
        assert!(
            tables
                .change(TableChange::EndpointsGone(key("a"), 4))
                .is_none()
        );
        assert!(
            tables
                .change(TableChange::EndpointsGone(key("a"), 6))
                .is_some()
        );
        assert!(
            tables.change(put("a", 5)).is_none(),
            "late, and deleted meanwhile"
        );
        assert!(tables.change(put("a", 7)).is_some());
        assert_eq!(names(&tables), [("a".to_owned(), 7)]);
    }

    #[test]
    fn a_full_reading_removes_only_what_it_would_have_shown() {
        let mut tables = Tables::default();
        for (name, sequence) in [("old", 3), ("kept", 4), ("new", 12), ("deleted", 5)] {
            tables.change(put(name, sequence));
        }
        tables.change(TableChange::EndpointsGone(key("deleted"), 13));
        let read = TablesFile {
            endpoints: vec![(table("kept"), 4), (table("deleted"), 5)],
            ..TablesFile::default()
        };
        tables.replace(read, (0, 10));
        assert_eq!(
            names(&tables),
            [("kept".to_owned(), 4), ("new".to_owned(), 12)]
        );
    }

    fn as_of(message: &ToRunner) -> u64 {
        match message {
            ToRunner::Tables { as_of, .. } => *as_of,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_full_set_tells_of_a_deletion_that_is_the_newest_change() {
        let mut tables = Tables::default();
        tables.change(put("a", 5));
        tables.change(TableChange::EndpointsGone(key("a"), 9));
        assert_eq!(as_of(&tables.message()), 9);
        assert_eq!(as_of(&tables.replace(TablesFile::default(), (12, 7))), 12);
        assert_eq!(as_of(&tables.replace(TablesFile::default(), (8, 7))), 12);
    }

    #[test]
    fn what_is_on_disk_reads_back() {
        let mut tables = Tables::default();
        tables.change(put("a", 5));
        let file = tables.take_dirty().unwrap();
        assert!(tables.take_dirty().is_none());
        tables.keep_dirty();
        assert_eq!(tables.take_dirty().as_ref(), Some(&file), "taken again");
        let json = serde_json::to_vec(&file).unwrap();
        let again = Tables::load(serde_json::from_slice(&json).unwrap());
        assert_eq!(names(&again), names(&tables));
        assert_eq!(as_of(&again.message()), 5);
    }
}
