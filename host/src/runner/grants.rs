//! From a spec to what a guest is given: the runtime's configuration of one replica.
//!
//! What it cannot give is refused, never left out.

use std::sync::Arc;

use wasmorch_api::spec::Subscription;
use wasmorch_api::{Name, WorkloadKey, WorkloadSpec};
use wasmorch_gateway::Gateway;
use wasmorch_runtime::{
    BlobContainers, HostPattern, KeyValueStores, Limits, LogSink, MemoryShare, Messaging, Network,
    OutboundHttp, Preopen, ReplicaConfig, Reuse, SocketPattern,
};

use super::allow::{AllowList, Pattern};
use super::consume::StreamSubscription;
use super::internal::{Callable, Internal};
use super::protocol::{Launch, ReplicaKey};

/// Where the guests of a replica keep things.
pub(super) struct Storage {
    pub(super) keyvalue: KeyValueStores,
    pub(super) blobs: BlobContainers,
    pub(super) preopens: Vec<Preopen>,
    /// What its stores were made with.
    pub(super) share: MemoryShare,
}

/// What a spec's bindings come to, before anything is opened.
pub(super) struct Grants {
    outbound: OutboundHttp,
    /// Whom it may call inside the cluster.
    callable: Callable,
    network: Network,
    /// What it may send to.
    pub(super) allowed: AllowList,
    /// What it handles.
    pub(super) subscribe: Vec<Pattern>,
    /// What it takes from streams.
    pub(super) streams: Vec<StreamSubscription>,
}

impl Grants {
    /// Reads the bindings; the refusal says which and why.
    pub(super) fn of(workload: &WorkloadKey, spec: &WorkloadSpec) -> Result<Self, String> {
        let bindings = &spec.bindings;
        let outbound = bindings
            .http
            .iter()
            .map(|text| text.parse::<HostPattern>())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| format!("bindings.http: {error}"))?;
        let publish = patterns(
            "bindings.publish",
            bindings.publish.iter().map(String::as_str),
        )?;
        let live = |subscription: &&Subscription| subscription.stream.is_none();
        let live = bindings.subscribe.iter().filter(live);
        let subjects = live.map(|subscription| subscription.subject.as_str());
        let subscribe = patterns("bindings.subscribe", subjects)?;
        if let Some(why) = subscribe.iter().find_map(Pattern::subscribing_refused) {
            return Err(format!("bindings.subscribe: {why}"));
        }
        let streams = bindings.subscribe.iter().filter_map(|subscription| {
            let stream = subscription.stream.as_deref()?;
            Some(StreamSubscription::of(workload, subscription, stream))
        });
        let streams = streams
            .collect::<Result<Vec<_>, _>>()
            .map_err(|why| format!("bindings.subscribe: {why}"))?;
        Ok(Self {
            streams,
            outbound: OutboundHttp::allow(outbound),
            callable: Callable::read(&bindings.workloads, &workload.namespace)?,
            network: network(spec)?,
            allowed: AllowList::new(publish, subscribe.clone()),
            subscribe,
        })
    }

    /// What it may call by http, through this gateway where that is inside the cluster.
    pub(super) fn route(&mut self, gateway: &Gateway, namespace: &Name) {
        if !self.callable.is_empty() {
            let callable = std::mem::take(&mut self.callable);
            let route = Internal::new(gateway.clone(), namespace.clone(), callable);
            let outbound = std::mem::take(&mut self.outbound);
            self.outbound = outbound.with_internal(Arc::new(route));
        }
    }

    /// Everything the runtime gives to the replica besides its code.
    pub(super) fn replica_config(
        self,
        replica: &ReplicaKey,
        launch: &Launch,
        logs: Arc<dyn LogSink>,
        messaging: Option<Arc<dyn Messaging>>,
        storage: Storage,
    ) -> ReplicaConfig {
        let spec = &launch.revision.spec;
        let args = launch.args.as_ref().unwrap_or(&spec.args);
        let mut config = ReplicaConfig::new(replica.to_string());
        config.args = std::iter::once(replica.workload.name.to_string())
            .chain(args.iter().cloned())
            .collect();
        config.env = environment(replica, launch);
        config.config = spec.config.clone().into_iter().collect();
        config.limits = limits(spec);
        config.reuse = Reuse {
            requests: spec.instance.reuse,
            concurrency: spec.instance.concurrency,
            idle: spec.instance.idle.0,
        };
        config.outbound = self.outbound;
        config.network = self.network;
        config.logs = logs;
        config.messaging = messaging;
        config.keyvalue = storage.keyvalue;
        config.blobs = storage.blobs;
        config.preopens = storage.preopens;
        config.share = storage.share;
        config
    }
}

fn patterns<'a>(at: &str, subjects: impl Iterator<Item = &'a str>) -> Result<Vec<Pattern>, String> {
    subjects
        .map(|text| text.parse().map_err(|error| format!("{at}: {error}")))
        .collect()
}

fn network(spec: &WorkloadSpec) -> Result<Network, String> {
    let Some(sockets) = &spec.bindings.sockets else {
        return Ok(Network::Denied);
    };
    let connect = sockets
        .connect
        .iter()
        .map(|text| text.parse::<SocketPattern>())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| format!("bindings.sockets: {error}"))?;
    Ok(Network::Allow {
        connect,
        listen: sockets.listen.clone(),
    })
}

/// The spec's variables, and who the replica is. The latter win: they are facts.
fn environment(replica: &ReplicaKey, launch: &Launch) -> Vec<(String, String)> {
    let mut variables = launch.revision.spec.environment.clone();
    variables.extend([
        (
            "WASMORCH_NAMESPACE".to_owned(),
            replica.workload.namespace.to_string(),
        ),
        (
            "WASMORCH_WORKLOAD".to_owned(),
            replica.workload.name.to_string(),
        ),
        ("WASMORCH_REPLICA".to_owned(), replica.id.to_string()),
        (
            "WASMORCH_REVISION".to_owned(),
            launch.revision.number.to_string(),
        ),
    ]);
    variables.into_iter().collect()
}

fn limits(spec: &WorkloadSpec) -> Limits {
    let resources = &spec.resources;
    let count = |number: u32| usize::try_from(number).unwrap_or(usize::MAX);
    Limits {
        memory_bytes: resources.memory.0,
        timeout: Some(resources.timeout.0),
        concurrency: count(resources.concurrency).max(1),
        queue: count(resources.queue),
        body_bytes: resources.body.0,
        cpu_millis: Some(resources.cpu.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_given_is_refused() {
        let workload = WorkloadKey::new("shop".parse().unwrap(), "web".parse().unwrap());
        let spec = WorkloadSpec::default();
        assert!(Grants::of(&workload, &spec).is_ok());

        let subscribe = |subject: &str, stream: Option<&str>| {
            let mut spec = WorkloadSpec::default();
            spec.bindings.subscribe = vec![Subscription {
                subject: subject.into(),
                stream: stream.map(str::to_owned),
                ..Subscription::default()
            }];
            Grants::of(&workload, &spec)
        };
        assert!(subscribe("shop.ask", None).is_ok());
        assert!(subscribe("shop.ask", Some("SHOP")).is_ok());
        assert!(subscribe("shop.ask", Some("KV_wasmorch_state")).is_err());
        assert!(subscribe("wasmorch.>", None).is_err());
        assert!(subscribe("a b", None).is_err());
    }
}
