//! What must hold on every host: which sets are obeyed, what may be started, what may be ended.
//!
//! Owns a second, simpler reading of the agent's rules: after each event the agent must stand where
//! these say.

use std::collections::{BTreeMap, BTreeSet};

use wasmorch_api::messages::HeardNote;
use wasmorch_api::{
    BootId, ClusterId, LeaderId, PlacedSlot, PlacementNumber, PlacementSet, Slot, Term, WorkloadKey,
};
use wasmorch_host::agent::{Effect, Event as AgentEvent, Held};
use wasmorch_host::runner::protocol::{Launch, ReplicaKey, ToRunner};

use super::law::Law;
use super::runner::{Run, There};
use super::world::World;

/// One placement on a host.
type Seat = (WorkloadKey, Slot, PlacementNumber);

/// What a data folder must hold.
#[derive(Debug, Clone, Default)]
pub(crate) struct HostLaw {
    term: Term,
    leader: Option<LeaderId>,
    pub(crate) sequence: u64,
    cluster: Option<ClusterId>,
    wanted: BTreeSet<Seat>,
    /// Of them, those that are told to rest: what runs there ends, and is prepared anew.
    rests: BTreeSet<Seat>,
    /// Starts of each placement since something forgave them.
    tries: BTreeMap<Seat, u32>,
    /// By its own clock: when the daemon started, and when it last sent what a leader has echoed.
    pub(crate) born: u64,
    pub(crate) boot: Option<BootId>,
    echoed: Option<u64>,
    /// When its clock last jumped: the daemon sees that as soon as a timer wakes it, and not before.
    pub(crate) jumped: u64,
}

fn seats(set: &PlacementSet, which: impl Fn(&PlacedSlot) -> bool) -> BTreeSet<Seat> {
    let mut seats = BTreeSet::new();
    for group in &set.groups {
        let slots = group.slots.iter().filter(|slot| which(slot));
        seats.extend(slots.map(|slot| (group.key(), slot.slot, slot.placement)));
    }
    seats
}

fn seat(replica: &ReplicaKey) -> Seat {
    let id = replica.id;
    (replica.workload.clone(), id.slot, id.placement)
}

impl HostLaw {
    /// A daemon starts with what its disk held.
    pub(crate) fn started(&mut self, held: Option<&Held>) {
        self.tries.clear();
        self.echoed = None;
        match held {
            Some(held) => self.take(&held.set, held.sequence),
            None => *self = Self::default(),
        }
    }

    /// Until when a replica may run that ends when no leader hears its host.
    fn runs_until(&self, stop_after: Option<u64>, once: bool) -> Option<u64> {
        let born = if once { 0 } else { self.born };
        Some(self.echoed.unwrap_or(born).max(born) + stop_after?)
    }

    fn take(&mut self, set: &PlacementSet, sequence: u64) {
        self.term = set.term;
        self.leader = Some(set.leader.clone());
        self.sequence = sequence;
        self.cluster.get_or_insert_with(|| set.cluster.clone());
        self.wanted = seats(set, |_| true);
        let rests = seats(set, |slot| slot.standby);
        let before = std::mem::replace(&mut self.rests, rests);
        let (wanted, rests) = (&self.wanted, &self.rests);
        // What is told to rest, or no more, begins anew.
        let same = |seat: &Seat| before.contains(seat) == rests.contains(seat);
        self.tries
            .retain(|seat, _| wanted.contains(seat) && same(seat));
    }

    /// Whether this set is to be obeyed.
    fn obeys(&self, set: &PlacementSet, sequence: u64) -> bool {
        let newer = match &self.leader {
            None => true,
            Some(leader) => {
                set.term > self.term
                    || set.term == self.term && set.leader == *leader && sequence > self.sequence
            }
        };
        newer
            && self
                .cluster
                .as_ref()
                .is_none_or(|cluster| *cluster == set.cluster)
    }

    pub(crate) fn runner_died(&mut self) {
        self.forgive();
    }

    pub(crate) fn forgive(&mut self) {
        self.tries.clear();
    }
}

/// What an event may do, judged before the agent sees it.
pub(crate) struct Before {
    /// Nothing may be told to end.
    holds: bool,
}

impl World {
    pub(crate) fn law_before(&mut self, at: usize, event: &AgentEvent) -> Before {
        let host = &mut self.hosts[at];
        match event {
            AgentEvent::Set { set, sequence } => {
                let obeys = set.host == host.id && host.law.obeys(set, *sequence);
                if obeys {
                    host.law.take(set, *sequence);
                }
                Before { holds: !obeys }
            }
            _ => Before { holds: true },
        }
    }

    pub(crate) fn law_after(&mut self, at: usize, before: &Before, effects: &[Effect]) {
        let host = &self.hosts[at];
        let Some(up) = &host.up else {
            return;
        };
        let law = &host.law;
        let (_, leader) = up.agent.term();
        let set_term = up.agent.held_set().map_or(Term(0), |set| set.term);
        if (set_term, leader, up.agent.sequence()) != (law.term, law.leader.as_ref(), law.sequence)
        {
            let (told, should) = (
                format!("{:?} {leader:?} {}", set_term, up.agent.sequence()),
                format!("{:?} {:?} {}", law.term, law.leader, law.sequence),
            );
            let how = format!("host{at} obeys {told}, and should obey {should}");
            self.broken(Law::Obeys, how);
            return;
        }
        let mut forgiven = Vec::new();
        for effect in effects {
            let Effect::ToRunner(message) = effect else {
                continue;
            };
            let clock = self.host_clock(at).0;
            let over = |replica: &ReplicaKey| {
                let run = up.runner.get(replica);
                let until = run.and_then(|run| law.runs_until(run.stop_after, run.once));
                until.is_some_and(|until| clock >= until)
            };
            let wrong = match message {
                ToRunner::Drain { replica, .. } | ToRunner::Stop { replica } if over(replica) => {
                    forgiven.push(seat(replica));
                    None
                }
                ToRunner::Prepare { replica, .. } | ToRunner::Start { replica } => (!law
                    .wanted
                    .contains(&seat(replica)))
                .then_some((Law::StartsWanted, replica, "starts what no set names")),
                ToRunner::Drain { replica, .. } => {
                    let seat = seat(replica);
                    let runs = law.wanted.contains(&seat) && !law.rests.contains(&seat);
                    let kept = before.holds || runs;
                    kept.then_some((Law::EndsUnwanted, replica, "ends what it should hold"))
                }
                ToRunner::Stop { replica } => {
                    let ending = up
                        .runner
                        .get(replica)
                        .is_none_or(|run| run.there == There::Ending);
                    let kept = law.wanted.contains(&seat(replica)) && !ending;
                    kept.then_some((Law::EndsUnwanted, replica, "stops what it should hold"))
                }
                _ => None,
            };
            if let Some((law, replica, what)) = wrong {
                let words = format!("host{at} {what}: {replica}");
                self.broken(law, words);
                return;
            }
        }
        for seat in forgiven {
            self.hosts[at].law.tries.remove(&seat);
        }
    }

    /// A leader's echo, by which the host may go on.
    pub(crate) fn law_hears(&mut self, at: usize, note: &HeardNote) {
        let host = &mut self.hosts[at];
        // Over a store that was put back a leader of an earlier term may speak: it hears for nobody.
        let in_force = host.up.as_ref().map(|up| up.agent.term().0);
        if in_force.is_some_and(|term| note.term < term) {
            return;
        }
        let law = &mut host.law;
        if law.boot.as_ref() == Some(&note.boot) {
            law.echoed = law.echoed.max(Some(note.at.0));
        }
    }

    /// Nothing runs on that should have ended when no leader heard this host.
    pub(crate) fn law_of_silence(&mut self, at: usize) {
        let host = &self.hosts[at];
        let clock = self.host_clock(at).0;
        let Some(up) = host
            .up
            .as_ref()
            .filter(|_| self.now >= host.law.jumped + 1_000)
        else {
            return;
        };
        let runs = up
            .runner
            .iter()
            .filter(|(_, run)| run.there != There::Ending);
        let late = runs.filter_map(|(replica, run)| {
            let until = host.law.runs_until(run.stop_after, run.once)?;
            (clock > until + 1_000).then(|| (replica.clone(), clock - until))
        });
        if let Some((replica, late)) = { late }.next() {
            let words = format!("host{at} runs {replica}, {late} ms after its time");
            self.broken(Law::Silence, words);
        }
    }

    /// What must not run twice is started: no other replica of its slot may be there.
    pub(crate) fn law_of_one(&mut self, at: usize, replica: &ReplicaKey) {
        // A store that went back knows nothing of what was granted since. A copy of a data folder is granted
        // nothing that another start of its host may still run.
        if self.laws.regressed {
            return;
        }
        let once = |run: Option<&Run>| run.is_some_and(|run| run.once);
        let own = self.hosts[at].up.as_ref();
        if !once(own.and_then(|up| up.runner.get(replica))) {
            return;
        }
        let others = self.hosts.iter().enumerate();
        let others = others.filter_map(|(n, host)| Some((n, host.up.as_ref()?)));
        let others = others.flat_map(|(n, up)| up.runner.iter().map(move |run| (n, run)));
        let second = { others }.find(|(n, (other, run))| {
            other.workload == replica.workload
                && other.id.slot == replica.id.slot
                // Two copies may give out the same ids.
                && (*n, *other) != (at, replica)
                && run.once
                && !matches!(run.there, There::Preparing | There::Prepared)
        });
        if let Some((n, (other, _))) = second {
            let words = format!("{replica} starts on host{at} while {other} runs on host{n}");
            self.broken(Law::RunsOnce, words);
        }
    }

    /// What is obeyed is on disk before anything rests on it.
    pub(crate) fn law_on_disk(&mut self, at: usize) {
        // Read back only when it may have changed: it is the dearest of all laws.
        let host = &self.hosts[at];
        let Some(up) = host.up.as_ref().filter(|up| up.agent.held_set().is_some()) else {
            return;
        };
        if host.disk.held.is_none() {
            let sequence = up.agent.sequence();
            let how = format!("host{at} obeys set {sequence} and its disk is empty");
            self.broken(Law::OnDisk, how);
        }
    }

    /// A replica's id is given out once, and a placement is not started for ever.
    pub(crate) fn law_of_a_start(&mut self, at: usize, replica: &ReplicaKey, launch: &Launch) {
        let known = !self.laws.started.insert((at, replica.clone()));
        if known && self.store.regressed.is_none() {
            let how = format!("host{at} gives the id {replica} to a second run");
            self.broken(Law::IdsOnce, how);
            return;
        }
        let spec = &launch.revision.spec;
        let stop_after = spec.disconnect.stop_after;
        let stop_after = stop_after.map(|after| after.0.as_millis() as u64);
        let host = &self.hosts[at];
        let until = host.law.runs_until(stop_after, spec.runs_once());
        if until.is_some_and(|until| self.host_clock(at).0 >= until) {
            let how = format!("host{at} starts {replica}, and no leader hears it");
            self.broken(Law::Silence, how);
            return;
        }
        let mut limit = launch.revision.spec.restart.starts_per_host.max(1);
        if launch.revision.kind.ends() {
            limit = limit.min(launch.revision.spec.job.attempts.max(1));
        }
        let tries = self.hosts[at].law.tries.entry(seat(replica)).or_default();
        *tries += 1;
        let tries = *tries;
        if tries > limit {
            let how = format!("host{at} starts {replica}, its try {tries} of {limit}");
            self.broken(Law::Tries, how);
        }
    }

    /// In calm worlds nothing but the planner takes readiness away, and never more than promised.
    pub(crate) fn law_of_readiness(&mut self, _at: usize) {
        if !self.weather.calm {
            return;
        }
        let kinds = self.user.workloads();
        for (key, kind) in kinds {
            // A host that a new revision's rules bar loses its replica at once, when there is one on every
            // host.
            let barred = self.rules.are_there() && self.laws.is_per_host(&key);
            if kind.ends()
                || barred
                || self.laws.has_changed_sides(&key)
                || self.laws.preempted.contains(&key)
            {
                continue;
            }
            let stored = self
                .laws
                .record(&key)
                .map_or(0, |record| u64::from(record.wanted()));
            // Fewer wanted: the highest slots end, ready or not.
            let per_host = stored > 0 && self.laws.is_per_host(&key);
            let ready = self.ready_slots(&key, if per_host { u64::MAX } else { stored });
            let (before, proven) = self.laws.proven.entry(key.clone()).or_default();
            if stored < *before {
                *proven = 0;
            }
            *before = stored;
            // What a host that is no longer counted still ends is no more than there shall be.
            *proven = (*proven).max(ready.min(stored));
            let (proven, may) = (*proven, self.laws.may_lack.get(&key).copied().unwrap_or(0));
            if ready.saturating_add(may) < proven {
                let how = format!(
                    "{ready} slots of {key} are ready: {proven} were, and only {may} may be lacking"
                );
                self.broken(Law::Readiness, how);
            }
        }
    }

    /// Slots in which something is ready, by what truly runs.
    pub(crate) fn ready_slots(&self, key: &WorkloadKey, up_to: u64) -> u64 {
        let slots: BTreeSet<Slot> = self
            .hosts
            .iter()
            .filter_map(|host| host.up.as_ref())
            .flat_map(|up| &up.runner)
            .filter(|(replica, run)| run.ready && replica.workload == *key)
            .filter(|(replica, _)| replica.id.slot.0 <= up_to)
            .map(|(replica, _)| replica.id.slot)
            .collect();
        slots.len() as u64
    }
}
