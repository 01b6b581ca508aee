//! `wasi:sockets/ip-name-lookup` 0.2 and 0.3 in the place of wasmtime-wasi's: there one granted name
//! lets a guest look up every name, on as many threads as it likes.

use std::net::IpAddr;
use std::sync::Arc;
use std::vec;

use futures::FutureExt as _;
use wasmtime::StoreContextMut;
use wasmtime::component::{Linker, Resource, ResourceType};
use wasmtime_wasi::p2::bindings::sockets::network::{ErrorCode, IpAddress, Network};
use wasmtime_wasi::p2::{DynPollable, Pollable, subscribe};
use wasmtime_wasi::p3::bindings::sockets::{ip_name_lookup as p3, types as p3_types};
use wasmtime_wasi::runtime::{AbortOnDropJoinHandle, spawn};

use super::sockets::{LookupError, Sockets};
use crate::state::GuestState;

/// As wasmtime-wasi names them; a test of `link` holds the versions equal to `wit/`.
pub(crate) const P2: &str = "wasi:sockets/ip-name-lookup@0.2.12";
pub(crate) const P3: &str = "wasi:sockets/ip-name-lookup@0.3.0";

type Store<'a> = StoreContextMut<'a, GuestState>;
type Found = Result<Vec<IpAddr>, LookupError>;
/// What a function of the interface answers.
type Answer<T> = wasmtime::Result<(Result<T, ErrorCode>,)>;

/// A look-up of a guest: under way, or how far its answer is read.
enum Lookup {
    UnderWay(AbortOnDropJoinHandle<Found>),
    Done(Result<vec::IntoIter<IpAddr>, LookupError>),
}

impl Lookup {
    fn begin(sockets: Arc<Sockets>, name: String) -> Self {
        if let Err(error) = sockets.may_ask(&name) {
            return Self::Done(Err(error));
        }
        Self::UnderWay(spawn(async move { sockets.resolve(&name).await }))
    }

    fn next(&mut self) -> Result<Option<IpAddress>, ErrorCode> {
        if let Self::UnderWay(looking) = self {
            match looking.now_or_never() {
                Some(found) => *self = Self::Done(found.map(Vec::into_iter)),
                None => return Err(ErrorCode::WouldBlock),
            }
        }
        match self {
            Self::Done(Ok(found)) => Ok(found.next().map(IpAddress::from)),
            Self::Done(Err(error)) => Err(code(*error)),
            Self::UnderWay(_) => Err(ErrorCode::WouldBlock),
        }
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for Lookup {
    async fn ready(&mut self) {
        if let Self::UnderWay(looking) = self {
            let found = looking.await;
            *self = Self::Done(found.map(Vec::into_iter));
        }
    }
}

fn code(error: LookupError) -> ErrorCode {
    match error {
        LookupError::Denied => ErrorCode::PermanentResolverFailure,
        LookupError::Invalid => ErrorCode::InvalidArgument,
        LookupError::Unresolvable => ErrorCode::NameUnresolvable,
    }
}

/// Puts the functions in the place of those that are there.
pub(crate) fn add_to_linker(
    linker: &mut Linker<GuestState>,
    concurrent: bool,
) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    let mut lookup = linker.instance(P2)?;
    lookup.resource(
        "resolve-address-stream",
        ResourceType::host::<Lookup>(),
        |mut store, rep| {
            let lookup = Resource::<Lookup>::new_own(rep);
            store.data_mut().table.delete(lookup)?;
            Ok(())
        },
    )?;
    lookup.func_wrap("resolve-addresses", resolve)?;
    lookup.func_wrap("[method]resolve-address-stream.resolve-next-address", next)?;
    lookup.func_wrap("[method]resolve-address-stream.subscribe", subscribed)?;
    if concurrent {
        linker.instance(P3)?.func_wrap_concurrent(
            "resolve-addresses",
            |guest, (name,): (String,)| {
                Box::pin(async move {
                    let sockets = guest.with(|mut store| store.data_mut().shared.sockets.clone());
                    Ok((addresses(sockets.resolve(&name).await),))
                })
            },
        )?;
    }
    linker.allow_shadowing(false);
    Ok(())
}

fn resolve(
    mut store: Store<'_>,
    (network, name): (Resource<Network>, String),
) -> Answer<Resource<Lookup>> {
    let state = store.data_mut();
    // Holding the network is what allows to ask at all.
    state.table.get(&network)?;
    let lookup = Lookup::begin(state.shared.sockets.clone(), name);
    Ok((Ok(state.table.push(lookup)?),))
}

fn next(mut store: Store<'_>, (lookup,): (Resource<Lookup>,)) -> Answer<Option<IpAddress>> {
    Ok((store.data_mut().table.get_mut(&lookup)?.next(),))
}

fn subscribed(
    mut store: Store<'_>,
    (lookup,): (Resource<Lookup>,),
) -> wasmtime::Result<(Resource<DynPollable>,)> {
    Ok((subscribe(&mut store.data_mut().table, lookup)?,))
}

fn addresses(found: Found) -> Result<Vec<p3_types::IpAddress>, p3::ErrorCode> {
    match found {
        Ok(found) => Ok(found.into_iter().map(p3_types::IpAddress::from).collect()),
        Err(LookupError::Denied) => Err(p3::ErrorCode::PermanentResolverFailure),
        Err(LookupError::Invalid) => Err(p3::ErrorCode::InvalidArgument),
        Err(LookupError::Unresolvable) => Err(p3::ErrorCode::NameUnresolvable),
    }
}
