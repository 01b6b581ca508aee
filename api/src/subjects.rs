//! Every NATS subject and store key, made and read in one place (DESIGN, "NATS: subjects and state").
//!
//! Owns their spelling. Tokens come from validated ids, so no subject can be forged through a name.

use crate::ids::{HostId, Name, ReplicaId, RevisionNumber, WorkloadKey};

/// The prefix of every subject; the version is the protocol's.
pub const PREFIX: &str = "wasmorch.v1";
/// The KV bucket that holds all state.
pub const STATE_BUCKET: &str = "wasmorch_state";
/// The stream behind the bucket.
pub const STATE_STREAM: &str = "KV_wasmorch_state";
/// The object store of artifacts.
pub const ARTIFACT_BUCKET: &str = "wasmorch_artifacts";
/// The stream of past events.
pub const EVENT_STREAM: &str = "wasmorch_events";
/// Stands where a namespace would, for what belongs to the whole cluster.
pub const CLUSTER_TOKEN: &str = "_";
/// What the store republishes, and where to.
pub const REPUBLISH: (&str, &str) = ("$KV.wasmorch_state.pub.>", "wasmorch.v1.>");

/// `$KV.wasmorch_state.<key>`: the subject behind a key.
pub fn state(key: &str) -> String {
    format!("$KV.{STATE_BUCKET}.{key}")
}

/// The key behind a subject of the state bucket.
pub fn state_key(subject: &str) -> Option<&str> {
    subject
        .strip_prefix("$KV.")?
        .strip_prefix(STATE_BUCKET)?
        .strip_prefix('.')
}

/// Store keys.
pub mod key {
    use super::*;

    /// Who leads; the fence of every write.
    pub const TERM: &str = "term";
    /// The leader's lease.
    pub const LEASE: &str = "lease";
    /// Answers to recent writes that leave no record which could keep them.
    pub const ANSWERS: &str = "answers";

    /// There while the state is being rebuilt: what is stored beside it is not whole.
    pub const RECOVERING: &str = "recovering";

    /// A workload's record.
    pub fn workload(workload: &WorkloadKey) -> String {
        format!("workload.{}.{}", workload.namespace, workload.name)
    }
    /// A revision.
    pub fn revision(workload: &WorkloadKey, number: RevisionNumber) -> String {
        format!("revision.{}.{}.{number}", workload.namespace, workload.name)
    }
    /// What stays of a removed workload.
    pub fn removed(workload: &WorkloadKey) -> String {
        format!("removed.{}.{}", workload.namespace, workload.name)
    }
    /// What a namespace may have.
    pub fn namespace(namespace: &Name) -> String {
        format!("namespace.{namespace}")
    }
    /// A host's record.
    pub fn host(host: &HostId) -> String {
        format!("host.{host}")
    }
    /// A host's placement set.
    pub fn placements(host: &HostId) -> String {
        format!("pub.placements.{host}")
    }
    /// A workload's endpoints.
    pub fn endpoints(workload: &WorkloadKey) -> String {
        format!("pub.endpoints.{}.{}", workload.namespace, workload.name)
    }
    /// A workload's routes.
    pub fn routes(workload: &WorkloadKey) -> String {
        format!("pub.routes.{}.{}", workload.namespace, workload.name)
    }
}

/// `api.<namespace>.<verb>`; `None` is the whole cluster.
pub fn api(namespace: Option<&Name>, verb: &str) -> String {
    format!(
        "{PREFIX}.api.{}.{verb}",
        namespace.map_or(CLUSTER_TOKEN, Name::as_str)
    )
}

/// A request's namespace (`None`: the whole cluster) and verb, from its subject.
pub fn parse_api(subject: &str) -> Option<(Option<Name>, &str)> {
    let rest = subject.strip_prefix(PREFIX)?.strip_prefix(".api.")?;
    let (namespace, verb) = rest.split_once('.')?;
    if verb.is_empty() || verb.contains('.') {
        return None;
    }
    let namespace = match namespace {
        CLUSTER_TOKEN => None,
        name => Some(name.parse().ok()?),
    };
    Some((namespace, verb))
}

/// Where a host's placement sets arrive.
pub fn placements(host: &HostId) -> String {
    format!("{PREFIX}.placements.{host}")
}

/// Where every change of endpoints arrives.
pub const ENDPOINTS_ALL: &str = "wasmorch.v1.endpoints.>";
/// Where every change of routes arrives.
pub const ROUTES_ALL: &str = "wasmorch.v1.routes.>";

/// The workload in `wasmorch.v1.<table>.<ns>.<name>` or in a store key `pub.<table>.<ns>.<name>`.
pub fn parse_table(subject: &str, table: &str) -> Option<WorkloadKey> {
    let rest = subject
        .strip_prefix(PREFIX)
        .or_else(|| subject.strip_prefix("$KV.wasmorch_state.pub"))?;
    let rest = rest
        .strip_prefix('.')?
        .strip_prefix(table)?
        .strip_prefix('.')?;
    let (namespace, name) = rest.split_once('.')?;
    Some(WorkloadKey::new(
        namespace.parse().ok()?,
        name.parse().ok()?,
    ))
}

/// A host's heartbeats.
pub fn heartbeat(host: &HostId) -> String {
    format!("{PREFIX}.heartbeat.{host}")
}
/// Every host's heartbeats.
pub const HEARTBEATS: &str = "wasmorch.v1.heartbeat.*";

/// A host's status reports.
pub fn status(host: &HostId) -> String {
    format!("{PREFIX}.status.{host}")
}
/// Every host's status reports.
pub const STATUSES: &str = "wasmorch.v1.status.*";

/// Requests to a host.
pub fn host(host: &HostId, verb: &str) -> String {
    format!("{PREFIX}.host.{host}.{verb}")
}

/// Connections to a host's gateway, for a host that no one can dial.
pub fn tunnel(host: &HostId) -> String {
    format!("{PREFIX}.tunnel.{host}")
}

/// Calls of a workload by NATS request.
pub fn invoke(workload: &WorkloadKey) -> String {
    format!("{PREFIX}.invoke.{}.{}", workload.namespace, workload.name)
}

/// Live log lines of one replica.
pub fn logs(workload: &WorkloadKey, replica: ReplicaId) -> String {
    format!(
        "{PREFIX}.logs.{}.{}.{replica}",
        workload.namespace, workload.name
    )
}
/// Live log lines of every replica of a workload.
pub fn logs_all(workload: &WorkloadKey) -> String {
    format!("{PREFIX}.logs.{}.{}.*", workload.namespace, workload.name)
}

/// Events of one kind.
pub fn event(namespace: Option<&Name>, kind: &str) -> String {
    format!(
        "{PREFIX}.events.{}.{kind}",
        namespace.map_or(CLUSTER_TOKEN, Name::as_str)
    )
}
/// Every event of a namespace; `None`: of all.
pub fn events(namespace: Option<&Name>) -> String {
    match namespace {
        Some(namespace) => format!("{PREFIX}.events.{namespace}.*"),
        None => format!("{PREFIX}.events.>"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn web() -> WorkloadKey {
        WorkloadKey::new("shop".parse().unwrap(), "web".parse().unwrap())
    }

    #[test]
    fn what_is_made_reads_back() {
        assert_eq!(parse_api(&api(None, "hosts")), Some((None, "hosts")));
        let shop: Name = "shop".parse().unwrap();
        assert_eq!(
            parse_api(&api(Some(&shop), "list")),
            Some((Some(shop), "list"))
        );
        assert_eq!(
            parse_table("wasmorch.v1.routes.shop.web", "routes"),
            Some(web())
        );
        assert_eq!(
            parse_table(&state(&key::endpoints(&web())), "endpoints"),
            Some(web())
        );
        assert_eq!(state_key(&state("term")), Some("term"));
    }

    #[test]
    fn what_is_no_call_is_refused() {
        for bad in [
            "wasmorch.v1.api.list",
            "wasmorch.v1.api.a.b.c",
            "wasmorch.v1.api.A.list",
            "x",
        ] {
            assert_eq!(parse_api(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_subject_panics(text in ".{0,80}") {
            let _ = parse_api(&text);
            let _ = parse_table(&text, "routes");
            let _ = state_key(&text);
        }
    }
}
