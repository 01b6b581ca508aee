//! One line of the debug log for each request. Knows nothing of how it is answered.

use std::time::Instant;

use http::{Method, Request, header};
use tracing::Level;
use wasmorch_api::WorkloadKey;

use crate::answer::Answer;
use crate::stats::ErrorClass;

/// A request as the access trace shows it.
pub(crate) struct Trace {
    method: Method,
    host: String,
    started: Instant,
}

impl Trace {
    /// Costs nothing unless someone looks.
    pub(crate) fn begin<B>(request: &Request<B>) -> Option<Self> {
        if !tracing::enabled!(Level::DEBUG) {
            return None;
        }
        let host = request
            .headers()
            .get(header::HOST)
            .and_then(|host| host.to_str().ok());
        let host = host
            .or_else(|| request.uri().host())
            .unwrap_or_default()
            .to_owned();
        Some(Self {
            method: request.method().clone(),
            host,
            started: Instant::now(),
        })
    }

    pub(crate) fn end(self, workload: Option<&WorkloadKey>, answer: &Answer) {
        tracing::debug!(
            method = %self.method,
            host = self.host,
            workload = workload.map(tracing::field::display),
            status = answer.status().as_u16(),
            error = answer.class().map(ErrorClass::as_str),
            ms = self.started.elapsed().as_secs_f64() * 1e3,
            "request"
        );
    }
}
