//! Which of the hosts that serve a workload gets the next request.
//!
//! Owns the choice: two hosts are drawn at random by weight, and the one with less in hand,
//! relative to its weight, is taken; on a tie the first. So shares follow the weights while nothing
//! queues, and a slow host gets less. (Power of two choices: Mitzenmacher, "The Power of Two Choices
//! in Randomized Load Balancing", 2001.) What is in hand: this gateway's own requests there, or what
//! the host last said, whichever is more.
//!
//! A host in this gateway's zone is taken while it is not much busier than the choice among all.
//! Neither that nor a replica on this very host comes first while weights say more than counts do:
//! a canary's share holds at every gateway.

use std::sync::Arc;

use rand::Rng;
use wasmorch_api::{EndpointTable, HostEndpoint, HostId};

use crate::gateway::Canary;
use crate::health::Health;

/// Draws before all hosts are looked at one by one: with few unusable hosts, almost never reached.
const DRAWS_MAX: usize = 4;

/// Requests that a near host may have in hand before it is compared with a far one.
const NEAR_SLACK: u64 = 4;

/// A workload's hosts, prepared for drawing.
#[derive(Debug)]
pub(crate) struct Endpoints {
    pub(crate) table: EndpointTable,
    candidates: Vec<Candidate>,
    /// Hosts where something rests or is on its way, the lowest slot first.
    standbys: Vec<Candidate>,
    /// Whether all weights are the same.
    uniform: bool,
    /// Whether weights say something that counts of replicas do not.
    weighted: bool,
}

/// A host with ready replicas and a share of the requests.
#[derive(Debug)]
pub(crate) struct Candidate {
    pub(crate) host: HostId,
    /// Where its peer port answers; `None`: it cannot be dialled.
    pub(crate) address: Option<Arc<str>>,
    /// The host at this address, as connections are kept by.
    pub(crate) way: Arc<str>,
    zone: Option<Arc<str>>,
    /// Outlives the table: a host keeps it as long as it serves the workload.
    pub(crate) health: Arc<Health>,
    pub(crate) weight: u64,
    /// How much of it is its canaries'.
    canary: u64,
    /// Sum of the weights up to and with this one.
    upto: u64,
    /// Something rests there too, or will: a request may wait for it.
    pub(crate) standby: bool,
}

impl Candidate {
    fn is_in(&self, zone: &str) -> bool {
        self.zone.as_deref() == Some(zone)
    }
}

impl Endpoints {
    /// Takes over what was seen of hosts that served `before`.
    pub(crate) fn new(table: EndpointTable, before: Option<&Self>) -> Self {
        let mut hosts: Vec<&HostEndpoint> = table.hosts.iter().collect();
        hosts.sort_by(|a, b| a.host.cmp(&b.host));
        let mut upto = 0;
        let mut candidate = |host: &&HostEndpoint| {
            let address = host.peer.as_deref();
            let weight = u64::from(host.weight);
            upto += weight;
            let seen = before.and_then(|before| before.seen(&host.host));
            Candidate {
                host: host.host.clone(),
                address: host.peer.clone(),
                way: format!("{}@{}", host.host, address.unwrap_or_default()).into(),
                zone: host.zone.clone(),
                health: seen.map_or_else(Arc::default, |seen| seen.health.clone()),
                weight,
                canary: u64::from(host.canary),
                upto,
                standby: host.standby.is_some(),
            }
        };
        let serves = |host: &&&HostEndpoint| host.ready > 0 && host.weight > 0;
        let candidates: Vec<_> = hosts.iter().filter(serves).map(&mut candidate).collect();
        let mut rests: Vec<_> = hosts.iter().filter(|host| host.standby.is_some()).collect();
        rests.sort_by_key(|host| host.standby);
        let standbys = rests.into_iter().map(&mut candidate).collect();
        let uniform = candidates
            .windows(2)
            .all(|pair| pair[0].weight == pair[1].weight);
        let weighted = table.hosts.iter().any(|host| host.weight != host.ready);
        Self {
            table,
            candidates,
            standbys,
            uniform,
            weighted,
        }
    }

    /// A host that serves, by its id.
    pub(crate) fn candidate(&self, host: &HostId) -> Option<&Candidate> {
        let at = self.candidates.binary_search_by(|one| one.host.cmp(host));
        at.ok().map(|at| &self.candidates[at])
    }

    fn seen(&self, host: &HostId) -> Option<&Candidate> {
        let rests = || self.standbys.iter().find(|one| one.host == *host);
        self.candidate(host).or_else(rests)
    }

    /// The host of the lowest slot that rests, of those that are `usable`: all gateways choose the same, so
    /// that one request wakes one replica, and it is the one that a count of one wants.
    pub(crate) fn standby(&self, usable: impl Fn(&Candidate) -> bool) -> Option<&Candidate> {
        self.standbys.iter().find(|one| usable(one))
    }

    /// Whether no two hosts serve it, or could.
    pub(crate) fn is_alone(&self) -> bool {
        self.table.hosts.len() < 2
    }

    /// Whether every gateway has to keep to the weights.
    pub(crate) fn is_weighted(&self) -> bool {
        self.weighted
    }

    /// Whose turn it is on a host that has a canary beside others.
    pub(crate) fn canary_at(&self, rng: &mut impl Rng, host: &HostId) -> Option<Canary> {
        let revision = self.table.canary?;
        let here = self.candidate(host)?;
        (here.canary > 0).then(|| Canary {
            revision,
            chosen: rng.random_range(0..here.weight) < here.canary,
        })
    }

    /// How the hosts that serve fare.
    pub(crate) fn healths(&self) -> impl Iterator<Item = &Health> {
        self.candidates.iter().map(|candidate| &*candidate.health)
    }

    /// Hosts with ready replicas that cannot be dialled.
    pub(crate) fn undialled(&self) -> usize {
        self.table
            .hosts
            .iter()
            .filter(|host| host.ready > 0 && host.peer.is_none())
            .count()
    }

    /// A host for the next request, of those that are `usable`, near if that is no worse.
    pub(crate) fn pick(
        &self,
        rng: &mut impl Rng,
        zone: Option<&str>,
        usable: impl Fn(&Candidate) -> bool,
        load: impl Fn(&Candidate) -> u32,
    ) -> Option<&Candidate> {
        let any = self.pick_any(rng, &usable, &load)?;
        let Some(zone) = zone.filter(|zone| !self.weighted && !any.is_in(zone)) else {
            return Some(any);
        };
        let near = self.pick_any(rng, &|c: &Candidate| c.is_in(zone) && usable(c), &load);
        Some(near.filter(|near| !busier(near, any, &load)).unwrap_or(any))
    }

    fn pick_any(
        &self,
        rng: &mut impl Rng,
        usable: &impl Fn(&Candidate) -> bool,
        load: &impl Fn(&Candidate) -> u32,
    ) -> Option<&Candidate> {
        let first = self.draw(rng, usable)?;
        let Some(second) = self.second(rng, first, usable) else {
            return self.candidates.get(first);
        };
        let (first, second) = (&self.candidates[first], &self.candidates[second]);
        let weighed = |own: &Candidate, other: &Candidate| u64::from(load(own)) * other.weight;
        Some(if weighed(second, first) < weighed(first, second) {
            second
        } else {
            first
        })
    }

    fn draw(&self, rng: &mut impl Rng, usable: &impl Fn(&Candidate) -> bool) -> Option<usize> {
        let total = self.candidates.last()?.upto;
        for _ in 0..DRAWS_MAX {
            let ticket = rng.random_range(0..total);
            let at = self
                .candidates
                .partition_point(|candidate| candidate.upto <= ticket);
            if usable(&self.candidates[at]) {
                return Some(at);
            }
        }
        // One pass: each usable host replaces the one so far with its share of the weight so far.
        let mut chosen = None;
        let mut sum = 0;
        for (at, candidate) in self
            .candidates
            .iter()
            .enumerate()
            .filter(|(_, c)| usable(c))
        {
            sum += candidate.weight;
            if rng.random_range(0..sum) < candidate.weight {
                chosen = Some(at);
            }
        }
        chosen
    }

    /// Equal weights allow for two different hosts. Unequal ones do not: of two hosts, both would
    /// always be drawn, and the shares forgotten.
    fn second(
        &self,
        rng: &mut impl Rng,
        first: usize,
        usable: &impl Fn(&Candidate) -> bool,
    ) -> Option<usize> {
        let others = self.candidates.len() - 1;
        if others == 0 {
            return None;
        }
        if !self.uniform {
            return self.draw(rng, usable);
        }
        let at = rng.random_range(0..others);
        let at = if at < first { at } else { at + 1 };
        usable(&self.candidates[at]).then_some(at)
    }
}

/// Whether a near host has so much more in hand, for its weight, that the far one is quicker.
fn busier(near: &Candidate, far: &Candidate, load: &impl Fn(&Candidate) -> u32) -> bool {
    let (near_load, far_load) = (u64::from(load(near)), u64::from(load(far)) + NEAR_SLACK);
    near_load * far.weight > 2 * far_load * near.weight
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rand::SeedableRng as _;
    use rand::rngs::StdRng;
    use wasmorch_api::{ClusterId, Name, Term};

    use super::*;

    fn endpoints(hosts: &[(&str, u32, u32, bool)]) -> Endpoints {
        let name = |text: &str| text.parse::<Name>().unwrap();
        let table = EndpointTable {
            cluster: ClusterId::from_random([0; 10]),
            term: Term(1),
            namespace: name("shop"),
            workload: name("web"),
            hosts: hosts
                .iter()
                .map(|(host, ready, weight, dialled)| HostEndpoint {
                    host: host.parse().unwrap(),
                    peer: dialled.then(|| format!("{host}:1").into()),
                    ready: *ready,
                    standby: None,
                    weight: *weight,
                    canary: 0,
                    // The first letter.
                    zone: host.get(..1).map(Into::into),
                })
                .collect(),
            canary: None,
        };
        Endpoints::new(table, None)
    }

    fn shares(
        endpoints: &Endpoints,
        usable: impl Fn(&Candidate) -> bool,
        load: impl Fn(&Candidate) -> u32,
    ) -> BTreeMap<String, u32> {
        shares_from(None, endpoints, usable, load)
    }

    fn shares_from(
        zone: Option<&str>,
        endpoints: &Endpoints,
        usable: impl Fn(&Candidate) -> bool,
        load: impl Fn(&Candidate) -> u32,
    ) -> BTreeMap<String, u32> {
        let mut rng = StdRng::seed_from_u64(7);
        let mut shares = BTreeMap::new();
        for _ in 0..10_000 {
            if let Some(host) = endpoints.pick(&mut rng, zone, &usable, &load) {
                *shares.entry(host.host.to_string()).or_default() += 1;
            }
        }
        shares
    }

    #[test]
    fn a_canary_beside_others_has_its_part_of_the_hosts_weight() {
        for part in [0, 30, 100] {
            let mut table = endpoints(&[("a", 2, 100, true), ("b", 1, 50, true)]).table;
            table.canary = Some(wasmorch_api::RevisionNumber(2));
            table.hosts[0].canary = part;
            let endpoints = Endpoints::new(table, None);
            let mut rng = StdRng::seed_from_u64(7);
            let mut turns = 0;
            for _ in 0..1_000 {
                let here = endpoints.canary_at(&mut rng, &"a".parse().unwrap());
                assert_eq!(here.is_some(), part > 0);
                turns += usize::from(here.is_some_and(|canary| canary.chosen));
                let other = endpoints.canary_at(&mut rng, &"b".parse().unwrap());
                assert_eq!(other, None, "it has none");
            }
            let about = part as usize * 10;
            assert!(
                turns.abs_diff(about) < 80,
                "{turns} of 1000, and {about} are its share"
            );
            assert!(part != 100 || turns == 1_000, "all of them");
        }
    }

    #[test]
    fn shares_follow_the_weights_while_nothing_queues() {
        let endpoints = endpoints(&[("a", 1, 90, true), ("b", 1, 10, true)]);
        let shares = shares(&endpoints, |_| true, |_| 0);
        assert!((850..1150).contains(&shares["b"]), "{shares:?}");
    }

    #[test]
    fn the_host_with_less_in_hand_is_taken() {
        let endpoints = endpoints(&[("a", 1, 1, true), ("b", 1, 1, true)]);
        let shares = shares(
            &endpoints,
            |_| true,
            |c| if c.host.as_str() == "a" { 5 } else { 1 },
        );
        assert_eq!(shares.get("a"), None, "{shares:?}");
    }

    #[test]
    fn what_cannot_serve_is_never_chosen() {
        let all = endpoints(&[
            ("a", 0, 1, true),
            ("b", 1, 0, true),
            ("c", 1, 1, false),
            ("d", 1, 1, true),
            ("e", 1, 1000, true),
        ]);
        assert_eq!(all.undialled(), 1);
        let dialled = |c: &Candidate| c.host.as_str() != "e" && c.address.is_some();
        let shares = shares(&all, dialled, |_| 0);
        assert_eq!(
            shares.into_iter().collect::<Vec<_>>(),
            [("d".to_owned(), 10_000)]
        );
        let mut rng = StdRng::seed_from_u64(7);
        assert!(
            endpoints(&[])
                .pick(&mut rng, None, |_| true, |_| 0)
                .is_none()
        );
        assert!(all.pick(&mut rng, None, |_| false, |_| 0).is_none());
    }

    #[test]
    fn a_near_host_comes_first_while_it_is_not_much_busier() {
        let plain = endpoints(&[("a1", 1, 1, true), ("b1", 1, 1, true), ("b2", 1, 1, true)]);
        let near = shares_from(Some("a"), &plain, |_| true, |_| 0);
        assert_eq!(
            near.into_iter().collect::<Vec<_>>(),
            [("a1".to_owned(), 10_000)]
        );
        let busy = |c: &Candidate| if c.host.as_str() == "a1" { 9 } else { 0 };
        let far = shares_from(Some("a"), &plain, |_| true, busy);
        assert_eq!(far.get("a1"), None, "{far:?}");
        let nobody_near = shares_from(Some("z"), &plain, |_| true, |_| 0);
        assert_eq!(nobody_near.len(), 3, "{nobody_near:?}");
        let dead = shares_from(Some("a"), &plain, |c| c.host.as_str() != "a1", |_| 0);
        assert_eq!(dead.len(), 2, "{dead:?}");
        // A canary's share is the same from every zone.
        let canary = endpoints(&[("a1", 1, 10, true), ("b1", 1, 90, true)]);
        assert!(canary.is_weighted());
        let shares = shares_from(Some("a"), &canary, |_| true, |_| 0);
        assert!((850..1150).contains(&shares["a1"]), "{shares:?}");
    }

    #[test]
    fn half_of_the_hosts_may_be_ejected_and_a_new_table_forgets_none() {
        let ids = [("a", 1, 1, true), ("b", 1, 1, true), ("c", 1, 1, true)];
        let before = endpoints(&ids);
        let host = |name: &str| name.parse::<HostId>().unwrap();
        let eject = |all: &Endpoints, name| {
            let health = &all.candidate(&host(name)).unwrap().health;
            health.eject_among(all.healths(), std::time::Duration::from_secs(60))
        };
        assert!(eject(&before, "b"));
        assert!(!eject(&before, "a"), "two of three would be too many");
        let after = Endpoints::new(before.table.clone(), Some(&before));
        assert!(after.candidate(&host("b")).unwrap().health.is_ejected());
        assert!(!after.candidate(&host("a")).unwrap().health.is_ejected());
        assert!(!eject(&endpoints(&ids[..1]), "a"), "the only one stays");
    }
}
