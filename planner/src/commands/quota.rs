//! `quota`: shows and sets what a namespace may have.

use wasmorch_api::messages::{QuotaReply, QuotaRequest};
use wasmorch_api::record::{NamespaceRecord, Quota};
use wasmorch_api::{ApiError, Name};

use super::{Call, Outcome};
use crate::cluster::Cluster;
use crate::write::Write;

/// Sets what is named, or everything back to no limit; names nothing: only shows.
pub fn quota(
    cluster: &Cluster,
    request: &QuotaRequest,
    call: &Call,
) -> Result<Outcome<QuotaReply>, ApiError> {
    let known = cluster.namespace(&call.namespace);
    let before = known.map(|known| known.quota).unwrap_or_default();
    let start = if request.clear {
        Quota::default()
    } else {
        before
    };
    let quota = Quota {
        memory_bytes: request.memory_bytes.or(start.memory_bytes),
        cpu_millis: request.cpu_millis.or(start.cpu_millis),
        replicas: request.replicas.or(start.replicas),
    };
    let writes = match (quota == before, quota == Quota::default()) {
        (true, _) => Vec::new(),
        (false, true) => vec![Write::DeleteNamespace(call.namespace.clone())],
        (false, false) => vec![Write::Namespace(NamespaceRecord {
            namespace: call.namespace.clone(),
            quota,
            updated: call.now,
            by: call.by.clone(),
        })],
    };
    Ok(Outcome {
        reply: reply(cluster, &call.namespace, quota, !writes.is_empty()),
        writes,
        events: Vec::new(),
    })
}

fn reply(cluster: &Cluster, namespace: &Name, quota: Quota, changed: bool) -> QuotaReply {
    let held = cluster.held_now(namespace);
    QuotaReply {
        namespace: namespace.clone(),
        quota,
        used: Quota {
            memory_bytes: Some(held.memory_bytes),
            cpu_millis: Some(held.cpu_millis),
            replicas: Some(held.replicas),
        },
        changed,
    }
}
