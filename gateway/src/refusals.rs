//! What a gateway says when it cannot serve: what, why, and what to do next.
//!
//! Addresses of hosts, names of other workloads and how a guest failed are told in development only.

use std::fmt::Write as _;

use http::HeaderValue;
use wasmorch_api::WorkloadKey;

use crate::answer::Answer;
use crate::gateway::{Inner, RETRY_AFTER};
use crate::stats::ErrorClass;

/// Known names listed for an unknown host.
const HINTS_MAX: usize = 20;

impl Inner {
    pub(crate) fn no_endpoint(&self, workload: &WorkloadKey) -> Answer {
        let endpoints = self.tables.endpoints(workload);
        if endpoints.is_none() && self.tables.target(workload).is_none() {
            return Answer::error(
                ErrorClass::UnknownHost,
                format!("there is no workload {workload}"),
            );
        }
        let mut text = format!("no replica of {workload} is ready");
        if self.development {
            let _ = write!(
                text,
                "; `wasmorch why {} -n {}` says more",
                workload.name, workload.namespace
            );
        }
        let undialled = endpoints.map_or(0, |endpoints| endpoints.undialled());
        if undialled > 0 && !self.peers.has_tunnel() {
            let _ = write!(
                text,
                "; {undialled} of its hosts cannot be dialled, and there is no NATS to reach them through"
            );
        }
        Answer::later(ErrorClass::NoEndpoint, RETRY_AFTER, text)
    }

    /// Addresses of hosts are for whoever runs them.
    pub(crate) fn nowhere(&self, workload: &WorkloadKey, tried: usize, reason: &str) -> String {
        let hosts = if tried == 1 { "host" } else { "hosts" };
        let mut text = format!("no replica of {workload} took the request ({tried} {hosts} tried)");
        if self.development {
            let _ = write!(text, ": {reason}");
        }
        text
    }

    /// What went wrong in a guest is for whoever made it; its log has it.
    pub(crate) fn failed(&self, workload: &WorkloadKey, reason: String) -> String {
        match self.development {
            true => reason,
            false => format!("{workload} failed; its log says why"),
        }
    }

    pub(crate) fn lost(&self, workload: &WorkloadKey, reason: &str) -> String {
        let mut text = format!(
            "what served {workload} was lost while it had the request; whether it was executed is unknown"
        );
        if self.development {
            let _ = write!(text, ": {reason}");
        }
        text
    }

    /// The client's doing: the connection to the host that was to serve it is whole.
    pub(crate) fn broken(&self, reason: &str) -> Answer {
        let text = format!("the body of the request did not come whole: {reason}");
        Answer::error(ErrorClass::BadRequest, text)
    }

    pub(crate) fn looped(&self, workload: &WorkloadKey) -> Answer {
        let max = self.limits.hops_max;
        let text = format!(
            "the request for {workload} has passed {max} gateways: workloads call each other in a circle"
        );
        Answer::error(ErrorClass::Loop, text)
    }

    pub(crate) fn late(&self, workload: &WorkloadKey) -> Answer {
        let text = format!("{workload} had no answer before the time for it was over");
        Answer::error(ErrorClass::TimedOut, text)
    }

    pub(crate) fn unknown(&self, host: &HeaderValue, path: &str) -> Answer {
        if !self.development {
            return Answer::error(ErrorClass::UnknownHost, "not found");
        }
        let host = host.to_str().unwrap_or_default();
        let port = host.rsplit_once(':').map_or("", |(_, port)| port);
        let port = if port.is_empty() || port.contains(']') {
            String::new()
        } else {
            format!(":{port}")
        };
        let mut text = format!("no workload answers for http://{host}{path}");
        let known = self.tables.known(&self.domain);
        text.push_str(match known.len() {
            0 => "; none is deployed: try `wasmorch deploy APP.wasm`",
            _ => "; these would:",
        });
        for name in known.iter().take(HINTS_MAX) {
            let (name_host, name_path) = name.split_once('/').unwrap_or((name, ""));
            let _ = write!(text, "\n  http://{name_host}{port}/{name_path}");
        }
        if known.len() > HINTS_MAX {
            let _ = write!(text, "\n  and {} more", known.len() - HINTS_MAX);
        }
        Answer::error(ErrorClass::UnknownHost, text)
    }
}
