//! The peer: wasmtime as its own documentation has it, with what `wasmtime serve` gives a guest that is
//! granted nothing.

use http_body_util::{BodyExt as _, Empty};
use tokio::sync::oneshot;
use wasmtime::component::{Component, InstancePre, Linker};
use wasmtime::{Config, Engine, InstanceAllocationStrategy, PoolingAllocationConfig, Store};
use wasmtime_wasi::{ResourceTable, WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView};
use wasmtime_wasi_http::p2::bindings::ProxyPre;
use wasmtime_wasi_http::p2::bindings::http::types::Scheme;
use wasmtime_wasi_http::p3::bindings::ServicePre;
use wasmtime_wasi_http::{WasiHttpCtx, WasiHttpCtxView, WasiHttpView, default_hooks};

use crate::Problem;

/// Where memories, tables and stacks come from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Allocator {
    OnDemand,
    Pooling,
}

/// An engine with its linker.
pub(crate) struct Bare {
    engine: Engine,
    linker: Linker<State>,
}

/// The data of a store.
pub(crate) struct State {
    wasi: WasiCtx,
    http: WasiHttpCtx,
    table: ResourceTable,
}

impl WasiView for State {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView {
            ctx: &mut self.wasi,
            table: &mut self.table,
        }
    }
}

impl WasiHttpView for State {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView {
            hooks: default_hooks(),
            table: &mut self.table,
            ctx: &mut self.http,
        }
    }
}

/// A component, linked.
#[derive(Clone)]
pub(crate) enum Pre {
    P2(ProxyPre<State>),
    P3(ServicePre<State>),
}

impl Bare {
    pub(crate) fn new(allocator: Allocator) -> Result<Self, Problem> {
        let mut config = Config::new();
        config.wasm_component_model_async(true);
        if allocator == Allocator::Pooling {
            let pool = PoolingAllocationConfig::default();
            config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
        }
        let engine = Engine::new(&config)?;
        let mut linker = Linker::new(&engine);
        wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
        wasmtime_wasi_http::p2::add_only_http_to_linker_async(&mut linker)?;
        wasmtime_wasi::p3::add_to_linker(&mut linker)?;
        wasmtime_wasi_http::p3::add_to_linker(&mut linker)?;
        Ok(Self { engine, linker })
    }

    pub(crate) fn compile(&self, bytes: &[u8]) -> Result<Component, Problem> {
        Ok(Component::new(&self.engine, bytes)?)
    }

    pub(crate) fn link(&self, component: &Component) -> Result<Pre, Problem> {
        let linked: InstancePre<State> = self.linker.instantiate_pre(component)?;
        Ok(match ServicePre::new(linked.clone()) {
            Ok(pre) => Pre::P3(pre),
            Err(_) => Pre::P2(ProxyPre::new(linked)?),
        })
    }

    fn store(&self) -> Store<State> {
        let state = State {
            wasi: WasiCtxBuilder::new().build(),
            http: WasiHttpCtx::new(),
            table: ResourceTable::new(),
        };
        Store::new(&self.engine, state)
    }

    /// Makes an instance and drops it.
    pub(crate) async fn instantiate(&self, pre: &Pre) -> Result<(), Problem> {
        let mut store = self.store();
        match pre {
            Pre::P2(pre) => _ = pre.instantiate_async(&mut store).await?,
            Pre::P3(pre) => _ = pre.instantiate_async(&mut store).await?,
        }
        Ok(())
    }

    /// The body of an answer to a path, by 0.2.
    pub(crate) async fn answer(&self, pre: &Pre, path: &str) -> Result<Vec<u8>, Problem> {
        let Pre::P2(pre) = pre.clone() else {
            return Err("the peer asks components of 0.2 only".into());
        };
        let mut store = self.store();
        let request = http::Request::get(path)
            .header("host", "bench")
            .body(Empty::new().map_err(|never: std::convert::Infallible| match never {}))?;
        let request: http::Request<wasmtime_wasi_http::WasiBody> =
            request.map(|body| body.boxed_unsync());
        let (told, hears) = oneshot::channel();
        let request = store
            .data_mut()
            .http()
            .new_incoming_request(Scheme::Http, request)?;
        let out = store.data_mut().http().new_response_outparam(told)?;
        let guest = tokio::spawn(async move {
            let proxy = pre.instantiate_async(&mut store).await?;
            let handler = proxy.wasi_http_incoming_handler();
            handler.call_handle(&mut store, request, out).await
        });
        let response = hears.await??;
        let body = response.into_body().collect().await?.to_bytes();
        guest.await??;
        Ok(body.into())
    }
}
