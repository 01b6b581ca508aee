//! Where wasmtime's `wasi:http` asks for an outbound request: the allow-list, then the client.

use std::sync::Arc;

use http_body::Body as _;
use http_body_util::BodyExt as _;
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody, WasiHttpHooks};

use super::bounded::{Bounded, Bounds};
use super::client::DEFAULT_TIMEOUT;
use super::{InternalRoute, Lineage, Lineages, OutboundHttp, RouteError};
use crate::body::BodyError;
use crate::holdings::{BODY_CHUNK_BYTES, BODY_CHUNKS};
use crate::refusals::{Refusals, Refused};

/// The hooks of one store.
pub(crate) struct Hooks {
    outbound: OutboundHttp,
    /// What the body of an answer may have.
    body_bytes: u64,
    lineage: Lineage,
    /// Instead, where several requests share the store.
    lineages: Option<Arc<Lineages>>,
    refusals: Arc<Refusals>,
}

impl Hooks {
    pub(crate) fn new(outbound: OutboundHttp, body_bytes: u64, refusals: Arc<Refusals>) -> Self {
        Self {
            outbound,
            body_bytes,
            refusals,
            lineage: Lineage::default(),
            lineages: None,
        }
    }

    /// What the guest's requests inherit from the one that it serves.
    pub(crate) fn inherit(&mut self, lineage: Lineage) {
        self.lineage = lineage;
    }

    /// The same of all that share the store.
    pub(crate) fn inherit_of_all(&mut self, lineages: Arc<Lineages>) {
        self.lineages = Some(lineages);
    }
}

type Io = Box<dyn Future<Output = Result<(), Error>> + Send>;
type Answer = Result<(http::Response<WasiBody>, Io), Error>;

impl WasiHttpHooks for Hooks {
    fn p2_outgoing_body_buffer_chunks(&mut self) -> usize {
        // It adds one.
        BODY_CHUNKS - 1
    }

    fn p2_outgoing_body_chunk_size(&mut self) -> usize {
        BODY_CHUNK_BYTES
    }

    fn send_request(
        &mut self,
        request: http::Request<WasiBody>,
        options: Option<RequestOptions>,
        _fut: Io,
    ) -> Box<dyn Future<Output = Answer> + Send> {
        let of_all = self.lineages.as_ref().map(|all| all.of_all());
        let (outbound, lineage) = (self.outbound.clone(), of_all.unwrap_or(self.lineage));
        let (body_bytes, refusals) = (self.body_bytes, self.refusals.clone());
        Box::new(async move {
            let room = outbound.room.clone().try_acquire_owned();
            let room = room.map_err(|_| Error::ConnectionLimitReached)?;
            let options = options.unwrap_or_default();
            let between = options.between_bytes_timeout.unwrap_or(DEFAULT_TIMEOUT);
            let response = send(&outbound, &refusals, lineage, request, options).await?;
            let expected = response.body().size_hint().lower();
            if expected > body_bytes {
                return Err(Error::HttpResponseBodySize(Some(expected)));
            }
            let bounds = Bounds {
                left: body_bytes,
                between,
                room,
            };
            let response = response.map(|body| Bounded::new(body, bounds).boxed_unsync());
            // The connection is driven by the pool; nothing is left to be done here.
            Ok((response, Box::new(async { Ok(()) }) as Io))
        })
    }
}

async fn send(
    outbound: &OutboundHttp,
    refusals: &Refusals,
    lineage: Lineage,
    request: http::Request<WasiBody>,
    options: RequestOptions,
) -> Result<http::Response<WasiBody>, Error> {
    // A tunnel would carry whatever the guest likes past every later check.
    if request.method() == http::Method::CONNECT {
        return Err(Error::HttpRequestDenied);
    }
    let uri = request.uri();
    let host = uri.host().ok_or(Error::HttpRequestUriInvalid)?;
    let host = host
        .trim_start_matches('[')
        .trim_end_matches(']')
        .trim_end_matches('.');
    let host = host.to_ascii_lowercase();
    if let Some(route) = outbound.internal(&host) {
        let answer = send_inside(&**route, lineage, request, options).await;
        if matches!(answer, Err(Error::HttpRequestDenied)) {
            refusals.tell(Refused::Workload(&host));
        }
        return answer;
    }
    let secure = uri.scheme() == Some(&http::uri::Scheme::HTTPS);
    let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
    let host = host.as_str();
    let Some(pool) = outbound.pool(host, port) else {
        refusals.tell(Refused::Http { host, port });
        return Err(Error::HttpRequestDenied);
    };
    let answer = pool.send(request, options).await;
    if matches!(answer, Err(Error::DestinationIpProhibited)) {
        refusals.tell(Refused::Private { host, port });
    }
    answer
}

/// To a workload of the cluster, within the time that the guest gives it.
async fn send_inside(
    route: &dyn InternalRoute,
    lineage: Lineage,
    request: http::Request<WasiBody>,
    options: RequestOptions,
) -> Result<http::Response<WasiBody>, Error> {
    let first = options.first_byte_timeout.unwrap_or(DEFAULT_TIMEOUT);
    let request = request.map(|body| body.map_err(BodyError::from).boxed_unsync());
    let response = tokio::time::timeout(first, route.send(request, lineage))
        .await
        .map_err(|_| Error::ConnectionReadTimeout)?
        .map_err(|error| match error {
            RouteError::NotGranted => Error::HttpRequestDenied,
            RouteError::Invalid(_) => Error::HttpRequestUriInvalid,
        })?;
    Ok(response.map(|body| {
        body.map_err(|error| Error::InternalError(Some(error.to_string())))
            .boxed_unsync()
    }))
}
