//! `http://<workload>.<namespace>.internal`: from one workload to another, through the gateway of
//! this host, without leaving the process when a replica is here.
//!
//! Owns what such a name means and who may use it: a workload reaches exactly those that its spec
//! lists in `bindings.workloads`. A name without a namespace is in the caller's own.
//!
//! Invariant: what a guest asks for is held against the grant before anything else is looked at,
//! so a refusal tells nothing of what exists.

use std::collections::BTreeSet;

use async_trait::async_trait;
use http::{Request, Response};
use wasmorch_api::{Name, WorkloadKey};
use wasmorch_gateway::{Deadline, Gateway, Hops};
use wasmorch_runtime::{Body, InternalRoute, Lineage, RouteError};

/// What follows the name.
const SUFFIX: &str = ".internal";

/// The workloads that one replica may call.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Callable(BTreeSet<WorkloadKey>);

impl Callable {
    /// From `bindings.workloads`, as the caller's namespace reads it.
    pub(super) fn read(references: &[String], own: &Name) -> Result<Self, String> {
        let one = |text: &String| {
            workload(text, own)
                .ok_or_else(|| format!("bindings.workloads: `{text}` is not a workload"))
        };
        references
            .iter()
            .map(one)
            .collect::<Result<_, _>>()
            .map(Self)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// `NAME` or `NAME.NAMESPACE`.
fn workload(text: &str, own: &Name) -> Option<WorkloadKey> {
    let (name, namespace) = match text.split_once('.') {
        Some((name, namespace)) => (name, namespace.parse().ok()?),
        None => (text, own.clone()),
    };
    Some(WorkloadKey::new(namespace, name.parse().ok()?))
}

/// One replica's way to other workloads.
pub(super) struct Internal {
    gateway: Gateway,
    own: Name,
    callable: Callable,
}

impl Internal {
    pub(super) fn new(gateway: Gateway, own: Name, callable: Callable) -> Self {
        Self {
            gateway,
            own,
            callable,
        }
    }

    /// Whom a request is for, if it may go there.
    fn target(&self, uri: &http::Uri) -> Result<WorkloadKey, RouteError> {
        let host = uri.host().unwrap_or_default().to_ascii_lowercase();
        let name = host.trim_end_matches('.').strip_suffix(SUFFIX);
        let target = name.and_then(|name| workload(name, &self.own));
        let target = target.filter(|target| self.callable.0.contains(target));
        let target = target.ok_or(RouteError::NotGranted)?;
        if uri.scheme() == Some(&http::uri::Scheme::HTTPS) {
            return Err(RouteError::Invalid("inside the cluster it is plain http"));
        }
        if uri.port_u16().is_some_and(|port| port != 80) {
            return Err(RouteError::Invalid("a workload has no port but 80"));
        }
        Ok(target)
    }
}

#[async_trait]
impl InternalRoute for Internal {
    async fn send(
        &self,
        mut request: Request<Body>,
        lineage: Lineage,
    ) -> Result<Response<Body>, RouteError> {
        let target = self.target(request.uri())?;
        let extensions = request.extensions_mut();
        extensions.clear();
        extensions.insert(Hops(lineage.hops.saturating_add(1)));
        if let Some(deadline) = lineage.deadline {
            extensions.insert(Deadline(deadline));
        }
        Ok(self.gateway.dispatch(&target, request).await)
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::sync::Arc;

    use wasmorch_gateway::{GatewayConfig, Server, Tables};

    use super::*;
    use crate::runner::http::Locals;

    fn internal(granted: &[&str]) -> Internal {
        let http = TcpListener::bind("127.0.0.1:0").unwrap();
        let config = GatewayConfig::new(http, None, "h1".parse().unwrap(), "localhost");
        let server = Server::new(
            config,
            Tables::new(),
            Arc::new(Locals::new(tokio::sync::mpsc::channel(1).0)),
        )
        .unwrap();
        let own: Name = "shop".parse().unwrap();
        let granted: Vec<String> = granted.iter().map(|text| (*text).to_owned()).collect();
        let callable = Callable::read(&granted, &own).unwrap();
        Internal::new(server.gateway(), own, callable)
    }

    #[tokio::test]
    async fn a_name_means_the_own_namespace_unless_it_says_another() {
        let internal = internal(&["orders", "orders.erp"]);
        let target = |uri: &str| internal.target(&uri.parse().unwrap());
        let shop = Ok(WorkloadKey::new(
            "shop".parse().unwrap(),
            "orders".parse().unwrap(),
        ));
        let erp = Ok(WorkloadKey::new(
            "erp".parse().unwrap(),
            "orders".parse().unwrap(),
        ));
        assert_eq!(target("http://orders.shop.internal/x?y"), shop);
        assert_eq!(target("http://orders.internal/"), shop);
        assert_eq!(target("http://Orders.SHOP.Internal.:80/"), shop);
        assert_eq!(target("http://orders.erp.internal/"), erp);
    }

    #[tokio::test]
    async fn what_is_not_listed_is_not_granted_whether_it_exists_or_not() {
        let internal = internal(&["orders"]);
        for uri in [
            "http://orders.erp.internal/",
            "http://web.shop.internal/",
            "http://internal/",
            "http://.internal/",
            "http://a.b.c.internal/",
            "http://orders.shop.internal.evil.example/",
            "https://web.shop.internal/",
        ] {
            let refused = internal.target(&uri.parse().unwrap());
            assert_eq!(refused, Err(RouteError::NotGranted), "{uri}");
        }
        for uri in [
            "https://orders.shop.internal/",
            "http://orders.internal:8080/",
        ] {
            let refused = internal.target(&uri.parse().unwrap());
            assert!(matches!(refused, Err(RouteError::Invalid(_))), "{uri}");
        }
    }
}
