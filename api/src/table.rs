//! What gateways route by: routes (which requests are a workload's) and endpoints (who serves it).
//!
//! Owns the shapes of `pub.routes.<ns>.<name>` and `pub.endpoints.<ns>.<name>`. The endpoint table
//! knows no HTTP words, so that other protocols can use it. Both are complete: each replaces the
//! one before.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::ids::{ClusterId, HostId, Name, RevisionNumber, Slot, Term, WorkloadKey};
use crate::spec::Kind;
use crate::units::HumanDuration;

/// Which requests belong to one workload. Besides these, `<name>.<namespace>.<domain>` always does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteTable {
    /// The cluster.
    pub cluster: ClusterId,
    /// The writer's term.
    pub term: Term,
    /// The namespace.
    pub namespace: Name,
    /// The workload.
    pub workload: Name,
    /// What it is.
    pub kind: Kind,
    /// Its routes.
    pub routes: Vec<Route>,
    /// How long one request may take, tries on several hosts together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<HumanDuration>,
}

impl RouteTable {
    /// The workload's full name.
    pub fn key(&self) -> WorkloadKey {
        WorkloadKey::new(self.namespace.clone(), self.workload.clone())
    }
}

/// One route: a host name (`*.` for any label in front) and a path prefix.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Route {
    /// Lower-case host name without port.
    pub host: String,
    /// Begins with `/`; `/` is everything. A prefix ends at a segment: `/api` is not `/apis`. Two ways to
    /// write one route are one: no other ends with `/`.
    pub path: String,
}

impl Route {
    /// Reads `HOST/PATH`; without a path, everything on the host. A slash at the end says nothing.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (host, path) = match text.find('/') {
            Some(at) => text.split_at(at),
            None => (text, "/"),
        };
        let host = host.to_ascii_lowercase();
        let labels = host.strip_prefix("*.").unwrap_or(&host);
        let legal_label = |label: &str| {
            (1..=63).contains(&label.len())
                && label
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        if labels.len() > 253 || !labels.split('.').all(legal_label) {
            return Err(format!(
                "`{text}` is not a route: write HOST/PATH, as in shop.example.com/api (no port, `*.` only in front)"
            ));
        }
        if !path
            .bytes()
            .all(|b| b.is_ascii_graphic() && !b"?#\"<>\\^`{|}".contains(&b))
        {
            return Err(format!(
                "`{text}` is not a route: its path holds a character that a URL path cannot"
            ));
        }
        if path
            .split('/')
            .any(|segment| segment == "." || segment == "..")
        {
            return Err(format!(
                "`{text}` is not a route: its path holds `.` or `..`"
            ));
        }
        let path = match path.trim_end_matches('/') {
            "" => "/",
            path => path,
        };
        Ok(Self {
            host,
            path: path.to_owned(),
        })
    }

    /// Whether its host is one of the names by which workloads call each other: no client's request has one.
    pub fn is_internal(&self) -> bool {
        self.host == "internal" || self.host.ends_with(".internal")
    }

    /// The name and the namespace of the workload whose automatic name (`<name>.<namespace>.<domain>`) its
    /// host is, whether there is such a workload or not; `*`: all names of the namespace.
    pub fn automatic(&self, domain: &str) -> Option<(&str, &str)> {
        let front = self.host.strip_suffix(domain)?.strip_suffix('.')?;
        front
            .split_once('.')
            .filter(|(_, namespace)| !namespace.contains('.'))
    }

    /// Whether a request for this host (lower case, no port) and path is the route's.
    pub fn matches(&self, host: &str, path: &str) -> bool {
        let host_fits = match self.host.strip_prefix('*') {
            Some(suffix) => host.len() > suffix.len() && host.ends_with(suffix),
            None => self.host == host,
        };
        let prefix = self.path.trim_end_matches('/');
        host_fits
            && path.strip_prefix(prefix).is_some_and(|rest| {
                rest.is_empty() || rest.starts_with('/') || rest.starts_with('?')
            })
    }
}

impl std::fmt::Display for Route {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{}", self.host, self.path)
    }
}

/// Who serves one workload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointTable {
    /// The cluster.
    pub cluster: ClusterId,
    /// The writer's term.
    pub term: Term,
    /// The namespace.
    pub namespace: Name,
    /// The workload.
    pub workload: Name,
    /// Hosts with ready or resting replicas, by id.
    pub hosts: Vec<HostEndpoint>,
    /// The revision on trial, when its canaries get a share of the requests that is not their count's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary: Option<RevisionNumber>,
}

impl EndpointTable {
    /// The workload's full name.
    pub fn key(&self) -> WorkloadKey {
        WorkloadKey::new(self.namespace.clone(), self.workload.clone())
    }

    /// Whether a host has less to send requests to in `after`, `None`: when the workload has no table.
    ///
    /// A host on which one replica takes another's place is as it was: its own gateway chooses among them.
    pub fn is_withdrawn_by(&self, after: Option<&Self>) -> bool {
        let hosts = after.map_or(&[][..], |after| &after.hosts);
        self.hosts.iter().any(|one| {
            let still = hosts.binary_search_by(|other| other.host.cmp(&one.host));
            still.map_or(true, |at| hosts[at].ready < one.ready)
        })
    }
}

/// One host that serves a workload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostEndpoint {
    /// The host.
    pub host: HostId,
    /// Where its gateway answers other hosts; `None`: it cannot be dialled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<Arc<str>>,
    /// Ready replicas there.
    pub ready: u32,
    /// The lowest slot that rests there, or is on its way: while nothing is ready anywhere, a request
    /// wakes it and waits for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub standby: Option<Slot>,
    /// Its share of the requests, relative to the other hosts. While every host's is its count of
    /// ready replicas, a gateway may prefer itself and its zone; other weights (a canary's) are
    /// kept to, by every gateway.
    pub weight: u32,
    /// How much of `weight` is its canaries'.
    #[serde(default, skip_serializing_if = "crate::is_default")]
    pub canary: u32,
    /// Its label `zone`, when it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<Arc<str>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fewer_replicas_on_a_host_are_withdrawn_and_more_are_not() {
        let table = |hosts: &[(&str, u32)]| EndpointTable {
            cluster: "c1".parse().unwrap(),
            term: Term(1),
            namespace: Name::default(),
            workload: "web".parse().unwrap(),
            hosts: { hosts.iter() }
                .map(|(host, ready)| HostEndpoint {
                    host: host.parse().unwrap(),
                    peer: None,
                    ready: *ready,
                    standby: None,
                    weight: *ready,
                    canary: 0,
                    zone: None,
                })
                .collect(),
            canary: None,
        };
        let before = table(&[("h1", 1), ("h2", 2)]);
        for (after, withdrawn) in [
            (&[("h1", 1), ("h2", 2)][..], false),
            (&[("h1", 2), ("h2", 2), ("h3", 1)], false),
            (&[("h1", 9), ("h2", 1)], true),
            (&[("h2", 2), ("h3", 1)], true),
        ] {
            assert_eq!(before.is_withdrawn_by(Some(&table(after))), withdrawn);
        }
        assert!(before.is_withdrawn_by(None));
        assert!(!table(&[]).is_withdrawn_by(None));
    }

    #[test]
    fn routes_match_whole_segments() {
        let route = Route::parse("Shop.example.com/api").unwrap();
        assert_eq!(route.to_string(), "shop.example.com/api");
        assert!(route.matches("shop.example.com", "/api"));
        assert!(route.matches("shop.example.com", "/api/x"));
        assert!(route.matches("shop.example.com", "/api?q"));
        assert!(!route.matches("shop.example.com", "/apis"));
        let wild = Route::parse("*.example.com").unwrap();
        assert!(wild.matches("a.example.com", "/"));
        assert!(wild.matches("a.b.example.com", "/x"));
        assert!(!wild.matches("example.com", "/"));
    }

    #[test]
    fn a_slash_at_the_end_makes_no_other_route() {
        let route = |text| Route::parse(text).unwrap();
        for same in ["a.com/api/", "A.com/api", "a.com/api//"] {
            assert_eq!(route(same), route("a.com/api"));
            assert_eq!(route(same).to_string(), "a.com/api");
        }
        for all in ["a.com", "a.com/", "a.com//"] {
            assert_eq!(route(all).to_string(), "a.com/");
            assert!(route(all).matches("a.com", "/x"));
        }
        assert_ne!(route("a.com/api/x"), route("a.com/api"));
    }

    #[test]
    fn names_of_the_cluster_are_told_from_others() {
        let named = |text: &str, domain: &str| {
            let route = Route::parse(text).unwrap();
            let named = route.automatic(domain);
            named.map(|(name, namespace)| format!("{namespace}/{name}"))
        };
        let is = |text, domain, what: &str| assert_eq!(named(text, domain).as_deref(), Some(what));
        is("Hello.default.localhost/x", "localhost", "default/hello");
        is("*.shop.localhost", "localhost", "shop/*");
        is("a.b.example.com", "example.com", "b/a");
        for (other, domain) in [
            ("shop.localhost", "localhost"),
            ("a.b.c.localhost", "localhost"),
            ("*.localhost", "localhost"),
            ("localhost", "localhost"),
            ("a.b.notlocalhost", "localhost"),
        ] {
            assert_eq!(named(other, domain), None, "{other}");
        }
        let internal = |text| Route::parse(text).unwrap().is_internal();
        assert!(
            internal("Orders.shop.internal/") && internal("*.internal") && internal("internal")
        );
        assert!(!internal("internal.example.com") && !internal("notinternal"));
    }

    #[test]
    fn what_is_no_route_is_refused() {
        for bad in [
            "", "/x", "a:80/", "a..b/", "a.*.b/", "-a/", "a/x y", "a/../b", "a/?q",
        ] {
            assert!(Route::parse(bad).is_err(), "{bad}");
        }
    }
}
