//! Law 6, read again: hosts that fall silent together are called dead one a minute.
//!
//! Owns what one leader has called dead for its silence, by the simulator's own times. It is narrower than
//! the law at its edges: it counts no host that is not dead yet, and takes a little less for together.

use std::collections::BTreeMap;

use wasmorch_api::status::HostState;
use wasmorch_api::{HostId, Timestamp};
use wasmorch_planner::{Cluster, Observation};

use super::controller::Phase;
use super::law::Law;
use super::world::World;

/// A little less than the 10 s of the law: a leader's own stall moves what it has heard.
const TOGETHER: u64 = 9_000;
const HOSTS_MIN: usize = 3;
/// In hundredths.
const SHARE: usize = 30;
const EVERY: u64 = 60_000;

/// A host that was called dead.
#[derive(Debug, Clone, Copy)]
struct Death {
    heard: u64,
    called: u64,
}

/// What one leader has called dead, and is dead to it still.
#[derive(Debug, Default)]
pub(crate) struct Deaths {
    dead: BTreeMap<HostId, Death>,
    /// The last time that it called any dead.
    last: Option<u64>,
}

impl Deaths {
    /// Before a look: those that are not dead any more are forgotten, and those that left by themselves are
    /// not the silence's. What is dead already, to tell it from what dies now.
    pub(crate) fn before(&mut self, cluster: &Cluster) -> Vec<HostId> {
        let hosts = cluster.hosts();
        let dead = |id: &HostId| {
            let host = hosts.get(id);
            host.is_some_and(|host| host.state == HostState::Dead)
        };
        self.dead.retain(|id, _| dead(id));
        hosts.keys().filter(|id| dead(id)).cloned().collect()
    }

    /// After a look: what has died now, and whether it had to wait.
    pub(crate) fn after(
        &mut self,
        cluster: &Cluster,
        before: &[HostId],
        heard: impl Fn(&HostId) -> u64,
        now: u64,
    ) -> Option<String> {
        let hosts = cluster.hosts();
        let dead = hosts
            .iter()
            .filter(|(_, host)| host.state == HostState::Dead);
        let new = dead.map(|(id, _)| id).filter(|id| !before.contains(id));
        let new: Vec<HostId> = new.cloned().collect();
        if new.is_empty() {
            return None;
        }
        let too_soon = new.len() > 1 || self.last.is_some_and(|last| now < last + EVERY);
        self.last = Some(now);
        for id in &new {
            let (heard, called) = (heard(id), now);
            self.dead.insert(id.clone(), Death { heard, called });
        }
        let living = hosts.len() - before.len() - new.len();
        let mass = new.iter().find_map(|id| {
            let many = self.together(self.dead.get(id)?.heard);
            let rest = new.iter().filter(|one| !many.contains(one)).count();
            let of = living + many.len() + rest;
            let mass = many.len() >= HOSTS_MIN && many.len() * 100 > of * SHARE;
            mass.then(|| {
                let all = many
                    .iter()
                    .filter_map(|one| Some((one, self.dead.get(*one)?)));
                let all = all.map(|(one, death)| {
                    let ago = |time: u64| (now - time) as f64 / 1_000.0;
                    let (heard, called) = (ago(death.heard), ago(death.called));
                    format!("{one} (heard {heard:.1} s ago, called dead {called:.1} s ago)")
                });
                let all: Vec<String> = all.collect();
                format!("of {of} hosts: {}", all.join(", "))
            })
        });
        let mass = mass.filter(|_| too_soon)?;
        Some(format!(
            "hosts that fell silent together are not replaced one a minute, {mass}"
        ))
    }

    /// The most dead hosts that fell silent within one span, with one that was last heard at this time.
    fn together(&self, heard: u64) -> Vec<&HostId> {
        let from = self.dead.values().map(|death| death.heard);
        let from = from.filter(|from| *from <= heard && heard <= from + TOGETHER);
        let within = from.map(|from| {
            let dead = self.dead.iter();
            let dead = dead.filter(|(_, one)| (from..=from + TOGETHER).contains(&one.heard));
            dead.map(|(id, _)| id).collect::<Vec<_>>()
        });
        within.max_by_key(Vec::len).unwrap_or_default()
    }
}

impl World {
    /// A leader's tick: it looks at who is silent, and is looked at.
    pub(crate) fn look_at_silence(&mut self, at: usize, now: Timestamp) {
        let Phase::Leading(leading) = &mut self.controllers[at].phase else {
            return;
        };
        let before = leading.deaths.before(&leading.cluster);
        self.observe(at, Observation::Tick, now);
        let time = self.now;
        let Phase::Leading(leading) = &mut self.controllers[at].phase else {
            return;
        };
        let (last, since) = (&leading.last_heard, leading.since);
        let heard = |host: &HostId| last.get(host).copied().unwrap_or(since);
        let deaths = &mut leading.deaths;
        if let Some(wrong) = deaths.after(&leading.cluster, &before, heard, time) {
            self.broken(Law::MassSilence, wrong);
        }
    }
}
