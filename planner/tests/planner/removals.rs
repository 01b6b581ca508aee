//! `rm`: the sets that name it are written by the next plan, whoever makes it; and with `--data`, what
//! hosts keep of it is theirs to remove.

use wasmorch_api::messages::ChangeReply;
use wasmorch_api::{ApiError, PlacementSet, Removal, RemovalId};

use super::world::*;
use super::*;

fn with_volume(version: &str, replicas: u32) -> WorkloadSpec {
    let mut wanted = spec(version, replicas);
    wasmorch_api::manifest::read_grant("volume=data:/data", &mut wanted.bindings).unwrap();
    wanted
}

/// A replica with a volume on each of these hosts.
fn with_data(hosts: usize) -> World {
    let mut world = World::new(hosts);
    world.deploy(with_volume("1", hosts as u32), Kind::Http);
    world.run(4);
    world
}

impl World {
    fn rm(&mut self, workload: &str, data: bool) -> Result<ChangeReply, ApiError> {
        let request = ChangeRequest {
            workload: name(workload),
            desired: None,
            args: None,
            data,
            request_id: None,
            by: None,
        };
        let outcome = commands::rm(&self.cluster, &request, &self.call())?;
        assert!(outcome.writes.len() < 10, "{}", outcome.writes.len());
        self.store(outcome.writes);
        Ok(outcome.reply)
    }

    fn stopped_and_removed(&mut self) -> ChangeReply {
        self.change(commands::stop, None);
        self.run(6);
        self.rm("web", true).unwrap()
    }

    /// What the host says: of what its set names, all or nothing is still to do.
    pub(crate) fn still_removing(&self, id: &HostId) -> Option<Vec<RemovalId>> {
        let set = self.cluster.hosts().get(id)?.set.as_ref()?;
        let named = set.removals.iter().map(|one| one.id.clone());
        let named = named.filter(|_| self.removing.contains(id));
        (!set.removals.is_empty()).then(|| named.collect())
    }

    fn stored_set(&self, n: usize) -> PlacementSet {
        let key = wasmorch_api::subjects::key::placements(&host(n));
        match &self.store[&key].0 {
            Write::Placements(set) => set.clone(),
            other => panic!("{other:?}"),
        }
    }

    fn told_to_remove(&self, n: usize) -> Vec<u64> {
        let set = self.stored_set(n);
        { set.removals.iter() }.map(|one| one.id.before.0).collect()
    }

    /// Hosts that have still to remove something of `web`.
    fn still_to_do(&self) -> Vec<String> {
        let key = wasmorch_api::subjects::key::removed(&web());
        let Some((Write::Removed(removed), _)) = self.store.get(&key) else {
            return Vec::new();
        };
        let hosts = removed.removals.iter().flat_map(|one| &one.hosts);
        hosts.map(ToString::to_string).collect()
    }
}

#[test]
fn removing_what_runs_on_more_hosts_than_a_batch_takes_is_one_small_batch() {
    let mut world = World::new(40);
    world.oracle = false;
    world.deploy(one_per_host(spec("1", 1)), Kind::Http);
    world.run(4);
    assert_eq!(world.ready(), 40);
    world.rm("web", false).unwrap();
    for n in 1..=40 {
        assert_eq!(world.stored_set(n).groups.len(), 1, "not yet");
    }
    world.run(1);
    for n in 1..=40 {
        assert_eq!(world.stored_set(n).groups, []);
    }
    assert!(world.plan().is_empty());
}

#[test]
fn a_leader_that_begins_in_between_writes_the_sets_without_what_was_removed() {
    let mut world = World::new(3);
    world.deploy(spec("1", 3), Kind::Http);
    world.run(4);
    world.rm("web", false).unwrap();
    world.new_leader();
    world.run(3);
    for n in 1..=3 {
        assert_eq!(world.stored_set(n).groups, [], "h{n}");
    }
}

#[test]
fn one_of_the_same_name_that_comes_at_once_is_not_taken_for_the_one_before() {
    let mut world = World::new(2);
    world.deploy(spec("1", 2), Kind::Http);
    world.run(4);
    world.rm("web", false).unwrap();
    world.deploy(spec("2", 1), Kind::Http);
    world.run(6);
    let all = (1..=2).flat_map(|n| world.stored_set(n).groups);
    let numbers: Vec<u64> = all
        .flat_map(|group| group.slots)
        .map(|slot| slot.placement.0)
        .collect();
    assert_eq!(numbers, [3], "numbers go on");
    assert_eq!(world.ready(), 1);
}

#[test]
fn every_host_is_told_once_to_remove_what_it_has_of_it() {
    let mut world = World::new(3);
    world.deploy(with_volume("1", 2), Kind::Http);
    world.run(4);
    let refused = world.rm("web", true).unwrap_err();
    assert!(refused.what.contains("still runs"), "{refused:?}");
    world.change(commands::stop, None);
    world.run(6);
    world.lagging.insert(host(2), 1);
    world.removing.insert(host(3));
    let reply = world.rm("web", true).unwrap();
    assert_eq!(reply.kept, Vec::<String>::new());
    assert_eq!(world.still_to_do(), ["h1", "h2", "h3"]);
    world.run(3);
    for n in 1..=3 {
        assert_eq!(world.told_to_remove(n), [3], "h{n}");
    }
    // One has not taken its set, one has not done it.
    assert_eq!(world.still_to_do(), ["h2", "h3"]);
    world.new_leader();
    world.run(3);
    assert_eq!(world.still_to_do(), ["h2", "h3"]);
    world.removing.clear();
    world.run(2);
    assert_eq!(world.still_to_do(), ["h2"]);
    world.lagging.clear();
    world.run(2);
    assert_eq!(world.still_to_do(), Vec::<String>::new());
    assert!(world.plan().is_empty());
}

#[test]
fn one_of_the_same_name_is_placed_with_the_removal_and_the_next_removal_adds_to_it() {
    let mut world = with_data(2);
    world.removing.insert(host(1));
    world.stopped_and_removed();
    world.deploy(with_volume("2", 2), Kind::Http);
    world.run(6);
    let set = world.stored_set(1);
    assert_eq!(world.told_to_remove(1), [3]);
    assert!(set.groups[0].slots[0].placement.0 >= 3);
    assert_eq!(world.still_to_do(), ["h1"], "kept beside the new record");
    world.stopped_and_removed();
    world.run(3);
    // Whoever removes what the second has left removes what the first has.
    assert_eq!(world.told_to_remove(1), [5]);
    assert_eq!(world.still_to_do(), ["h1"]);
    world.removing.clear();
    world.run(2);
    assert_eq!(world.still_to_do(), Vec::<String>::new());
}

#[test]
fn a_host_that_is_away_does_it_later_and_one_that_is_removed_never() {
    let mut world = with_data(2);
    world.change(commands::stop, None);
    world.run(6);
    world.silent.insert(host(2));
    world.run(12);
    let reply = world.rm("web", true).unwrap();
    assert_eq!(
        reply.kept,
        ["its data on h2 until that is back: then they go"]
    );
    world.run(3);
    assert_eq!(world.still_to_do(), ["h2"]);
    let outcome = commands::host_rm(&world.cluster, "h2", world.now).unwrap();
    world.store(outcome.writes);
    world.run(2);
    assert_eq!(world.still_to_do(), Vec::<String>::new());
}

#[test]
fn what_a_dead_host_ran_does_not_hold_up_the_removal_of_its_volumes() {
    let mut world = with_data(2);
    world.silent.insert(host(2));
    world.run(12);
    world.change(commands::stop, None);
    world.run(6);
    let reply = world.rm("web", true).unwrap();
    assert_eq!(reply.kept.len(), 1, "{reply:?}");
    world.run(3);
    assert_eq!(world.still_to_do(), ["h2"]);
    assert_eq!(world.told_to_remove(2), [3]);
    assert_eq!(world.stored_set(2).groups, []);
}

#[test]
fn volumes_go_too_that_no_revision_names_any_more() {
    let mut world = World::new(1);
    world.deploy(with_volume("1", 1), Kind::Http);
    world.run(4);
    world.rm("web", false).unwrap();
    world.run(4);
    world.deploy(spec("2", 1), Kind::Http);
    world.run(4);
    world.stopped_and_removed();
    world.run(1);
    assert_eq!(world.told_to_remove(1).len(), 1);
}

#[test]
fn a_set_names_a_bounded_number_of_removals_and_the_rest_later() {
    let mut world = World::new(1);
    world.removing.insert(host(1));
    for n in 0..70 {
        let mut wanted = with_volume("1", 1);
        wanted.name = name(&format!("w{n}"));
        wanted.replicas = Some(Replicas::Count(1));
        world.deploy(wanted, Kind::Http);
        world.run(1);
        world.change_of(&format!("w{n}"), commands::stop, None);
        world.run(4);
        world.rm(&format!("w{n}"), true).unwrap();
    }
    world.run(3);
    assert_eq!(world.told_to_remove(1).len(), 64);
    assert!(world.plan().is_empty(), "and rests");
    world.removing.clear();
    world.run(4);
    assert_eq!(world.told_to_remove(1).len(), 6);
    assert!(world.plan().is_empty());
}

#[test]
fn a_container_on_disk_stays_while_another_workload_uses_it() {
    let on_disk = |workload: &str, container: Option<&str>| {
        let mut wanted = spec("1", 1);
        wanted.name = name(workload);
        let mut store = StoreBinding {
            backend: "disk".to_owned(),
            ..StoreBinding::default()
        };
        store.settings.insert("path".into(), "pictures".into());
        let named = container.map(|name| ("container".to_owned(), name.to_owned()));
        store.settings.extend(named);
        wanted.bindings.blobstore.insert("box".to_owned(), store);
        wanted
    };
    let containers = |world: &World| -> Vec<String> {
        let set = world.stored_set(1);
        set.removals
            .into_iter()
            .flat_map(|one: Removal| one.containers)
            .collect()
    };
    let mut world = World::new(1);
    world.deploy(on_disk("web", Some("shared")), Kind::Http);
    world.deploy(on_disk("other", Some("shared")), Kind::Http);
    world.run(4);
    let reply = world.stopped_and_removed();
    let kept = "container pictures/shared (disk), which others use";
    assert_eq!(reply.kept, [kept]);
    world.run(2);
    assert_eq!(containers(&world), Vec::<String>::new());

    world.deploy(on_disk("web", None), Kind::Http);
    world.run(4);
    let reply = world.stopped_and_removed();
    assert_eq!(reply.kept, Vec::<String>::new());
    world.run(1);
    assert_eq!(containers(&world), ["pictures/default_web_box"]);
}

#[test]
fn what_is_in_another_system_is_not_the_clusters_to_remove() {
    let mut world = World::new(1);
    let mut wanted = spec("1", 1);
    let redis = StoreBinding {
        backend: "redis".to_owned(),
        ..StoreBinding::default()
    };
    wanted.bindings.keyvalue.insert("cache".to_owned(), redis);
    world.deploy(wanted, Kind::Http);
    let refused = world.rm("web", true).unwrap_err();
    assert!(refused.why.contains("cache (redis)"), "{refused:?}");
}
