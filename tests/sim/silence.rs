//! One more silence, when all is well again: a host is cut off for longer than its replicas are waited
//! for, while everything on it goes on, and comes back.
//!
//! Owns which host that is. In the storm whatever else happens next hides what a host's return leaves
//! behind; here nothing does. It draws no numbers, so that the worlds before it are as they were.

use wasmorch_api::WorkloadSpec;
use wasmorch_api::spec::Reconcile;

use super::wire::{Mend, Node};
use super::world::{Cut, World};

/// Beyond `lost_after`: until a host counts as dead, and until a replacement serves.
const BEYOND: u64 = 12_000;

/// Whether an original stays beside its replacement until its host is back.
fn keeps_originals(spec: &WorkloadSpec) -> bool {
    let disconnect = &spec.disconnect;
    let waits = disconnect.replace && !disconnect.lost_after.0.is_zero();
    waits && disconnect.reconcile != Reconcile::KeepReplacement && !spec.runs_once()
}

impl World {
    /// Cuts such a host off and mends it; `false`: there is none, or a law was broken meanwhile.
    pub(crate) fn one_more_silence(&mut self) -> bool {
        if self.weather.calm {
            // There nothing but the planner may take readiness away.
            return false;
        }
        let Some((at, lost_after)) = self.who_falls_silent() else {
            return false;
        };
        let cut = Cut {
            out: true,
            inward: true,
        };
        self.say("net", || format!("host{at} is cut off once more"));
        self.cuts.insert(Node::Host(at), cut);
        let until = self.now + lost_after + BEYOND;
        if !self.run_until(until) {
            return false;
        }
        self.mend(Mend::Line(Node::Host(at)));
        true
    }

    /// The first host that has such a replica, and how long that is waited for at most.
    fn who_falls_silent(&self) -> Option<(usize, u64)> {
        let up = |at: &usize| self.hosts[*at].up.is_some();
        let hosts: Vec<usize> = (0..self.hosts.len()).filter(up).collect();
        let alone = |at: usize| {
            let mut others = hosts.iter().filter(|other| **other != at);
            others.all(|other| self.hosts[*other].id != self.hosts[at].id)
        };
        if hosts.len() < 2 {
            return None;
        }
        hosts
            .iter()
            .copied()
            .filter(|at| alone(*at))
            .find_map(|at| {
                let runner = &self.hosts[at].up.as_ref()?.runner;
                let ready = runner.iter().filter(|(_, run)| run.ready);
                let specs = ready.filter_map(|(one, _)| self.laws.spec(&one.workload));
                let waits = specs.filter(|spec| keeps_originals(spec));
                let longest = waits.map(|spec| spec.disconnect.lost_after.0).max()?;
                Some((at, u64::try_from(longest.as_millis()).unwrap_or(u64::MAX)))
            })
    }
}
