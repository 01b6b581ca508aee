//! The pooled client of one replica, and what its failures mean to a guest.

use std::error::Error as _;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::capture_connection;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::time::error::Elapsed;
use tokio::time::timeout;
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody};

use super::HostPattern;
use super::connect::{ConnectError, Connector};

/// How long a connection that nobody uses is kept.
pub(super) const IDLE_TIMEOUT: Duration = Duration::from_secs(10);
/// How many of those per host: few, since they take the room of connections to other hosts.
const IDLE_MAX: usize = 8;
/// Waits of which the guest says nothing: as in wasmtime's own client.
pub(super) const DEFAULT_TIMEOUT: Duration = Duration::from_secs(600);

/// A pool of connections; clones share it.
#[derive(Clone)]
pub(crate) struct Pool(Client<Connector, WasiBody>);

impl Pool {
    pub(crate) fn new(patterns: Arc<[HostPattern]>) -> Self {
        let client = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(IDLE_MAX)
            .pool_timer(TokioTimer::new())
            .build(Connector::new(patterns));
        Self(client)
    }

    /// Sends a request and answers with its head; the body follows.
    pub(crate) async fn send(
        &self,
        request: http::Request<WasiBody>,
        options: RequestOptions,
    ) -> Result<http::Response<WasiBody>, Error> {
        let first = options.first_byte_timeout.unwrap_or(DEFAULT_TIMEOUT);
        let answered = async {
            match options.connect_timeout {
                None => timeout(first, self.0.request(request)).await,
                Some(connect) => self.send_connected(request, connect, first).await?,
            }
            .map_err(|_| Error::ConnectionReadTimeout)?
            .map_err(meaning)
        };
        let response = answered.await?;
        Ok(response.map(|body| body.map_err(Error::from).boxed_unsync()))
    }

    /// The same with a limit on the time until there is a connection, a pooled or a new one. Only then the
    /// wait for the answer begins.
    async fn send_connected(
        &self,
        mut request: http::Request<WasiBody>,
        connect: Duration,
        first: Duration,
    ) -> Result<Answered, Error> {
        let mut connected = capture_connection(&mut request);
        let mut answer = pin!(self.0.request(request));
        let connecting = async { drop(connected.wait_for_connection_metadata().await) };
        tokio::select! {
            // That it failed is known here only, and is the better answer.
            biased;
            answered = &mut answer => return Ok(Ok(answered)),
            waited = timeout(connect, connecting) => waited.map_err(|_| Error::ConnectionTimeout)?,
        }
        Ok(timeout(first, answer).await)
    }
}

/// What the client says, or that it took too long.
type Answered =
    Result<Result<http::Response<Incoming>, hyper_util::client::legacy::Error>, Elapsed>;

/// What a failure of the client is to a guest.
fn meaning(error: hyper_util::client::legacy::Error) -> Error {
    tracing::debug!(
        error = &error as &dyn std::error::Error,
        "an outbound request failed"
    );
    let mut source = error.source();
    while let Some(cause) = source {
        if let Some(connect) = cause.downcast_ref::<ConnectError>() {
            return connect_meaning(connect);
        }
        if let Some(hyper) = cause.downcast_ref::<hyper::Error>() {
            return if hyper.is_timeout() {
                Error::HttpResponseTimeout
            } else if hyper.is_incomplete_message() {
                Error::HttpResponseIncomplete
            } else if hyper.is_closed() || hyper.is_canceled() {
                Error::ConnectionTerminated
            } else {
                Error::HttpProtocolError
            };
        }
        source = cause.source();
    }
    Error::InternalError(Some(error.to_string()))
}

fn connect_meaning(error: &ConnectError) -> Error {
    match error {
        ConnectError::NoHost => Error::HttpRequestUriInvalid,
        ConnectError::Resolve(_, source) => Error::DnsError {
            rcode: Some(source.to_string()),
            info_code: None,
        },
        ConnectError::Restricted { .. } => Error::DestinationIpProhibited,
        ConnectError::Tcp(source) => match source.kind() {
            std::io::ErrorKind::ConnectionRefused => Error::ConnectionRefused,
            std::io::ErrorKind::TimedOut => Error::ConnectionTimeout,
            std::io::ErrorKind::NotFound => Error::DestinationNotFound,
            _ => Error::DestinationUnavailable,
        },
        ConnectError::Tls(source) => {
            match source
                .get_ref()
                .and_then(|error| error.downcast_ref::<rustls::Error>())
            {
                Some(rustls::Error::InvalidCertificate(_)) => Error::TlsCertificateError,
                _ => Error::TlsProtocolError,
            }
        }
        ConnectError::Timeout => Error::ConnectionTimeout,
    }
}
