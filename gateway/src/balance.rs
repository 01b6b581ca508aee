//! Which of the hosts that serve a workload gets the next request.
//!
//! Owns the choice: two hosts are drawn at random by weight, and the one with fewer of this
//! gateway's requests in hand, relative to its weight, is taken; on a tie the first. So shares
//! follow the weights while nothing queues, and a slow host gets less. (Power of two choices:
//! Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", 2001.)
//!
//! Known limits: loads are this gateway's own view; zones are not looked at yet.

use std::sync::Arc;

use rand::Rng;
use wasmorch_api::{EndpointTable, HostEndpoint, HostId};

/// Draws before all hosts are looked at one by one: with few unusable hosts, almost never reached.
const DRAWS_MAX: usize = 4;

/// A workload's hosts, prepared for drawing.
#[derive(Debug)]
pub(crate) struct Endpoints {
    pub(crate) table: EndpointTable,
    candidates: Vec<Candidate>,
    /// Whether all weights are the same.
    uniform: bool,
}

/// A host that can be dialled, with ready replicas and a share of the requests.
#[derive(Debug)]
pub(crate) struct Candidate {
    pub(crate) host: HostId,
    /// Where its peer port answers.
    pub(crate) address: Arc<str>,
    weight: u64,
    /// Sum of the weights up to and with this one.
    upto: u64,
}

impl Endpoints {
    pub(crate) fn new(table: EndpointTable) -> Self {
        let mut hosts: Vec<&HostEndpoint> = table.hosts.iter().collect();
        hosts.sort_by(|a, b| a.host.cmp(&b.host));
        let mut upto = 0;
        let candidates: Vec<_> = hosts
            .into_iter()
            .filter(|host| host.ready > 0 && host.weight > 0)
            .filter_map(|host| {
                let address = host.peer.as_deref()?.into();
                let weight = u64::from(host.weight);
                upto += weight;
                Some(Candidate {
                    host: host.host.clone(),
                    address,
                    weight,
                    upto,
                })
            })
            .collect();
        let uniform = candidates
            .windows(2)
            .all(|pair| pair[0].weight == pair[1].weight);
        Self {
            table,
            candidates,
            uniform,
        }
    }

    /// Hosts with ready replicas that cannot be dialled.
    pub(crate) fn undialled(&self) -> usize {
        self.table
            .hosts
            .iter()
            .filter(|host| host.ready > 0 && host.peer.is_none())
            .count()
    }

    /// A host for the next request, of those that are `usable`.
    pub(crate) fn pick(
        &self,
        rng: &mut impl Rng,
        usable: impl Fn(&Candidate) -> bool,
        load: impl Fn(&Candidate) -> u32,
    ) -> Option<&Candidate> {
        let first = self.draw(rng, &usable)?;
        let Some(second) = self.second(rng, first, &usable) else {
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rand::SeedableRng as _;
    use rand::rngs::StdRng;
    use wasmorch_api::{ClusterId, Name, Term};

    use super::*;

    fn endpoints(hosts: &[(&str, u32, u32, bool)]) -> Endpoints {
        let name = |text: &str| text.parse::<Name>().unwrap();
        Endpoints::new(EndpointTable {
            cluster: ClusterId::from_random([0; 10]),
            term: Term(1),
            namespace: name("shop"),
            workload: name("web"),
            hosts: hosts
                .iter()
                .map(|(host, ready, weight, dialled)| HostEndpoint {
                    host: host.parse().unwrap(),
                    peer: dialled.then(|| format!("{host}:1")),
                    ready: *ready,
                    weight: *weight,
                })
                .collect(),
        })
    }

    fn shares(
        endpoints: &Endpoints,
        usable: impl Fn(&Candidate) -> bool,
        load: impl Fn(&Candidate) -> u32,
    ) -> BTreeMap<String, u32> {
        let mut rng = StdRng::seed_from_u64(7);
        let mut shares = BTreeMap::new();
        for _ in 0..10_000 {
            if let Some(host) = endpoints.pick(&mut rng, &usable, &load) {
                *shares.entry(host.host.to_string()).or_default() += 1;
            }
        }
        shares
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
        let shares = shares(&all, |c| c.host.as_str() != "e", |_| 0);
        assert_eq!(
            shares.into_iter().collect::<Vec<_>>(),
            [("d".to_owned(), 10_000)]
        );
        let mut rng = StdRng::seed_from_u64(7);
        assert!(endpoints(&[]).pick(&mut rng, |_| true, |_| 0).is_none());
        assert!(all.pick(&mut rng, |_| false, |_| 0).is_none());
    }
}
