//! What a plan may do, by what its leader has heard and by the books.

use super::super::{answers, move_laws};
use super::*;

impl World {
    /// What a plan may do, by what its leader has heard.
    pub(crate) fn laws_of_a_plan(&mut self, at: usize, plan: &Plan, writes: &[Write]) {
        // A deadline is kept, whatever serves: no promise holds from then on.
        for stop in plan
            .stop
            .iter()
            .filter(|stop| stop.why == StopReason::Overdue)
        {
            self.laws.may_lack.insert(stop.key.clone(), u64::MAX);
        }
        let Some(leading) = self.controllers[at].leads() else {
            return;
        };
        let mut found: Option<Broken> = None;
        let now = self.controller_clock(at);
        let settled = self.now >= leading.since + DEAD_AFTER;
        for stop in &plan.stop {
            let heard = leading.last_heard.get(&stop.host);
            let known = leading.cluster.hosts().contains_key(&stop.host);
            if !leading.spoken.contains(&stop.host) && !settled {
                found = Law::Unspoken.by(format!(
                    "a new leader stops {} of {} on a host that has not spoken",
                    stop.placement, stop.key
                ));
            }
            let silent = heard.map_or(DEAD_AFTER, |heard| self.now - heard);
            if stop.why == StopReason::HostDead {
                let soon = || self.lost_too_soon(at, &stop.key, stop.placement);
                found = found.or_else(|| Law::LostAfter.by(soon()));
            }
            if stop.why == StopReason::HostDead && known && silent < DEAD_AFTER {
                found = Law::DeadWindow.by(format!(
                    "{} of {} ends for its host's death, silent for {silent} ms",
                    stop.placement, stop.key
                ));
            }
        }
        found = found.or_else(|| Law::LostAfter.by(self.replaced_too_soon(at, plan)));
        for start in &plan.start {
            if !leading.spoken.contains(&start.host) {
                found = Law::Unspoken.by(format!(
                    "{} starts on a host that has not spoken",
                    start.key
                ));
            }
            let host = leading.cluster.hosts().get(&start.host);
            let closed = host.filter(|host| host.record.cordoned || host.record.drain.is_some());
            if closed.is_some() {
                found = Law::Closed.by(format!(
                    "{} starts on a cordoned or drained host",
                    start.key
                ));
            }
        }
        let cluster = &leading.cluster;
        found = found.or_else(|| Law::Moves.by(move_laws::wrong(cluster, plan, now)));
        found = found.or_else(|| Law::Paused.by(paused_moves_on(cluster, plan)));
        let how = (&self.laws.paused, self.weather.calm);
        found = found.or_else(|| {
            let wrong = answers::wrong(cluster, plan, &self.fates, how);
            Law::Answers.by(wrong.filter(|_| !self.laws.regressed))
        });
        found = found.or_else(|| Law::Quota.by(self.beyond_quota(at, plan)));
        found = found.or_else(|| Law::Preemption.by(self.pre_empted_by_none(at, plan)));
        found = found.or_else(|| Law::Runs.by(self.runs_left_out(at, plan)));
        found = found.or_else(|| Law::Canary.by(self.promoted_too_soon(at, plan)));
        // A deposed leader that does not know it yet plans from what was; that goes nowhere.
        if self.lease_holds(at) {
            found = found.or_else(|| self.wrong_as_stored(at, plan, writes));
        }
        if let Some(found) = found {
            self.breaks(found);
        }
        let stops = plan.stop.iter();
        let preempted = stops.filter(|stop| stop.why == StopReason::Preempted);
        let keys = preempted.map(|stop| stop.key.clone());
        self.laws.preempted.extend(keys);
    }

    /// What a plan of whoever truly leads does to what is stored.
    fn wrong_as_stored(&self, at: usize, plan: &Plan, writes: &[Write]) -> Option<Broken> {
        let found = Law::FreezesOnLoss.by(self.lost_set_given_up(at, writes));
        let found = found.or_else(|| Law::OnePerHost.by(self.host_crowded(plan)));
        let found = found.or_else(|| Law::Claims.by(self.claim_not_met(plan)));
        let found = found.or_else(|| Law::Dependencies.by(self.laws.starts_held(plan)));
        found.or_else(|| {
            let mut sets = writes.iter().filter_map(|write| match write {
                Write::Placements(set) => Some(set),
                _ => None,
            });
            let wrong = sets.find_map(|set| self.set_is_not_the_plan(set, plan));
            Law::SetsAreWhole.by(wrong)
        })
    }

    /// A host that the store knows says that it holds a set, of which the store has nothing, not even that it
    /// was deleted: that was lost, and is no reason to end what runs.
    fn lost_set_given_up(&self, at: usize, writes: &[Write]) -> Option<String> {
        let hosts = self.controllers[at].leads()?.cluster.hosts();
        let bucket = &self.store.bucket;
        let mut sets = writes.iter().filter_map(|write| match write {
            Write::Placements(set) => Some(&set.host),
            _ => None,
        });
        let given_up = sets.find(|id| {
            // One that began before the loss knows the set, and writes what it is to be.
            let known = hosts.get(*id).filter(|host| host.set.is_none());
            let holds = known.is_some_and(|host| host.applied > 0);
            let lost = !bucket.keys.contains_key(&key::placements(id));
            holds && lost && bucket.has(&key::host(id))
        });
        given_up.map(|id| {
            format!("the set of {id} was lost, and another is written over what it holds")
        })
    }

    /// A plan promotes a revision of which fewer replicas serve than were to prove it.
    fn promoted_too_soon(&self, at: usize, plan: &Plan) -> Option<String> {
        let cluster = &self.controllers[at].leads()?.cluster;
        plan.update.iter().find_map(|after| {
            let workload = cluster.workload(&after.key())?;
            let trial = workload.record.on_trial()?;
            if after.revision != trial {
                return None;
            }
            let canary = workload
                .revisions
                .get(&trial)?
                .spec
                .update
                .canary
                .as_ref()?;
            let placed = workload.placements.iter();
            let serve = placed
                .filter(|(number, placed)| placed.revision == trial && workload.is_ready(**number));
            let (serve, least) = (serve.count(), canary.replicas.min(after.wanted()) as usize);
            let key = after.key();
            (serve < least).then(|| {
                format!("revision {trial} of {key} is promoted, and {serve} of {least} serve")
            })
        })
    }

    /// What a plan starts for a slot whose replica is on a dead host, and stays wanted there.
    fn replaced_too_soon(&self, at: usize, plan: &Plan) -> Option<String> {
        let cluster = &self.controllers[at].leads()?.cluster;
        for start in &plan.start {
            let Some(workload) = cluster.workload(&start.key) else {
                continue;
            };
            let ends = |number: PlacementNumber| {
                let mut stops = plan.stop.iter();
                stops.any(|stop| (&stop.key, stop.placement) == (&start.key, number))
            };
            // What rolls, restarts or leaves its host has a successor for another reason.
            let stays = workload.placements.iter().filter(|(number, placed)| {
                placed.slot == start.slot
                    && placed.revision == start.revision
                    && **number >= workload.record.fresh_from
                    && !ends(**number)
            });
            let mut stays = stays.map(|(number, _)| *number);
            let soon = stays.find_map(|number| self.lost_too_soon(at, &start.key, number));
            if soon.is_some() {
                return soon;
            }
        }
        None
    }

    /// A replica that counts as lost before its `disconnect` says so.
    fn lost_too_soon(
        &self,
        at: usize,
        key: &WorkloadKey,
        number: PlacementNumber,
    ) -> Option<String> {
        let leading = self.controllers[at].leads()?;
        let placed = leading.cluster.workload(key)?.placements.get(&number)?;
        let host = leading.cluster.hosts().get(&placed.host)?;
        if host.state != HostState::Dead || host.record.drain.is_some() {
            return None;
        }
        let spec = self.laws.specs.get(&(key.clone(), placed.revision))?;
        let heard = leading.last_heard.get(&placed.host);
        // One that is on record as dead was silent for others before this leader began; their clocks differ.
        let others = host.record.dead_since.map_or(u64::MAX, |dead| {
            dead.0.saturating_sub(DEAD_AFTER + CLOCKS_DIFFER)
        });
        let since = heard.copied().unwrap_or(leading.since.min(others));
        let silent = self.now - since;
        let after = DEAD_AFTER + spec.disconnect.lost_after.0.as_millis() as u64;
        (!spec.disconnect.replace || silent < after).then(|| {
            format!("{number} of {key} is replaced, its host silent for {silent} of {after} ms")
        })
    }

    /// The slots of a namespace with a quota are within it after a plan, or no more than before.
    fn beyond_quota(&self, at: usize, plan: &Plan) -> Option<String> {
        let leading = self.controllers[at].leads()?;
        let namespace = &plan.start.first()?.key.namespace;
        let most = leading.cluster.namespace(namespace)?.quota.replicas?;
        if self.laws.regressed {
            // What a replica counts for may be among what the store has lost.
            return None;
        }
        let workloads = leading.cluster.workloads().iter();
        let placed = workloads.flat_map(|(key, workload)| {
            let placements = workload.placements.iter();
            placements.map(move |(number, placed)| (key.clone(), placed.slot, *number))
        });
        let all: BTreeSet<_> = placed.collect();
        let ended = |key: &WorkloadKey, number: PlacementNumber| {
            let mut stops = plan.stop.iter();
            stops.any(|stop| (&stop.key, stop.placement) == (key, number))
        };
        let slots = |staying: bool| -> BTreeSet<(WorkloadKey, Slot)> {
            let some = all
                .iter()
                .filter(|(key, _, number)| !staying || !ended(key, *number));
            some.map(|(key, slot, _)| (key.clone(), *slot)).collect()
        };
        let (before, mut after) = (slots(false), slots(true));
        let starts = plan.start.iter();
        after.extend(starts.map(|start| (start.key.clone(), start.slot)));
        let (before, after) = (before.len() as u64, after.len() as u64);
        (after > before.max(most))
            .then(|| format!("{namespace} would have {after} slots, and may have {most}"))
    }

    /// What makes room has a lower priority than what starts in its place.
    fn pre_empted_by_none(&self, at: usize, plan: &Plan) -> Option<String> {
        let leading = self.controllers[at].leads()?;
        let priority = |key: &WorkloadKey| {
            let revision = leading.cluster.workload(key)?.record.revision;
            let spec = self.laws.specs.get(&(key.clone(), revision))?;
            Some((spec.priority, spec.min_available))
        };
        let stops = plan.stop.iter();
        for stop in stops.filter(|stop| stop.why == StopReason::Preempted) {
            let (mine, keeps) = priority(&stop.key)?;
            let mut starts = plan.start.iter().filter(|start| start.host == stop.host);
            if !starts.any(|start| priority(&start.key).is_some_and(|(one, _)| one > mine)) {
                return Some(format!(
                    "{} makes room for nothing that goes first",
                    stop.key
                ));
            }
            let workload = leading.cluster.workload(&stop.key)?;
            let ready = workload.placements.iter().filter(|(number, placed)| {
                let mut ended = plan.stop.iter();
                let ended = ended.any(|one| {
                    one.why == stop.why && (&one.key, one.placement) == (&stop.key, **number)
                });
                let host = leading.cluster.hosts().get(&placed.host);
                let lives = host.is_some_and(|host| host.state != HostState::Dead);
                !ended && lives && workload.is_ready(**number)
            });
            if workload.is_ready(stop.placement) && (ready.count() as u32) < keeps {
                return Some(format!("{} falls below min_available = {keeps}", stop.key));
            }
        }
        None
    }

    /// What has one replica on every host starts none beside another that stays, but for a successor
    /// in the same slot.
    fn host_crowded(&self, plan: &Plan) -> Option<String> {
        for start in &plan.start {
            if !self
                .laws
                .per_host
                .contains(&(start.key.clone(), start.revision))
            {
                continue;
            }
            let starts = plan.start.iter();
            let starts = starts.filter(|one| (&one.key, &one.host) == (&start.key, &start.host));
            // A store that went back gives a number to another revision too.
            if starts.count() > 1 && !self.laws.regressed {
                return Some(format!("two of {} start on {}", start.key, start.host));
            }
            let there = self
                .laws
                .sets
                .get(&start.host)
                .map(placed)
                .unwrap_or_default();
            let stopped = |number: PlacementNumber| {
                let mut stops = plan.stop.iter();
                stops.any(|stop| (&stop.key, stop.placement) == (&start.key, number))
            };
            let beside = there.iter().find(|(key, _, slot, number)| {
                *key == start.key && *slot != start.slot && !stopped(*number)
            });
            if beside.is_some() && !self.laws.regressed {
                return Some(format!(
                    "{} starts on {} beside another",
                    start.key, start.host
                ));
            }
        }
        None
    }

    /// A host's new set is its old one, less what the plan stops, and what it starts.
    fn set_is_not_the_plan(&self, set: &PlacementSet, plan: &Plan) -> Option<String> {
        if self.laws.regressed {
            return None;
        }
        let mut wanted = self
            .laws
            .sets
            .get(&set.host)
            .map(placed)
            .unwrap_or_default();
        for stop in plan.stop.iter().filter(|stop| stop.host == set.host) {
            wanted.retain(|(key, _, _, number)| (key, *number) != (&stop.key, stop.placement));
        }
        for start in plan.start.iter().filter(|start| start.host == set.host) {
            wanted.insert((
                start.key.clone(),
                start.revision,
                start.slot,
                start.placement,
            ));
        }
        let made = placed(set);
        let lost: Vec<_> = wanted.symmetric_difference(&made).take(3).collect();
        (!lost.is_empty()).then(|| format!("a set is not what its plan says: {lost:?}"))
    }
}

/// What a plan does to a rollout that a person, or its own failure, has stopped for a while: it stays as it is
/// until somebody says otherwise, and nothing that serves is replaced meanwhile. One of several that go
/// together goes back with the others, and what ends by itself does.
fn paused_moves_on(cluster: &Cluster, plan: &Plan) -> Option<String> {
    let paused = |key: &WorkloadKey| {
        let workload = cluster.workload(key)?;
        let rollout = workload.record.active_rollout()?;
        let alone = rollout.together.is_none() && !workload.record.kind.ends();
        let paused = rollout.state == RolloutState::Paused;
        (alone && paused).then_some((workload, rollout))
    };
    let moved = plan.update.iter().find_map(|after| {
        let (_, before) = paused(&after.key())?;
        let same = after.rollout.as_ref().is_some_and(|after| {
            let (before, after) = (
                (before.revision, before.state),
                (after.revision, after.state),
            );
            before == after
        });
        (!same).then(|| format!("the paused rollout of {} moves on", after.key()))
    });
    moved.or_else(|| {
        plan.start.iter().find_map(|start| {
            // Where canaries are on trial, those beside them may be filled up.
            let (workload, _) =
                paused(&start.key).filter(|(_, rollout)| rollout.revision == start.revision)?;
            let mut placed = workload.placements.iter();
            let serves = placed.any(|(number, placed)| {
                let host = cluster.hosts().get(&placed.host);
                let stays = host.is_some_and(|host| {
                    host.state == HostState::Alive && host.record.drain.is_none()
                });
                let old = placed.revision != start.revision;
                placed.slot == start.slot && old && stays && workload.is_ready(*number)
            });
            let (key, slot) = (&start.key, start.slot);
            serves.then(|| format!("slot {slot} of {key} goes on, and its rollout is paused"))
        })
    })
}
