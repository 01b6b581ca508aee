//! What the user asks for next: which workload or host, and specs of every kind.
//!
//! Owns the chances alone; what is asked and how it is carried out is `client`'s.

use wasmorch_api::messages::RolloutAction;
use wasmorch_api::spec::{
    Canary, Constraint, FailWhen, OnFailure, Overlap, PerHost, Promote, Reconcile, Replicas,
    Sockets, StoreBinding, UpdateOrder,
};
use wasmorch_api::units::HumanDuration;
use wasmorch_api::{Digest, Kind, Name, WorkloadKey, WorkloadSpec};

use super::client::Ask;
use super::rng::Rng;
use super::world::{Fate, World};

impl World {
    pub(super) fn user_wishes(&mut self) -> Option<(WorkloadKey, Ask)> {
        if let Some((key, ..)) = self.user.then.front()
            && !self.user.is_open(key)
            && self.rng.one_in(2)
        {
            let (key, kind, deploy) = self.user.then.pop_front()?;
            let ask = if deploy {
                Ask::Deploy(Box::new(self.new_spec(&key, kind)), kind)
            } else {
                Ask::Rm
            };
            return Some((key, ask));
        }
        if self.rng.one_in(8) {
            let at = self.rng.below(self.hosts.len());
            let host = self.hosts[at].id.clone();
            let ask = match self.rng.below(10) {
                8 => Ask::Quota(Some(self.rng.between(4, 14))),
                9 => Ask::Quota(None),
                0 | 1 => Ask::Cordon(host),
                // Whoever removes a host promises that nothing runs there.
                2 if self.hosts[at].up.is_none() => Ask::HostRm(host),
                3 => Ask::Drain(host, None),
                4 => Ask::Drain(host, Some(self.rng.between(0, 20_000))),
                5 => Ask::CancelDrain(host),
                6 => Ask::Rebalance(self.rng.between(1, 4) as u32),
                _ => Ask::Uncordon(host),
            };
            return Some((self.user.hosts.clone(), ask));
        }
        let at = self.rng.below(self.user.names.len());
        let (key, kind) = self.user.names[at].clone();
        if self.user.names.len() > 1 && self.rng.one_in(6) {
            return self.manifest().map(|ask| (key, ask));
        }
        let there = self.user.oracle.exists(&key);
        let ask = match self.rng.below(21) {
            at if !there || at <= 6 => {
                let mut spec = self.new_spec(&key, kind);
                // What is there or not: then it is refused.
                let on = self.rng.below(self.user.names.len() * 4);
                let on = self.user.names.get(on).filter(|(on, _)| *on != key);
                spec.depends_on = on.map(|(on, _)| on.name.clone()).into_iter().collect();
                Ask::Deploy(Box::new(spec), kind)
            }
            7..=10 => Ask::Scale(self.rng.between(0, 4) as u32),
            11 => Ask::Stop,
            12 | 13 => Ask::Start,
            14 => Ask::Restart,
            15 if self.rng.one_in(2) => {
                // Nothing of it runs, so that its data go too; and perhaps it is wanted again at once.
                self.user.then.push_back((key.clone(), kind, false));
                if self.rng.one_in(2) {
                    self.user.then.push_back((key.clone(), kind, true));
                }
                Ask::Stop
            }
            15 => Ask::Rm,
            16 => Ask::Rollback,
            17 => Ask::Rollout(RolloutAction::Pause),
            18 => Ask::Rollout(RolloutAction::Resume),
            19 => Ask::Rollout(RolloutAction::Promote),
            _ => Ask::Rollout(RolloutAction::Abort),
        };
        Some((key, ask))
    }

    /// Two or three at once: later ones may wait for earlier ones, and they may be atomic.
    fn manifest(&mut self) -> Option<Ask> {
        let mut names = self.user.names.clone();
        let many = self.rng.between(2, names.len().min(3) as u64);
        let mut all: Vec<(WorkloadSpec, Kind)> = Vec::new();
        for _ in 0..many {
            let at = self.rng.below(names.len());
            let (key, kind) = names.swap_remove(at);
            let mut spec = self.new_spec(&key, kind);
            let before = all.iter().filter(|(_, kind)| *kind != Kind::Cron);
            let before: Vec<Name> = before.map(|(spec, _)| spec.name.clone()).collect();
            if !before.is_empty() && !self.rng.one_in(3) {
                spec.depends_on = vec![self.rng.pick(&before).clone()];
            }
            all.push((spec, kind));
        }
        let atomic = all.iter().all(|(_, kind)| *kind != Kind::Job) && !self.rng.one_in(3);
        if atomic {
            for (spec, _) in &mut all {
                spec.update.on_failure = OnFailure::Revert;
            }
        }
        Some(Ask::Manifest(all, atomic))
    }

    fn new_spec(&mut self, key: &WorkloadKey, kind: Kind) -> WorkloadSpec {
        self.user.artifacts += 1;
        let digest = Digest::of(format!("{key}{}", self.user.artifacts).as_bytes());
        if self.rng.per_mille(self.weather.bad_artifacts) {
            let fate = *self
                .rng
                .pick(&[Fate::Rejected, Fate::Crashes, Fate::NeverReady]);
            self.fates.insert(digest.clone(), fate);
        }
        let ms = |ms| HumanDuration(std::time::Duration::from_millis(ms));
        let rng = &mut self.rng;
        let mut spec = WorkloadSpec {
            name: key.name.clone(),
            artifact: Some(digest),
            ..WorkloadSpec::default()
        };
        if !kind.ends() {
            // Now and then the other way round.
            let per_host = self.user.per_host.contains(key) != rng.one_in(12);
            spec.replicas = Some(if per_host {
                Replicas::PerHost(PerHost::PerHost)
            } else {
                Replicas::Count(rng.between(1, 4) as u32)
            });
        }
        spec.priority = *rng.pick(&[50, 50, 10, 90]);
        spec.min_available = rng.between(0, 1) as u32;
        if kind.ends() {
            spec.job.completions = rng.between(1, 4) as u32;
            spec.job.parallelism = rng.between(1, 3) as u32;
            spec.job.attempts = rng.between(1, 5) as u32;
        }
        if kind == Kind::Cron {
            let every = *rng.pick(&["* * * * *", "*/2 * * * *"]);
            spec.schedule = Some(every.to_owned());
            let overlaps = [Overlap::Skip, Overlap::Allow, Overlap::Replace];
            spec.overlap = Some(*rng.pick(&overlaps));
            spec.catch_up = Some(HumanDuration::secs(*rng.pick(&[0, 60, 3_600])));
        }
        if rng.one_in(4) {
            let disk = StoreBinding {
                backend: "disk".to_owned(),
                ..StoreBinding::default()
            };
            spec.bindings.blobstore.insert("box".to_owned(), disk);
        }
        if rng.one_in(6) {
            spec.constraints.push(Constraint::Distinct {
                distinct: "host".into(),
                max: 2,
            });
        }
        // Two ports for all, so that some are in each other's way.
        if rng.one_in(5) {
            let port = rng.between(9_000, 9_001) as u16;
            let listen = vec![port];
            spec.bindings.sockets = Some(Sockets {
                listen,
                ..Sockets::default()
            });
        }
        if rng.one_in(8) {
            let backend = "redis".to_owned();
            let store = StoreBinding {
                backend,
                ..StoreBinding::default()
            };
            spec.bindings.keyvalue.insert("cart".into(), store);
        }
        spec.restart.backoff = ms(rng.between(100, 1_000));
        spec.restart.backoff_max = ms(4_000);
        spec.restart.starts_per_host = rng.between(1, 4) as u32;
        spec.health.start_grace = ms(rng.between(500, 4_000));
        let update = &mut spec.update;
        update.max_surge = rng.between(0, 2) as u32;
        update.max_unavailable = rng.between(0, 1) as u32;
        if update.max_surge == 0 {
            update.max_unavailable = 1;
        }
        if rng.one_in(4) {
            update.order = UpdateOrder::StopFirst;
            update.max_unavailable = 1;
        }
        let wanted = spec
            .replicas
            .map_or(1, |_| spec.replicas_named().unwrap_or(1));
        if rng.one_in(3) {
            spec.min_available = rng.between(0, u64::from(wanted)) as u32;
        }
        if rng.one_in(4) {
            silent(rng, &mut spec, kind);
        }
        let listens = spec.bindings.sockets.is_some();
        // As a manifest's default has it; now and then someone says otherwise.
        let alone = spec.runs_once() || listens && (spec.per_host() || !rng.one_in(4));
        let update = &mut spec.update;
        if alone {
            update.order = UpdateOrder::StopFirst;
            update.max_surge = 0;
            update.max_unavailable = 1;
        }
        update.min_ready = ms(rng.between(0, 1_500));
        update.progress_deadline = ms(rng.between(5_000, 20_000));
        update.drain = ms(rng.between(0, 3_000));
        if rng.one_in(4) {
            update.on_failure = OnFailure::Pause;
        }
        if rng.one_in(6) && !kind.ends() {
            update.by = Some("zone".to_owned());
        }
        if rng.one_in(3) && !kind.ends() && update.order == UpdateOrder::StartFirst {
            update.canary = Some(Canary {
                replicas: rng.between(1, 2) as u32,
                percent: None,
                bake: ms(rng.between(0, 4_000)),
                promote: *rng.pick(&[Promote::Auto, Promote::Auto, Promote::Manual]),
            });
        }
        if kind == Kind::Http && rng.one_in(2) {
            update.fail_when = Some(FailWhen {
                min_requests: *rng.pick(&[1, 5, 20, 60]),
                ..FailWhen::default()
            });
            // In a calm world nothing else goes wrong, so that its answers are always heard in time.
            let errs = match self.weather.calm {
                true => rng.one_in(3),
                false => rng.per_mille(self.weather.bad_artifacts),
            };
            if let Some(artifact) = spec.artifact.clone().filter(|_| errs) {
                self.fates.entry(artifact).or_insert(Fate::Errs);
            }
        }
        self.loads.bound(key, &mut spec);
        self.rules.bind(self.user.artifacts, &mut spec);
        spec
    }
}

/// What happens when its host is silent.
fn silent(rng: &mut Rng, spec: &mut WorkloadSpec, kind: Kind) {
    let ms = |ms| HumanDuration(std::time::Duration::from_millis(ms));
    // Often short enough for the network to be mended while there are two.
    let longest = if rng.one_in(2) { 4_000 } else { 12_000 };
    let lost_after = rng.between(1_000, longest);
    let disconnect = &mut spec.disconnect;
    disconnect.lost_after = ms(lost_after);
    disconnect.replace = !rng.one_in(6);
    disconnect.reconcile = *rng.pick(&[
        Reconcile::KeepOriginal,
        Reconcile::KeepReplacement,
        Reconcile::LongestRunning,
        Reconcile::BestScore,
    ]);
    if lost_after > 3_000 && rng.one_in(2) {
        disconnect.stop_after = Some(ms(rng.between(3_000, lost_after - 1)));
        disconnect.exclusive = !kind.ends() && rng.one_in(2);
        if !kind.ends() && !disconnect.exclusive && rng.one_in(2) {
            let volume = wasmorch_api::spec::Volume {
                path: "/data".to_owned(),
                size: None,
                mode: "rw".to_owned(),
                on_host_loss: "new".to_owned(),
            };
            spec.bindings.volume.insert("data".to_owned(), volume);
        }
    }
}
