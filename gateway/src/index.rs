//! Which workload a host name and path belong to.
//!
//! Owns the order of precedence: the built-in name first, an exact host before a wildcard, a longer
//! wildcard before a shorter, then the longest path prefix; between two workloads with the same
//! route (a deploy refuses that) the smaller key. A lookup allocates nothing.
//!
//! Invariant: but for the built-in name, exactly the routes count that
//! [`Route::matches`](wasmorch_api::Route::matches) accepts.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use wasmorch_api::{Kind, Route, RouteTable, WorkloadKey};

/// A workload that requests are routed to.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) key: WorkloadKey,
    /// The key as the peer port reads it, made once.
    pub(crate) header: HeaderValue,
    /// How long one request may take, all tries together; `None`: nothing says.
    pub(crate) timeout: Option<Duration>,
}

impl Target {
    pub(crate) fn new(key: WorkloadKey, timeout: Option<Duration>) -> Self {
        let header = HeaderValue::try_from(key.to_string()).expect("names are DNS labels");
        Self {
            key,
            header,
            timeout,
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct RouteIndex {
    /// By `<name>.<namespace>`.
    named: HashMap<Box<str>, Arc<Target>>,
    /// By host name.
    exact: HashMap<Box<str>, Vec<Entry>>,
    /// By what follows the `*`, dot included.
    wildcard: HashMap<Box<str>, Vec<Entry>>,
}

/// A path prefix on one host name.
#[derive(Debug)]
struct Entry {
    /// Without the slash at its end.
    prefix: Box<str>,
    target: Arc<Target>,
}

impl Entry {
    fn accepts(&self, path: &str) -> bool {
        path.strip_prefix(&*self.prefix)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', '?']))
    }

    /// Longest first.
    fn order(&self) -> impl Ord + '_ {
        (
            std::cmp::Reverse(self.prefix.len()),
            &self.prefix,
            &self.target.key,
        )
    }
}

fn named(key: &WorkloadKey) -> Box<str> {
    format!("{}.{}", key.name, key.namespace).into()
}

impl RouteIndex {
    pub(crate) fn insert(&mut self, table: &RouteTable, target: &Arc<Target>) {
        if table.kind != Kind::Http {
            return;
        }
        self.named.insert(named(&target.key), target.clone());
        for route in &table.routes {
            let (map, host) = self.place(route);
            let entries = map.entry(host.into()).or_default();
            let prefix = route.path.trim_end_matches('/').into();
            entries.push(Entry {
                prefix,
                target: target.clone(),
            });
            entries.sort_by(|a, b| a.order().cmp(&b.order()));
        }
    }

    pub(crate) fn remove(&mut self, table: &RouteTable) {
        let key = table.key();
        self.named.remove(&named(&key));
        for route in &table.routes {
            let (map, host) = self.place(route);
            if let Some(entries) = map.get_mut(host) {
                entries.retain(|entry| entry.target.key != key);
                if entries.is_empty() {
                    map.remove(host);
                }
            }
        }
    }

    fn place<'r>(&mut self, route: &'r Route) -> (&mut HashMap<Box<str>, Vec<Entry>>, &'r str) {
        match route.host.strip_prefix('*') {
            Some(suffix) => (&mut self.wildcard, suffix),
            None => (&mut self.exact, &route.host),
        }
    }

    /// The workload for a host name (lower case, no port) and a path (no query).
    pub(crate) fn find(&self, host: &str, path: &str, domain: &str) -> Option<&Arc<Target>> {
        let front = host
            .strip_suffix(domain)
            .and_then(|front| front.strip_suffix('.'));
        if let Some(target) = front.and_then(|front| self.named.get(front)) {
            return Some(target);
        }
        fn first<'i>(entries: Option<&'i Vec<Entry>>, path: &str) -> Option<&'i Arc<Target>> {
            entries?
                .iter()
                .find(|entry| entry.accepts(path))
                .map(|entry| &entry.target)
        }
        first(self.exact.get(host), path).or_else(|| {
            host.match_indices('.')
                .filter(|(at, _)| *at > 0)
                .find_map(|(at, _)| first(self.wildcard.get(&host[at..]), path))
        })
    }

    /// What would be answered, for people: built-in names, then routes, each in order.
    pub(crate) fn known(&self, domain: &str) -> Vec<String> {
        let mut names: Vec<_> = self
            .named
            .keys()
            .map(|front| format!("{front}.{domain}/"))
            .collect();
        names.sort_unstable();
        let mut routes: Vec<_> = [("", &self.exact), ("*", &self.wildcard)]
            .into_iter()
            .flat_map(|(star, map)| map.iter().map(move |(host, entries)| (star, host, entries)))
            .flat_map(|(star, host, entries)| {
                entries
                    .iter()
                    .map(move |entry| format!("{star}{host}{}/", entry.prefix))
            })
            .collect();
        routes.sort_unstable();
        routes.dedup();
        names.append(&mut routes);
        names
    }
}
