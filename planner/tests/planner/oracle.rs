//! What every plan of a world is held against: one made from scratch, and the ranking of single hosts.

use wasmorch_api::EventKind;
use wasmorch_api::messages::QuotaRequest;

use super::*;

impl World {
    /// What is placed on counts goes where the ranking of single hosts says, and what the ranking
    /// has a host for is not left unplaced.
    pub(crate) fn as_ranked(&self, plan: &Plan) {
        let keys: BTreeSet<&WorkloadKey> = plan.start.iter().map(|start| &start.key).collect();
        // A move goes where it was told to, one on every host has no choice, and a canary is of
        // another revision, as a rollout by zones has one constraint more. A slot with a store on disk
        // goes back to it, and one that has just been given such a store stays where it is.
        let told = |key: &WorkloadKey| {
            self.cluster.workload(key).is_some_and(|one| {
                let target = one.target();
                let by = target.is_some_and(|target| target.spec.update.by.is_some());
                // Going back goes by zones as well, also when a person has ended the rollout.
                let record = &one.record;
                let mut old = one.placements.iter().filter(|(number, placed)| {
                    placed.revision != record.revision || **number < record.fresh_from
                });
                let rolls = record.on_trial().is_some() || by && old.next().is_some();
                let mut stores = target
                    .iter()
                    .flat_map(|target| target.spec.bindings.blobstore.values());
                let adopts = stores.any(|store| store.backend == "disk");
                one.per_host()
                    || adopts && !one.placements.is_empty()
                    || !record.moves.is_empty()
                    || !record.homes.is_empty()
                    || rolls
            })
        };
        let any_told = keys.iter().any(|key| told(key));
        if any_told || !plan.stop.is_empty() || !self.fates.is_empty() || keys.len() > 1 {
            return;
        }
        let best = |key: &WorkloadKey| {
            let why = why::workload(&self.cluster, key).unwrap();
            why["scores"][0]["host"].as_str().map(str::to_owned)
        };
        if let Some(first) = plan.start.first() {
            let name = self.cluster.hosts()[&first.host].info().name.clone();
            let best = why::best_for(&self.cluster, &first.key, first.slot);
            assert_eq!(best, Some(name), "{plan:#?}");
        } else {
            // Neither the ranking nor the filters know these two.
            let held_up = |filter: &String| {
                filter.starts_with("may still run") || filter.starts_with("quota")
            };
            for key in plan.unplaced.iter().filter(|key| !told(key)) {
                let status = queries::status(&self.cluster, key, false).unwrap();
                let filtered = status.unplaced.unwrap().filtered;
                if filtered.keys().any(held_up) {
                    continue;
                }
                // What is on a silent host counts there until it has somewhere to go.
                let silent = self.cluster.workload(key).unwrap().placements.values();
                if { silent }.all(|placed| !self.silent.contains(&placed.host)) {
                    assert_eq!(best(key), None, "{plan:#?}");
                }
            }
        }
    }

    /// What a plan says of slots that it could not place is what is said of them afterwards to whoever asks.
    pub(crate) fn as_told(&self, plan: &Plan) {
        if !plan.start.is_empty() || !plan.stop.is_empty() {
            return;
        }
        for event in { plan.events.iter() }.filter(|event| event.kind == EventKind::Unplaced) {
            let (namespace, name) = (event.namespace.clone(), event.workload.clone());
            let key = WorkloadKey::new(namespace.unwrap(), name.unwrap());
            let status = queries::status(&self.cluster, &key, false).unwrap();
            assert_eq!(event.detail, serde_json::to_value(status.unplaced).unwrap());
        }
    }

    /// Every incremental plan equals one that looks at everything and trusts no counter. Standing
    /// trouble is state, and told in a plan only where it was looked at.
    pub(crate) fn same_as_from_scratch(&self, plan: &Plan, scratch: Plan, whole: &Cluster) {
        let trouble = |cluster: &Cluster| -> Vec<(String, u32)> {
            let keys = cluster.workloads().keys();
            let status = keys.filter_map(|key| queries::status(cluster, key, false)?.unplaced);
            status.map(|one| (one.workload, one.slots)).collect()
        };
        assert_eq!(trouble(&self.cluster), trouble(whole));
        // What a quota counts is kept as sets change, and counted anew.
        let held = |cluster: &Cluster| {
            let asked = commands::quota(cluster, &QuotaRequest::default(), &self.call());
            asked.unwrap().reply.used
        };
        assert_eq!(held(&self.cluster), held(whole));
        let scratch = Plan {
            unplaced: plan.unplaced.clone(),
            ..scratch
        };
        assert_eq!(*plan, scratch, "incremental (left) and from scratch");
    }
}
