//! What this gateway knows: routes and endpoints, each complete for its workload.
//!
//! Owns the tables and the rule which of two versions of one wins: the one with the higher store
//! sequence; deletions count as versions. Work after a change is proportional to the change.
//!
//! A lock is held for a lookup (tens of nanoseconds) or one change, never across an `await`.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use wasmorch_api::{EndpointTable, RouteTable, WorkloadKey};

use crate::balance::Endpoints;
use crate::index::{RouteIndex, Target};

/// Deletions remembered, so that an older version that arrives late does not undo them.
const DELETIONS_MAX: usize = 10_000;

/// Routes and endpoints; a cheap handle that all clones share.
#[derive(Debug, Clone, Default)]
pub struct Tables {
    state: Arc<RwLock<State>>,
}

#[derive(Debug, Default)]
struct State {
    routes: Versions<Routes>,
    endpoints: Versions<Arc<Endpoints>>,
    index: RouteIndex,
    /// The highest sequence applied of an endpoint table, or of a whole reading: routes come another way, and
    /// say nothing of whether endpoints before them have come.
    sequence: u64,
}

#[derive(Debug)]
struct Routes {
    table: RouteTable,
    target: Arc<Target>,
}

/// One table's newest version by workload.
#[derive(Debug)]
struct Versions<T> {
    entries: HashMap<WorkloadKey, Version<T>>,
    /// Deletions in the order they were applied.
    deleted: VecDeque<(WorkloadKey, u64)>,
    /// The highest sequence of a deletion that is no longer remembered: what is not newer may have
    /// been deleted.
    forgotten: u64,
}

#[derive(Debug)]
struct Version<T> {
    sequence: u64,
    /// `None`: deleted.
    value: Option<T>,
}

impl<T> Default for Versions<T> {
    fn default() -> Self {
        Self {
            entries: HashMap::new(),
            deleted: VecDeque::new(),
            forgotten: 0,
        }
    }
}

impl<T> Versions<T> {
    fn get(&self, key: &WorkloadKey) -> Option<&T> {
        self.entries.get(key)?.value.as_ref()
    }

    fn iter(&self) -> impl Iterator<Item = &T> {
        self.entries
            .values()
            .filter_map(|version| version.value.as_ref())
    }

    /// Whether a version with this sequence is news.
    fn accepts(&self, key: &WorkloadKey, sequence: u64) -> bool {
        match self.entries.get(key) {
            Some(version) => sequence >= version.sequence,
            // Sequence 0 is before the store's first: tables that were not read from it.
            None => sequence == 0 || sequence > self.forgotten,
        }
    }

    /// Stores a version; gives back the one before. Ask [`Self::accepts`] first.
    fn put(&mut self, key: WorkloadKey, sequence: u64, value: Option<T>) -> Option<T> {
        if value.is_none() {
            self.deleted.push_back((key.clone(), sequence));
        }
        let before = self.entries.insert(key, Version { sequence, value });
        if self.deleted.len() > DELETIONS_MAX {
            self.forget_a_deletion();
        }
        before.and_then(|version| version.value)
    }

    fn forget_a_deletion(&mut self) {
        let Some((key, sequence)) = self.deleted.pop_front() else {
            return;
        };
        // It may have come back, or been deleted again, since.
        let same = self
            .entries
            .get(&key)
            .is_some_and(|version| version.value.is_none() && version.sequence == sequence);
        if same {
            self.entries.remove(&key);
            self.forgotten = self.forgotten.max(sequence);
        }
    }

    /// Live keys that are not in `listed` and not newer than `as_of`.
    fn gone(&self, listed: &[&WorkloadKey], as_of: u64) -> Vec<(WorkloadKey, u64)> {
        let listed: std::collections::HashSet<_> = listed.iter().copied().collect();
        self.entries
            .iter()
            .filter(|(key, version)| {
                version.value.is_some() && version.sequence <= as_of && !listed.contains(key)
            })
            .map(|(key, version)| (key.clone(), version.sequence))
            .collect()
    }
}

impl State {
    fn put_routes(&mut self, key: WorkloadKey, table: Option<RouteTable>, sequence: u64) {
        if !self.routes.accepts(&key, sequence) {
            return;
        }
        let routes = table.map(|table| {
            let timeout = table.timeout.map(|timeout| timeout.0);
            let target = Arc::new(Target::new(key.clone(), timeout));
            Routes { table, target }
        });
        // Out of the index before the new ones go in: they may share a route.
        if let Some(before) = self.routes.get(&key) {
            self.index.remove(&before.table);
        }
        if let Some(routes) = &routes {
            self.index.insert(&routes.table, &routes.target);
        }
        self.routes.put(key, sequence, routes);
    }

    fn put_endpoints(&mut self, key: WorkloadKey, table: Option<EndpointTable>, sequence: u64) {
        self.sequence = self.sequence.max(sequence);
        if self.endpoints.accepts(&key, sequence) {
            let before = self.endpoints.get(&key);
            let endpoints = table.map(|table| Endpoints::new(table, before.map(|held| &**held)));
            let endpoints = endpoints.map(Arc::new);
            self.endpoints.put(key, sequence, endpoints);
        }
    }
}

impl Tables {
    /// Empty tables.
    pub fn new() -> Self {
        Self::default()
    }

    /// A workload's routes, as stored with this sequence. An older one than is held is ignored.
    pub fn apply_routes(&self, table: RouteTable, sequence: u64) {
        self.write().put_routes(table.key(), Some(table), sequence);
    }

    /// The workload has no routes any more, as of this sequence.
    pub fn remove_routes(&self, workload: &WorkloadKey, sequence: u64) {
        self.write().put_routes(workload.clone(), None, sequence);
    }

    /// A workload's endpoints, as stored with this sequence. An older one than is held is ignored.
    pub fn apply_endpoints(&self, table: EndpointTable, sequence: u64) {
        self.write()
            .put_endpoints(table.key(), Some(table), sequence);
    }

    /// No host serves the workload any more, as of this sequence.
    pub fn remove_endpoints(&self, workload: &WorkloadKey, sequence: u64) {
        self.write().put_endpoints(workload.clone(), None, sequence);
    }

    /// Everything that was read from the store. What is held and not listed goes, unless it is
    /// newer than all that is listed: it was told while the store was being read.
    ///
    /// A deletion that is the newest change of all cannot be seen in a listing: tell it with
    /// `remove_routes` and `remove_endpoints` (a read sees the delete marker), or use
    /// [`Self::replace_all_as_of`] where the store's last sequence is known.
    pub fn replace_all(
        &self,
        routes: Vec<(RouteTable, u64)>,
        endpoints: Vec<(EndpointTable, u64)>,
    ) {
        let newest_route = routes.iter().map(|(_, sequence)| *sequence).max();
        let newest_endpoint = endpoints.iter().map(|(_, sequence)| *sequence).max();
        let as_of = newest_route.max(newest_endpoint).unwrap_or(0);
        self.replace_all_as_of(routes, endpoints, as_of);
    }

    /// Everything that was read from the store when its last sequence was `as_of`. What is held,
    /// not listed, and not newer than that goes.
    pub fn replace_all_as_of(
        &self,
        routes: Vec<(RouteTable, u64)>,
        endpoints: Vec<(EndpointTable, u64)>,
        as_of: u64,
    ) {
        let route_keys: Vec<_> = routes.iter().map(|(table, _)| table.key()).collect();
        let endpoint_keys: Vec<_> = endpoints.iter().map(|(table, _)| table.key()).collect();
        let mut state = self.write();
        for (key, sequence) in state
            .routes
            .gone(&route_keys.iter().collect::<Vec<_>>(), as_of)
        {
            state.put_routes(key, None, sequence);
        }
        for (key, sequence) in state
            .endpoints
            .gone(&endpoint_keys.iter().collect::<Vec<_>>(), as_of)
        {
            state.put_endpoints(key, None, sequence);
        }
        for ((table, sequence), key) in routes.into_iter().zip(route_keys) {
            state.put_routes(key, Some(table), sequence);
        }
        for ((table, sequence), key) in endpoints.into_iter().zip(endpoint_keys) {
            state.put_endpoints(key, Some(table), sequence);
        }
        state.sequence = state.sequence.max(as_of);
    }

    /// The highest sequence applied of an endpoint table, deletions included, or of a whole reading.
    pub fn sequence(&self) -> u64 {
        self.read().sequence
    }

    /// All that is held, ordered by workload.
    pub fn snapshot(&self) -> (Vec<RouteTable>, Vec<EndpointTable>) {
        let state = self.read();
        let mut routes: Vec<_> = state
            .routes
            .iter()
            .map(|routes| routes.table.clone())
            .collect();
        let mut endpoints: Vec<_> = state
            .endpoints
            .iter()
            .map(|held| held.table.clone())
            .collect();
        drop(state);
        routes.sort_by_cached_key(RouteTable::key);
        endpoints.sort_by_cached_key(EndpointTable::key);
        (routes, endpoints)
    }

    /// The workload for a host name (lower case, no port) and a path (no query).
    pub(crate) fn find(&self, host: &str, path: &str, domain: &str) -> Option<Arc<Target>> {
        self.read().index.find(host, path, domain).cloned()
    }

    /// A workload by its full name, if it has routes.
    pub(crate) fn target(&self, workload: &WorkloadKey) -> Option<Arc<Target>> {
        self.read()
            .routes
            .get(workload)
            .map(|routes| routes.target.clone())
    }

    pub(crate) fn endpoints(&self, workload: &WorkloadKey) -> Option<Arc<Endpoints>> {
        self.read().endpoints.get(workload).cloned()
    }

    /// What would be answered, for people.
    pub(crate) fn known(&self, domain: &str) -> Vec<String> {
        self.read().index.known(domain)
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
