//! Law 5, read again: a leader over a store that lost what it had acknowledged freezes, and ends nothing of
//! what runs, until a person has recovered the state.
//!
//! Owns when a leader can know: it has heard a host that the store knows, and that holds a later set than
//! the store has for it. From then on it sends nothing to the store, so that no host is told anything
//! (`batches` looks at that), and it says that it is frozen. What no host shows nobody can know.

use wasmorch_api::{Heartbeat, HostId};

use super::controller::Phase;
use super::law::Law;
use super::term::Leading;
use super::world::World;

impl World {
    /// A leader has taken note of a host's word.
    pub(crate) fn note_loss(&mut self, at: usize, beat: &Heartbeat) {
        let Some(regressed) = self.store.regressed else {
            return;
        };
        let stored = self.store.bucket.set_sequence(&beat.host);
        let Phase::Leading(leading) = &mut self.controllers[at].phase else {
            return;
        };
        // One that began before knows by itself what was stored, until its lease ends: it was lost too.
        let began_after = leading.since > regressed;
        leading.loss |= began_after && beat.sequence > stored && knows(leading, &beat.host);
    }

    /// Long after: whoever leads and has heard of a loss says so.
    pub(crate) fn law_of_loss(&mut self) {
        for at in 0..self.controllers.len() {
            let Some(leading) = self.controllers[at].leads() else {
                continue;
            };
            let leads = self.lease_holds(at) && leading.guard.frozen().is_none();
            let shows = self.shows_loss(leading);
            if let Some(shows) = shows.filter(|_| leads) {
                let how = format!("ctl{at} is not frozen, and {shows}");
                self.broken(Law::FreezesOnLoss, how);
            }
        }
    }

    /// A host that shows that the store is not what it was.
    fn shows_loss(&self, leading: &Leading) -> Option<String> {
        let cluster = &leading.cluster.cluster;
        for (at, host) in self.hosts.iter().enumerate() {
            let Some(up) = &host.up else { continue };
            let (holds, stored) = (
                up.agent.sequence(),
                self.store.bucket.set_sequence(&host.id),
            );
            let own = host.disk.cluster.as_ref();
            if own == Some(cluster) && holds > stored && knows(leading, &host.id) {
                return Some(format!(
                    "host{at} holds set {holds}, and stored is {stored}"
                ));
            }
            let other = own.filter(|own| *own != cluster);
            if let Some(other) = other.filter(|_| leading.cluster.hosts().is_empty()) {
                return Some(format!(
                    "host{at} belongs to {other}, and the store knows no host"
                ));
            }
        }
        None
    }
}

/// Whether the store knows the host: of one that it does not, what it holds was perhaps given up.
fn knows(leading: &Leading, host: &HostId) -> bool {
    let known = leading.cluster.hosts().get(host);
    known.is_some_and(|host| host.set_stored().is_some())
}
