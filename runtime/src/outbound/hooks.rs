//! Where wasmtime's `wasi:http` asks for an outbound request: the allow-list, then the client.

use http_body_util::BodyExt as _;
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody, WasiHttpHooks};

use super::{OutboundHttp, RouteError};
use crate::body::BodyError;

/// The hooks of one store.
pub(crate) struct Hooks {
    outbound: OutboundHttp,
}

impl Hooks {
    pub(crate) fn new(outbound: OutboundHttp) -> Self {
        Self { outbound }
    }
}

type Io = Box<dyn Future<Output = Result<(), Error>> + Send>;
type Answer = Result<(http::Response<WasiBody>, Io), Error>;

impl WasiHttpHooks for Hooks {
    fn send_request(
        &mut self,
        request: http::Request<WasiBody>,
        options: Option<RequestOptions>,
        _fut: Io,
    ) -> Box<dyn Future<Output = Answer> + Send> {
        let outbound = self.outbound.clone();
        Box::new(async move {
            let response = send(&outbound, request, options).await?;
            // The connection is driven by the pool; nothing is left to be done here.
            Ok((response, Box::new(async { Ok(()) }) as Io))
        })
    }
}

async fn send(
    outbound: &OutboundHttp,
    request: http::Request<WasiBody>,
    options: Option<RequestOptions>,
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
        let request = request.map(|body| body.map_err(BodyError::from).boxed_unsync());
        return match route.send(request).await {
            Ok(response) => Ok(response.map(|body| {
                body.map_err(|error| Error::InternalError(Some(error.to_string())))
                    .boxed_unsync()
            })),
            Err(RouteError::NotGranted) => Err(Error::HttpRequestDenied),
            Err(RouteError::Unavailable(_)) => Err(Error::DestinationUnavailable),
        };
    }
    let secure = uri.scheme() == Some(&http::uri::Scheme::HTTPS);
    let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
    match outbound.pool(&host, port) {
        Some(pool) => pool.send(request, options).await,
        None => Err(Error::HttpRequestDenied),
    }
}
