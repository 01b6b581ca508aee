//! A workload's endpoint table, as it is stored or as a plan is to change it.
//!
//! Owns how a change is kept beside the table that it changes. The store and all gateways get a table
//! whole, and one may name thousands of hosts; one host that dies changes an entry in hundreds of tables.
//! So a plan holds the changed entries and shares the rest, a table is made whole when it is encoded, and
//! what has been stored is changed in place.

use std::borrow::Cow;
use std::sync::{Arc, OnceLock};

use wasmorch_api::{ClusterId, EndpointTable, HostEndpoint, HostId, Term, WorkloadKey};

use crate::write::json_bytes;

/// Who serves a workload.
#[derive(Debug, Clone)]
pub struct Endpoints {
    table: Arc<EndpointTable>,
    /// What `table` comes to as JSON, once somebody has asked.
    bytes: OnceLock<usize>,
    cluster: ClusterId,
    term: Term,
    /// What differs from `table`, by host; `None`: that host serves no more.
    changed: Vec<(HostId, Option<HostEndpoint>)>,
}

impl From<EndpointTable> for Endpoints {
    fn from(table: EndpointTable) -> Self {
        Self {
            bytes: OnceLock::new(),
            cluster: table.cluster.clone(),
            term: table.term,
            changed: Vec::new(),
            table: Arc::new(table),
        }
    }
}

/// Equal are those that say the same, however much of it they share with what is stored.
impl PartialEq for Endpoints {
    fn eq(&self, other: &Self) -> bool {
        self.whole() == other.whole()
    }
}

impl Endpoints {
    /// The workload's full name.
    pub fn key(&self) -> WorkloadKey {
        self.table.key()
    }

    /// The complete table.
    pub fn whole(&self) -> Cow<'_, EndpointTable> {
        if self.is_whole() {
            return Cow::Borrowed(&self.table);
        }
        Cow::Owned(Arc::unwrap_or_clone(self.clone().settled().table))
    }

    /// With these entries in the place of those that it has of the same hosts, by host.
    pub(super) fn changed(
        &self,
        (cluster, term): (&ClusterId, Term),
        changed: Vec<(HostId, Option<HostEndpoint>)>,
    ) -> Self {
        Self {
            cluster: cluster.clone(),
            term,
            changed,
            ..self.clone().settled()
        }
    }

    /// The same as a table of its own; copied only when somebody else holds what it changes.
    pub(crate) fn settled(self) -> Self {
        if self.is_whole() {
            return self;
        }
        let bytes = self.bytes.get().map(|_| OnceLock::from(self.bytes()));
        let mut table = Arc::unwrap_or_clone(self.table);
        (table.cluster, table.term) = (self.cluster, self.term);
        let hosts = &mut table.hosts;
        for (id, after) in self.changed {
            match (hosts.binary_search_by(|one| one.host.cmp(&id)), after) {
                (Ok(at), Some(after)) => hosts[at] = after,
                (Ok(at), None) => drop(hosts.remove(at)),
                (Err(at), Some(after)) => hosts.insert(at, after),
                (Err(_), None) => {}
            }
        }
        Self {
            bytes: bytes.unwrap_or_default(),
            ..Self::from(table)
        }
    }

    fn is_whole(&self) -> bool {
        let head = (&self.table.cluster, self.table.term);
        self.changed.is_empty() && head == (&self.cluster, self.term)
    }

    /// Whether a host has less to send requests to than it had `before`.
    pub(crate) fn withdraws_from(&self, before: &Self) -> bool {
        if !before.is_whole() || !Arc::ptr_eq(&self.table, &before.table) {
            return before.whole().is_withdrawn_by(Some(&self.whole()));
        }
        self.differences()
            .any(|(before, after)| before.map(|one| one.ready) > after.map(|one| one.ready))
    }

    /// The hosts that it names.
    pub(crate) fn len(&self) -> usize {
        let came = self.differences().filter(|(before, _)| before.is_none());
        let gone = self.differences().filter(|(_, after)| after.is_none());
        self.table.hosts.len() + came.count() - gone.count()
    }

    /// What all of it comes to as JSON. After the first time only what differs is looked at.
    pub(crate) fn bytes(&self) -> usize {
        let table = *{ &self.bytes }.get_or_init(|| json_bytes(&*self.table));
        let entry = |one: Option<&HostEndpoint>| one.map_or(0, json_bytes);
        let head = |cluster: &ClusterId, term: &Term| json_bytes(cluster) + json_bytes(term);
        let commas = |hosts: usize| hosts.saturating_sub(1);
        let (mut after, mut before) = (
            head(&self.cluster, &self.term) + commas(self.len()),
            head(&self.table.cluster, &self.table.term) + commas(self.table.hosts.len()),
        );
        for (had, has) in self.differences() {
            (before, after) = (before + entry(had), after + entry(has));
        }
        table + after - before
    }

    /// An entry of the table as it is without what differs.
    pub(crate) fn entry(&self, id: &HostId) -> Option<&HostEndpoint> {
        let hosts = &self.table.hosts;
        let at = hosts.binary_search_by(|one| one.host.cmp(id)).ok()?;
        Some(&hosts[at])
    }

    fn differences(&self) -> impl Iterator<Item = (Option<&HostEndpoint>, Option<&HostEndpoint>)> {
        let changed = self.changed.iter();
        changed
            .map(|(id, after)| (self.entry(id), after.as_ref()))
            .filter(|(before, after)| before.is_some() || after.is_some())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(host: usize, ready: u32) -> HostEndpoint {
        HostEndpoint {
            host: format!("h{host}").parse().unwrap(),
            peer: (ready > 1).then(|| "10.0.0.1:7001".into()),
            ready,
            standby: None,
            weight: ready * 100,
            canary: 0,
            zone: None,
        }
    }

    fn table(term: u64, ready: &[Option<u32>]) -> EndpointTable {
        let hosts = ready.iter().enumerate();
        let hosts = hosts.filter_map(|(host, ready)| Some(entry(host, (*ready)?)));
        EndpointTable {
            cluster: "c1".parse().unwrap(),
            term: Term(term),
            namespace: "default".parse().unwrap(),
            workload: "web".parse().unwrap(),
            hosts: hosts.collect(),
            canary: None,
        }
    }

    fn changes(
        before: &[Option<u32>],
        after: &[Option<u32>],
    ) -> Vec<(HostId, Option<HostEndpoint>)> {
        let pairs = before.iter().zip(after).enumerate();
        let differ = pairs.filter(|(_, (before, after))| before != after);
        differ
            .map(|(host, (_, after))| (entry(host, 0).host, after.map(|ready| entry(host, ready))))
            .collect()
    }

    fn hosts() -> impl Strategy<Value = Vec<Option<u32>>> {
        prop::collection::vec(prop::option::of(0..3u32), 5)
    }

    proptest! {
        /// Whatever has changed, it says what a table made anew says, in as many bytes.
        #[test]
        fn a_changed_table_is_the_one_made_anew(
            before in hosts(),
            after in hosts(),
            terms in (8..12u64, 8..12u64),
            asked: bool,
        ) {
            let (old, new) = (table(terms.0, &before), table(terms.1, &after));
            let bytes = serde_json::to_vec(&new).unwrap().len();
            let stored = Endpoints::from(old.clone());
            if asked {
                stored.bytes();
            }
            let changed = stored.changed((&new.cluster, new.term), changes(&before, &after));
            prop_assert_eq!(&*changed.whole(), &new);
            prop_assert_eq!((changed.len(), changed.bytes()), (new.hosts.len(), bytes));
            let withdrawn = old.is_withdrawn_by(Some(&new));
            prop_assert_eq!(changed.withdraws_from(&stored), withdrawn);
            drop(stored);
            let settled = changed.settled();
            prop_assert_eq!((&*settled.whole(), settled.bytes()), (&new, bytes));
        }
    }

    #[test]
    fn a_change_copies_nothing_of_its_table() {
        let (before, after) = ([Some(1), Some(2)], [Some(1), Some(1)]);
        let stored = Endpoints::from(table(1, &before));
        let at = stored.whole().hosts.as_ptr();
        let changed = stored.changed((&stored.cluster, Term(1)), changes(&before, &after));
        drop(stored);
        assert_eq!(changed.settled().whole().hosts.as_ptr(), at);
    }
}
