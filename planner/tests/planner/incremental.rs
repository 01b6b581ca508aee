//! Every incremental plan equals one made from scratch, whatever has happened before.

use super::*;

#[derive(Debug, Clone)]
pub(crate) enum Busy {
    Deploy(u8, u8, u8, u8),
    Scale(u8, u8),
    Remove(u8),
    Restart(u8),
    /// Two in one manifest: the first may depend on the second, and they may be atomic.
    Together(u8, u8, u8, u8),
    Rollout(u8, u8),
    Silence(u8),
    Speak(u8),
    /// A host that was not there before.
    Join(u8),
    Reboot(u8),
    /// No newer set reaches a host, until one does.
    Lag(u8, bool),
    HostRm(u8),
    Cordon(u8, bool),
    Drain(u8, u8),
    Rebalance(u8),
    Shrink(u8),
    Label(u8, u8),
    Quota(u8),
    NewLeader,
    Lose,
    Torn(u8),
    Fate(u8, u8),
    /// A request for a workload wakes what rests on a host.
    Wake(u8, u8),
    Rounds(u8),
}

fn busy() -> impl Strategy<Value = Vec<Busy>> {
    let step = prop_oneof![
        4 => (0..5u8, 1..4u8, 0..9u8, 0..17u8).prop_map(|(w, v, n, k)| Busy::Deploy(w, v, n, k)),
        2 => (0..5u8, 0..9u8).prop_map(|(w, n)| Busy::Scale(w, n)),
        1 => (0..5u8).prop_map(Busy::Remove),
        1 => (0..5u8).prop_map(Busy::Restart),
        3 => (0..5u8, 1..5u8, 1..4u8, 0..8u8).prop_map(|(w, o, v, k)| Busy::Together(w, o, v, k)),
        2 => (0..5u8, 0..3u8).prop_map(|(w, a)| Busy::Rollout(w, a)),
        2 => (1..7u8).prop_map(Busy::Silence),
        2 => (1..7u8).prop_map(Busy::Speak),
        2 => (7..10u8).prop_map(Busy::Join),
        2 => (1..10u8).prop_map(Busy::Reboot),
        2 => (1..10u8, any::<bool>()).prop_map(|(h, l)| Busy::Lag(h, l)),
        1 => (1..7u8).prop_map(Busy::HostRm),
        2 => (1..7u8, any::<bool>()).prop_map(|(h, c)| Busy::Cordon(h, c)),
        2 => (1..7u8, 0..12u8).prop_map(|(h, d)| Busy::Drain(h, d)),
        2 => (0..9u8).prop_map(Busy::Rebalance),
        1 => (1..9u8).prop_map(Busy::Shrink),
        1 => (1..7u8, 0..3u8).prop_map(|(h, z)| Busy::Label(h, z)),
        1 => (0..12u8).prop_map(Busy::Quota),
        1 => Just(Busy::NewLeader),
        2 => Just(Busy::Lose),
        2 => (0u8..6).prop_map(Busy::Torn),
        1 => (1..6u8, 0..3u8).prop_map(|(r, f)| Busy::Fate(r, f)),
        2 => (0..5u8, 1..7u8).prop_map(|(w, h)| Busy::Wake(w, h)),
        6 => (1..12u8).prop_map(Busy::Rounds),
    ];
    prop::collection::vec(step, 5..40)
}

/// A spec of one of seventeen shapes: priorities, constraints, affinities, packing, stop-first, silent
/// hosts, per-host, ports, stores that not every host has, and from zero.
pub(crate) fn shaped(workload: u8, version: u8, count: u8, shape: u8) -> WorkloadSpec {
    let mut spec = WorkloadSpec {
        name: name(&format!("w{workload}")),
        ..spec(&version.to_string(), u32::from(count))
    };
    spec.priority = 50 + u32::from(workload % 3);
    spec.min_available = u32::from(version % 2);
    if version == 3 && spec.update.order == wasmorch_api::spec::UpdateOrder::StartFirst {
        spec.update.canary = Some(wasmorch_api::spec::Canary {
            replicas: 1 + u32::from(workload % 2),
            percent: Some(10),
            bake: wasmorch_api::HumanDuration::secs(2),
            promote: wasmorch_api::spec::Promote::Auto,
        });
    }
    if version == 2 {
        spec.update.by = Some("zone".into());
    }
    match shape {
        1 => {
            spec.constraints = vec![Constraint::Label {
                label: "zone".into(),
                test: LabelTest::In(vec!["z0".into(), "z1".into()]),
            }];
        }
        2 => {
            spec.constraints = vec![Constraint::Distinct {
                distinct: "host".into(),
                max: 1,
            }];
        }
        3 => {
            spec.constraints = vec![Constraint::Distinct {
                distinct: "zone".into(),
                max: 2,
            }];
        }
        4 => spec.spread = Vec::new(),
        5 => {
            spec.affinity = ["zone", "host"]
                .map(|label| wasmorch_api::spec::Affinity {
                    label: label.into(),
                    weight: 70,
                    test: LabelTest::Matches("*1".into()),
                })
                .to_vec();
        }
        6 => stop_first(&mut spec),
        7 => spec.resources.reserve.memory = wasmorch_api::ByteSize::mib(300),
        8 => spec.disconnect.lost_after = wasmorch_api::HumanDuration::secs(2),
        9 => {
            spec.disconnect.lost_after = wasmorch_api::HumanDuration::secs(3);
            spec.disconnect.stop_after = Some(wasmorch_api::HumanDuration::secs(1));
            spec.disconnect.exclusive = true;
            spec.update.canary = None;
            spec.update.order = wasmorch_api::spec::UpdateOrder::StopFirst;
            spec.update.max_surge = 0;
            spec.update.max_unavailable = 1;
        }
        12 | 13 => {
            // Two ports for three workloads; now and then the successor comes first.
            let listen = vec![9_000 + u16::from(workload % 2)];
            spec.bindings.sockets = Some(Sockets {
                listen,
                ..Sockets::default()
            });
            if shape == 12 {
                stop_first(&mut spec);
                if version == 3 {
                    spec = one_per_host(spec);
                }
            }
        }
        14 => bind(&mut spec, "redis"),
        15 => bind(&mut spec, "disk"),
        16 => {
            spec.replicas = None;
            spec.scale = Some(autoscale::scale(0, u32::from(count.max(1))));
        }
        10 | 11 => {
            spec = one_per_host(spec);
            if shape == 11 {
                spec.resources.reserve.memory = wasmorch_api::ByteSize::mib(300);
                spec.constraints = vec![Constraint::Label {
                    label: "zone".into(),
                    test: LabelTest::In(vec!["z0".into(), "z1".into()]),
                }];
            }
        }
        _ => {}
    }
    spec
}

impl World {
    pub(crate) fn busy(&mut self, step: &Busy) {
        match *step {
            Busy::Deploy(w, v, n, shape) => {
                self.deploy(shaped(w, v, n, shape), Kind::Http);
            }
            Busy::Scale(w, n) => self.ask(w, Some(u32::from(n)), commands::scale),
            Busy::Remove(w) => self.ask(w, None, commands::rm),
            Busy::Restart(w) => self.ask(w, None, commands::restart),
            Busy::Together(w, other, v, how) => {
                let mut first = shaped(w, v, 2, 0);
                let second = shaped((w + other) % 5, v, 2, if how & 4 > 0 { 6 } else { 0 });
                if how & 1 > 0 {
                    first.depends_on = vec![second.name.clone()];
                }
                let both = vec![(first, Kind::Http), (second, Kind::Http)];
                let _ = self.deploy_all(both, how & 2 > 0);
            }
            Busy::Rollout(w, action) => {
                let action = [
                    RolloutAction::Pause,
                    RolloutAction::Resume,
                    RolloutAction::Abort,
                ][action as usize];
                let _ = self.rollout_of(&format!("w{w}"), action);
            }
            Busy::Silence(n) => drop(self.silent.insert(host(n as usize))),
            Busy::Speak(n) => drop(self.silent.remove(&host(n as usize))),
            Busy::Join(n) => drop(self.seqs.entry(host(n as usize)).or_insert(0)),
            Busy::Reboot(n) => self.reboot(&host(n as usize)),
            Busy::Lag(n, true) if self.seqs.contains_key(&host(n as usize)) => {
                let id = host(n as usize);
                let held = self.held(&id);
                self.lagging.entry(id).or_insert(held);
            }
            Busy::Lag(n, _) => drop(self.lagging.remove(&host(n as usize))),
            Busy::HostRm(n) => {
                let outcome = commands::host_rm(&self.cluster, host(n as usize).as_str(), self.now);
                if let Ok(outcome) = outcome {
                    self.store(outcome.writes);
                }
            }
            Busy::Cordon(n, cordon) => {
                let command = if cordon {
                    commands::cordon
                } else {
                    commands::uncordon
                };
                let outcome = command(&self.cluster, host(n as usize).as_str(), self.now);
                if let Ok(outcome) = outcome {
                    self.store(outcome.writes);
                }
            }
            Busy::Drain(n, seconds) => {
                let deadline = std::time::Duration::from_secs(u64::from(seconds));
                let deadline = (seconds > 0).then_some(deadline);
                let outcome =
                    commands::drain(&self.cluster, host(n as usize).as_str(), deadline, self.now);
                if let Ok(outcome) = outcome {
                    self.store(outcome.writes);
                }
            }
            Busy::Rebalance(most) => {
                let outcome = commands::rebalance(&self.cluster, Some(most.into()), None, self.now);
                let outcome = outcome.unwrap();
                assert!(outcome.reply.moves.len() <= usize::from(most));
                self.store(outcome.writes);
            }
            Busy::Shrink(n) => self.replicas_max = u64::from(n),
            Busy::Label(n, zone) => {
                let labels = BTreeMap::from([("zone".to_owned(), format!("z{zone}"))]);
                self.labels.insert(host(n as usize), labels);
            }
            Busy::Quota(many) => self.limit(None, Some(u64::from(many)).filter(|many| *many > 0)),
            Busy::NewLeader => self.new_leader(),
            // A plan that is made and never stored.
            Busy::Lose => drop(self.cluster.plan(self.now)),
            // One of which only the first writes are stored.
            Busy::Torn(n) => {
                let plan = self.cluster.plan(self.now);
                let mut writes = self.cluster.writes(plan);
                writes.truncate(n as usize);
                self.store_planned(writes);
            }
            Busy::Fate(revision, fate) => {
                let fate = [Fate::Ready, Fate::Unready, Fate::GivesUp][fate as usize];
                self.fates.insert(u64::from(revision), fate);
            }
            Busy::Wake(w, n) => self.wake(&name(&format!("w{w}")), &host(n as usize)),
            Busy::Rounds(rounds) => self.run(rounds as usize),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    /// Several workloads in want of the same room, on hosts that come, go and change: at every step
    /// the incremental plan is the one made from scratch (`World::plan` asserts it).
    #[test]
    fn every_incremental_plan_equals_one_from_scratch(steps in busy()) {
        let mut world = World::new(6);
        for n in 1..=5 {
            let labels = BTreeMap::from([("zone".to_owned(), format!("z{}", n % 3))]);
            world.labels.insert(host(n), labels);
        }
        world.old.insert(host(2));
        for step in &steps {
            world.busy(step);
        }
        world.run(30);
    }
}
