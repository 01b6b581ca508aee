//! One request into one instance: what `wasi:http` 0.2 and 0.3 are called with, and what they answer.

use std::pin::Pin;

use tokio::sync::oneshot;
use wasmtime::Store;
use wasmtime::component::InstancePre;
use wasmtime_wasi_http::p2::bindings::http::types::Scheme;
use wasmtime_wasi_http::p2::bindings::{Proxy, ProxyPre};
use wasmtime_wasi_http::p3::Request as RequestP3;
use wasmtime_wasi_http::p3::bindings::{Service, ServicePre};
use wasmtime_wasi_http::{WasiBody, WasiHttpView as _};

use super::WRONG;
use crate::body::RequestBody;
use crate::ended::PrepareError;
use crate::reuse::{Instance, Running};
use crate::state::GuestState;

/// What the guest answers: a response, or its error code.
pub(crate) type Head = Result<http::Response<WasiBody>, String>;
pub(crate) type HeadSender = oneshot::Sender<Head>;
pub(crate) type RequestIo =
    Pin<Box<dyn Future<Output = Result<(), wasmtime_wasi_http::Error>> + Send>>;
/// A component, linked.
pub(crate) enum HttpPre {
    P2(ProxyPre<GuestState>),
    P3(ServicePre<GuestState>),
}

impl HttpPre {
    /// One that exports both versions of `wasi:http` is served by 0.3.
    pub(crate) fn new(linked: InstancePre<GuestState>) -> Result<Self, PrepareError> {
        match ServicePre::new(linked.clone()) {
            Ok(pre) => Ok(Self::P3(pre)),
            Err(_) => ProxyPre::new(linked).map(Self::P2).map_err(|_| WRONG),
        }
    }
}

/// Whether anybody reads the body of an answer.
pub(crate) fn has_body(is_head: bool, status: http::StatusCode) -> bool {
    !is_head && status != http::StatusCode::NO_CONTENT && status != http::StatusCode::NOT_MODIFIED
}

/// The instance, made if need be, and its store.
pub(super) async fn instantiate(
    running: &mut Running,
) -> wasmtime::Result<(&mut Store<GuestState>, &mut Instance)> {
    let Running {
        instance,
        store,
        code,
        ..
    } = running;
    let instance = match instance {
        Some(instance) => instance,
        none => none.insert(match code.http(&store.data().shared)? {
            HttpPre::P2(pre) => Instance::P2(pre.instantiate_async(&mut *store).await?),
            HttpPre::P3(pre) => Instance::P3(pre.instantiate_async(&mut *store).await?),
        }),
    };
    Ok((store, instance))
}

/// Runs a request to its end, in an instance that is made if need be.
pub(super) async fn run(
    running: &mut Running,
    request: http::Request<RequestBody>,
    tx: HeadSender,
) -> wasmtime::Result<()> {
    let (store, instance) = instantiate(running).await?;
    match instance {
        Instance::P2(proxy) => run_p2(store, proxy, request, tx).await,
        Instance::P3(service) => run_p3(store, service, request, tx).await,
    }
}

async fn run_p2(
    store: &mut Store<GuestState>,
    proxy: &Proxy,
    request: http::Request<RequestBody>,
    tx: HeadSender,
) -> wasmtime::Result<()> {
    let mut http = store.data_mut().http();
    let request = http.new_incoming_request(Scheme::Http, request)?;
    // Whoever waits for the head may be gone; the guest then goes on until it is dropped too.
    let out = http.new_response_outparam_from_callback(move |head| {
        _ = tx.send(head.map_err(|code| format!("{code:?}")));
    })?;
    proxy
        .wasi_http_incoming_handler()
        .call_handle(store, request, out)
        .await
}

async fn run_p3(
    store: &mut Store<GuestState>,
    service: &Service,
    request: http::Request<RequestBody>,
    tx: HeadSender,
) -> wasmtime::Result<()> {
    store
        .run_concurrent(async |accessor| {
            let (request, io) = accessor.with(|mut access| {
                let (request, io) = RequestP3::from_http(access.data_mut().http().hooks, request);
                // Boxed, since the opaque type would borrow from the store.
                (request, Box::pin(io) as RequestIo)
            });
            let response = match service.handle(accessor, request).await? {
                Ok(response) => response,
                Err(code) => {
                    _ = tx.send(Err(format!("{code:?}")));
                    return Ok(());
                }
            };
            let response = accessor.with(|access| response.into_http(access, io))?;
            _ = tx.send(Ok(response));
            // The task that answered may go on, to write the body or after it.
            std::future::poll_fn(|cx| accessor.poll_no_interesting_tasks(cx)).await;
            Ok(())
        })
        .await?
}
