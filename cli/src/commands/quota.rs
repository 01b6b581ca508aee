//! `quota`: what a namespace may have, and what it has.

use wasmorch_api::messages::{QuotaReply, QuotaRequest};
use wasmorch_api::record::Quota;
use wasmorch_api::{ByteSize, Cpu};

use super::{Context, request_id};
use crate::cluster;
use crate::error::{CliError, Exit};

/// `quota`.
pub(crate) async fn run(ctx: &Context, request: QuotaRequest) -> Result<Exit, CliError> {
    let namespace = ctx.global.namespace();
    let link = ctx.link().await?;
    let request = QuotaRequest {
        request_id: Some(request_id()),
        by: Some(cluster::user()),
        ..request
    };
    let reply: QuotaReply = link.call(Some(&namespace), "quota", &request).await?;
    if ctx.out.is_json() {
        ctx.out.json(&reply)?;
    } else {
        ctx.out.line(&shown(&reply))?;
    }
    Ok(Exit::OK)
}

fn shown(reply: &QuotaReply) -> String {
    let sizes = |quota: &Quota| {
        [
            quota.memory_bytes.map(|bytes| ByteSize(bytes).to_string()),
            quota.cpu_millis.map(|millis| Cpu(millis).to_string()),
            quota.replicas.map(|many| many.to_string()),
        ]
    };
    let rows = { ["memory", "cpu", "replicas"].into_iter() }
        .zip(sizes(&reply.used))
        .zip(sizes(&reply.quota));
    let rows: Vec<String> = rows
        .map(|((name, used), limit)| {
            let used = used.unwrap_or_else(|| "0".into());
            let limit = limit.unwrap_or_else(|| "no limit".into());
            format!("  {name:<9} {used} of {limit}")
        })
        .collect();
    format!("namespace {}\n{}", reply.namespace, rows.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn use_and_limit_side_by_side() {
        let reply = QuotaReply {
            namespace: "shop".parse().unwrap(),
            quota: Quota {
                memory_bytes: Some(4 << 30),
                cpu_millis: None,
                replicas: Some(100),
            },
            used: Quota {
                memory_bytes: Some(3 << 20),
                cpu_millis: Some(500),
                replicas: Some(3),
            },
            changed: false,
        };
        insta::assert_snapshot!(shown(&reply), @r"
        namespace shop
          memory    3MiB of 4GiB
          cpu       500m of no limit
          replicas  3 of 100
        ");
    }
}
