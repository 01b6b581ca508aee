//! The admin listener: `/healthz`, `/readyz`, `/metrics`, `/version`.
//!
//! Owns a small HTTP server for machines that watch this process. It changes nothing.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use wasmorch_api::LeaderId;

use crate::error::ControllerError;
use crate::link::Link;
use crate::metrics::Metrics;

/// A loop that has not turned for so long hangs: it turns five times a second.
const HUNG_AFTER: Duration = Duration::from_secs(10);
/// Watchers ask one thing at a time.
const CONNECTIONS_MAX: usize = 64;
/// Headers must come within this.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);

/// What the listener answers from.
#[derive(Debug, Clone)]
pub(crate) struct Admin {
    pub(crate) link: Link,
    pub(crate) metrics: Metrics,
    pub(crate) leader: LeaderId,
}

/// Binds the listener.
pub(crate) async fn bind(addr: SocketAddr) -> Result<TcpListener, ControllerError> {
    TcpListener::bind(addr)
        .await
        .map_err(|source| ControllerError::Admin { addr, source })
}

impl Admin {
    /// Serves until told to stop; connections end with it.
    pub(crate) async fn serve(self, listener: TcpListener, stop: CancellationToken) {
        let connections = TaskTracker::new();
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                accepted = listener.accept() => accepted,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of file descriptors: taking a breath beats spinning.
                    tracing::warn!(%error, "the admin listener cannot accept");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            if connections.len() >= CONNECTIONS_MAX {
                continue;
            }
            let (admin, stop) = (self.clone(), stop.clone());
            connections.spawn(async move {
                let service = service_fn(move |request| {
                    let response = admin.answer(&request);
                    async move { Ok::<_, Infallible>(response) }
                });
                let connection = hyper::server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(HEADER_TIMEOUT)
                    .serve_connection(TokioIo::new(stream), service);
                tokio::select! {
                    // A watcher that goes away is its own affair.
                    _ = connection => {}
                    () = stop.cancelled() => {}
                }
            });
        }
        connections.close();
        connections.wait().await;
    }

    fn answer<B>(&self, request: &Request<B>) -> Response<Full<Bytes>> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return text(
                StatusCode::METHOD_NOT_ALLOWED,
                "text/plain",
                "only GET\n".to_owned(),
            );
        }
        match request.uri().path() {
            "/healthz" => {
                let turned = self.metrics.since_turn();
                let status = if turned < HUNG_AFTER {
                    StatusCode::OK
                } else {
                    StatusCode::SERVICE_UNAVAILABLE
                };
                let body = serde_json::json!({ "turned_ms": turned.as_millis() as u64 });
                text(status, "application/json", format!("{body}\n"))
            }
            // Standing by is being ready: it will lead when it is its turn.
            "/readyz" => {
                let connected = self.link.is_connected();
                let status = if connected {
                    StatusCode::OK
                } else {
                    StatusCode::SERVICE_UNAVAILABLE
                };
                let body = serde_json::json!({
                    "nats": connected,
                    "leading": self.metrics.leading().is_some(),
                    "term": self.metrics.leading(),
                });
                text(status, "application/json", format!("{body}\n"))
            }
            "/metrics" => {
                let body = self.metrics.text(self.link.is_connected());
                text(StatusCode::OK, "text/plain; version=0.0.4", body)
            }
            "/version" => {
                let body = serde_json::json!({
                    "version": wasmorch_api::VERSION,
                    "leader": self.leader,
                });
                text(StatusCode::OK, "application/json", format!("{body}\n"))
            }
            _ => text(
                StatusCode::NOT_FOUND,
                "text/plain",
                "one of /healthz /readyz /metrics /version\n".to_owned(),
            ),
        }
    }
}

fn text(status: StatusCode, kind: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response
}
