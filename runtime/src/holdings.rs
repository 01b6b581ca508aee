//! What the host holds for one guest outside the guest's own memory: heads, buffers of bodies,
//! secrets, open files, sockets and streams.
//!
//! All of it hangs on the resources in the guest's table, whose number has a cap
//! ([`RESOURCES_MAX`]), and on streams of WASI 0.3, which are in none (`streams.rs`). At ticks of the
//! epoch both are looked through: bytes count as memory of the replica, what holds a descriptor of the
//! operating system as a handle. A guest that takes more
//! than it may is ended at that tick, so what it can overshoot is what it can take in one.
//! A stream of an HTTP body is no handle: it holds no descriptor of its own, and requests have
//! bounds of their own.
//!
//! It keeps no books: those are the limiter's (`limits.rs`).

use std::time::{Duration, Instant};

use wasmtime::component::{Resource, ResourceTable};
use wasmtime_wasi::filesystem::Descriptor;
use wasmtime_wasi::p2::{DynInputStream, DynOutputStream};
use wasmtime_wasi::{p2, sockets};
use wasmtime_wasi_http::FieldMap;
use wasmtime_wasi_http::p2::bindings::http::types::{Method, Scheme};
use wasmtime_wasi_http::p2::body::{HostIncomingBody, HostOutgoingBody};
use wasmtime_wasi_http::p2::types::{
    HostFutureIncomingResponse, HostIncomingRequest, HostIncomingResponse, HostOutgoingRequest,
    HostOutgoingResponse, HostResponseOutparam,
};
use wasmtime_wasi_http::p3;

use crate::blobstore::guest::{IncomingValue, Names};
use crate::keyvalue::guest::Cas;
use crate::listing;
use crate::secrets::guest::Secret;

/// Resources of the host that one guest may hold open: streams, sockets, requests, files. Also how
/// many handles of its own it may have.
pub const RESOURCES_MAX: usize = 4 << 10;
/// Tasks, waits and ends of streams of WASI 0.3: a stream of a connection alone has nine.
pub(crate) const TASKS_MAX: usize = 6 << 10;
/// Files, sockets and streams that a replica may hold open, all its instances in all runners
/// together: far from what a process may have, which is thousands at the least.
pub const HANDLES_MAX: u64 = 2048;
/// What a guest may write to an outgoing body at once.
pub(crate) const BODY_CHUNK_BYTES: usize = 16 << 10;
/// So many of these wait between it and the reader: enough that neither waits for the other at each, and
/// that several leave in one call of the system.
pub(crate) const BODY_CHUNKS: usize = 4;
/// What may lie ahead of a response's reader besides, see `ResponseBody::take_ahead`.
pub(crate) const AHEAD_BYTES: u64 = (BODY_CHUNKS * BODY_CHUNK_BYTES) as u64;

/// Any resource: its entry in the table and what is around it.
const ENTRY_BYTES: u64 = 256;
/// One header besides its name and value.
const HEADER_BYTES: u64 = 128;
/// What one body may have on the way.
const BODY_BYTES: u64 = 2 * AHEAD_BYTES;
/// What nobody counts: what an ordinary guest needs, so that one at its memory limit is not ended
/// for a header.
const FREE_BYTES: u64 = 512 << 10;
/// Looking takes at most one in so many of the time.
const LOOK_ONE_IN: u32 = 20;
/// Shorter looks need no break: there is a tick between them.
const SHORT_LOOK: Duration = Duration::from_micros(50);

/// What was found at the last look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) bytes: u64,
    pub(crate) handles: u64,
}

/// When to look again.
#[derive(Debug, Default)]
pub(crate) struct Looks(Option<Instant>);

impl Looks {
    /// Looks through a table, beside which so many streams are open; `None`: the last look was so long that it is too early.
    pub(crate) fn look(&mut self, table: &mut ResourceTable, streams: u64) -> Option<Held> {
        let began = Instant::now();
        if self.0.is_some_and(|again| began < again) {
            return None;
        }
        let mut held = held(table);
        held.bytes = held.bytes.saturating_sub(FREE_BYTES);
        held.handles += streams;
        let took = began.elapsed();
        self.0 = (took > SHORT_LOOK).then(|| began + took * LOOK_ONE_IN);
        Some(held)
    }
}

fn held(table: &mut ResourceTable) -> Held {
    let mut held = Held::default();
    let mut bodies = 0;
    for entry in table.iter_mut() {
        held.bytes += ENTRY_BYTES;
        if let Some(fields) = entry.downcast_ref::<FieldMap>() {
            held.bytes += headers(fields);
        } else if entry.is::<DynInputStream>()
            || entry.is::<DynOutputStream>()
            || entry.is::<Descriptor>()
            || entry.is::<p2::TcpSocket>()
            || entry.is::<p2::UdpSocket>()
            || entry.is::<sockets::TcpSocket>()
            || entry.is::<sockets::UdpSocket>()
            || entry.is::<IncomingValue>()
            || entry.is::<Names>()
        {
            held.handles += 1;
        } else if entry.is::<listing::p2::Listing>() {
            held.handles += 1;
            held.bytes += listing::PART_BYTES;
        } else if entry.is::<HostIncomingBody>() {
            bodies += 1;
        } else if entry.is::<HostOutgoingBody>() {
            bodies += 1;
            held.bytes += BODY_BYTES;
        } else if let Some(request) = entry.downcast_ref::<HostOutgoingRequest>() {
            let body = request.body.as_ref().map_or(0, |_| BODY_BYTES);
            held.bytes += target(request) + headers(&request.headers) + body;
        } else if let Some(response) = entry.downcast_ref::<HostOutgoingResponse>() {
            let body = response.body.as_ref().map_or(0, |_| BODY_BYTES);
            held.bytes += headers(&response.headers) + body;
        } else if let Some(response) = entry.downcast_ref::<HostIncomingResponse>() {
            held.bytes += headers(&response.headers);
        } else if let Some(HostFutureIncomingResponse::Ready(Ok((response, _)))) =
            entry.downcast_ref::<HostFutureIncomingResponse>()
        {
            held.bytes += headers(response.headers());
        } else if let Some(request) = entry.downcast_ref::<p3::Request>() {
            held.bytes += target_p3(request) + headers(&request.headers);
        } else if let Some(response) = entry.downcast_ref::<p3::Response>() {
            held.bytes += headers(&response.headers);
        } else if let Some(secret) = entry.downcast_ref::<Secret>() {
            held.bytes += secret.size();
        } else if let Some(cas) = entry.downcast_ref::<Cas>() {
            held.bytes += cas.size();
        }
    }
    held.handles -= body_streams(table, bodies);
    held
}

/// Streams of so many bodies: each is in the table as a child of its body. One that is closed, or
/// was never asked for, makes up for nothing else.
fn body_streams(table: &mut ResourceTable, mut bodies: usize) -> u64 {
    let mut streams = 0;
    for key in 0..u32::try_from(table.max_capacity()).unwrap_or(u32::MAX) {
        if bodies == 0 {
            break;
        }
        let is_body = table
            .get_any_mut(key)
            .is_ok_and(|entry| entry.is::<HostIncomingBody>() || entry.is::<HostOutgoingBody>());
        if !is_body {
            continue;
        }
        bodies -= 1;
        let children = table.iter_children(&Resource::<()>::new_borrow(key));
        for child in children.into_iter().flatten() {
            streams += u64::from(child.is::<DynInputStream>() || child.is::<DynOutputStream>());
        }
    }
    streams
}

/// Whether nothing is left that belongs to one request: what would keep its client waiting, or its
/// body from being read by others.
pub(crate) fn is_between_requests(table: &mut ResourceTable) -> bool {
    !table.iter_mut().any(|entry| {
        entry.is::<HostIncomingRequest>()
            || entry.is::<HostIncomingBody>()
            || entry.is::<HostResponseOutparam>()
            || entry.is::<HostOutgoingResponse>()
            || entry.is::<HostOutgoingBody>()
            || entry.is::<p3::Request>()
            || entry.is::<p3::Response>()
    })
}

/// Copies of the same fields share their memory and are counted each: they cease to share it as soon
/// as one is changed.
fn headers(fields: &http::HeaderMap) -> u64 {
    let each = fields.iter().map(|(name, value)| {
        HEADER_BYTES + name.as_str().len() as u64 + value.as_bytes().len() as u64
    });
    each.sum()
}

/// What a request is to and by: text of any length.
fn target(request: &HostOutgoingRequest) -> u64 {
    let method = match &request.method {
        Method::Other(method) => method.len(),
        _ => 0,
    };
    let scheme = match &request.scheme {
        Some(Scheme::Other(scheme)) => scheme.len(),
        _ => 0,
    };
    let texts = [&request.authority, &request.path_with_query];
    let texts = texts.into_iter().flatten().map(String::len);
    (method + scheme + texts.sum::<usize>()) as u64
}

fn target_p3(request: &p3::Request) -> u64 {
    let scheme = request
        .scheme
        .as_ref()
        .map_or(0, |scheme| scheme.as_str().len());
    let authority = request
        .authority
        .as_ref()
        .map_or(0, |authority| authority.as_str().len());
    let path = request
        .path_with_query
        .as_ref()
        .map_or(0, |path| path.as_str().len());
    (request.method.as_str().len() + scheme + authority + path) as u64
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;
    use wasmtime::component::ResourceTable;

    use super::*;

    #[test]
    fn what_is_in_the_table_is_counted() {
        let mut table = ResourceTable::new();
        assert_eq!(held(&mut table), Held::default());
        let mut map = http::HeaderMap::new();
        map.insert("name", http::HeaderValue::from_static("value"));
        let fields = FieldMap::new_immutable(wasmtime_wasi_http::default_hooks(), map);
        table.push(fields).unwrap();
        table.push(()).unwrap();
        let bytes = 2 * ENTRY_BYTES + HEADER_BYTES + 9;
        assert_eq!(held(&mut table), Held { bytes, handles: 0 });
        let stream: DynInputStream = Box::new(p2::pipe::ClosedInputStream);
        table.push(stream).unwrap();
        assert_eq!(held(&mut table).handles, 1);
    }

    #[test]
    fn streams_of_bodies_are_no_handles_and_bodies_make_up_for_none() {
        let mut table = ResourceTable::new();
        let closed = || -> DynInputStream { Box::new(p2::pipe::ClosedInputStream) };
        let body = || {
            let empty = http_body_util::Empty::new().map_err(|never| match never {});
            HostIncomingBody::new(empty.boxed_unsync())
        };
        table.push(body()).unwrap();
        let gone = table.push(()).unwrap();
        let parent = table.push(body()).unwrap();
        table.push(closed()).unwrap();
        assert_eq!(held(&mut table).handles, 1);
        table.push_child(closed(), &parent).unwrap();
        assert_eq!(held(&mut table).handles, 1);
        table.delete(gone).unwrap();
        table.push(closed()).unwrap();
        assert_eq!(held(&mut table).handles, 2);
    }
}
