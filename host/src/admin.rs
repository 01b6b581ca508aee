//! The admin listener: is it alive, is it ready, what does it do, which version is it.
//!
//! Owns the four pages. It reads what the driver left in [`View`] and asks nobody, so that it
//! answers when everything else is stuck; and that is what `/healthz` tells.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use wasmorch_api::{LeaderId, Term, VERSION};
use wasmorch_gateway::{ErrorClass, Stats};

use crate::agent::Pulse;
use crate::runner::protocol::CodeStats;

/// A loop that has not turned for so long is stuck.
const STUCK: Duration = Duration::from_secs(10);
/// Connections at once; beyond, the oldest wait in the system's queue.
const CONNECTIONS_MAX: usize = 32;
/// A client that does not send its request is let go.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);

/// What the driver leaves for the admin pages.
#[derive(Debug, Clone)]
pub(crate) struct View {
    /// When the driver's loop last turned.
    pub turned: Instant,
    /// The runner answers.
    pub runner: bool,
    /// Everything that was held at the start has been started.
    pub settled: bool,
    /// It was told to end, and answers what it has in hand.
    pub leaving: bool,
    /// NATS is there.
    pub nats: bool,
    /// The leader last heard of.
    pub leader: Option<LeaderId>,
    /// The highest term seen.
    pub term: Term,
    /// The agent's numbers.
    pub pulse: Pulse,
    /// The gateway's counters.
    pub gateway: Stats,
    /// The code that runners have loaded.
    pub code: CodeStats,
    /// The highest store sequence in the gateway's tables.
    pub table_seq: u64,
    /// Log lines dropped.
    pub logs_dropped: u64,
    /// Reports that the connection did not take.
    pub reports_dropped: u64,
    /// Times the runner was started again.
    pub runner_restarts: u64,
}

impl Default for View {
    fn default() -> Self {
        Self {
            turned: Instant::now(),
            runner: false,
            settled: false,
            leaving: false,
            nats: false,
            leader: None,
            term: Term(0),
            pulse: Pulse::default(),
            gateway: Stats::default(),
            code: CodeStats::default(),
            table_seq: 0,
            logs_dropped: 0,
            reports_dropped: 0,
            runner_restarts: 0,
        }
    }
}

/// The view, shared. Locked only to copy it in or out.
#[derive(Debug, Clone, Default)]
pub(crate) struct Views(Arc<Mutex<View>>);

impl Views {
    /// Leaves a new view.
    pub(crate) fn set(&self, view: View) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = view;
    }

    fn get(&self) -> View {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// Before connections are accepted again after that failed.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// Answers until `stop`.
pub(crate) async fn serve(listener: TcpListener, views: Views, stop: CancellationToken) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => {
                let Ok((stream, _)) = accepted else {
                    // No descriptor is free: asking again at once would take a core.
                    tokio::time::sleep(ACCEPT_AGAIN).await;
                    continue;
                };
                let views = views.clone();
                connections.spawn(async move {
                    let service = service_fn(|request: Request<Incoming>| {
                        let response = respond(request.method(), request.uri().path(), &views.get());
                        async { Ok::<_, Infallible>(response) }
                    });
                    let connection = hyper::server::conn::http1::Builder::new()
                        .timer(TokioTimer::new())
                        .header_read_timeout(HEADER_TIMEOUT)
                        .serve_connection(TokioIo::new(stream), service);
                    if let Err(error) = connection.await {
                        tracing::debug!(%error, "admin connection");
                    }
                });
            }
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
        }
    }
}

fn respond(method: &Method, path: &str, view: &View) -> Response<Full<Bytes>> {
    const JSON: &str = "application/json";
    if method != Method::GET && method != Method::HEAD {
        return page(
            StatusCode::METHOD_NOT_ALLOWED,
            "text/plain",
            "only GET\n".into(),
        );
    }
    let ok = |good: bool| {
        if good {
            StatusCode::OK
        } else {
            StatusCode::SERVICE_UNAVAILABLE
        }
    };
    match path {
        "/healthz" => {
            // At last nothing turns but what ends it, and that has a time of its own.
            let turns = view.leaving || view.turned.elapsed() < STUCK;
            let body = serde_json::json!({ "turns": turns, "runner": view.runner });
            page(ok(turns), JSON, body.to_string())
        }
        "/readyz" => {
            // Without NATS the host serves what it holds, and stays ready.
            let ready = view.runner && view.settled && !view.leaving;
            let body = serde_json::json!({
                "ready": ready, "leaving": view.leaving, "nats": view.nats, "leader": view.leader,
                "term": view.term,
            });
            page(ok(ready), JSON, body.to_string())
        }
        "/version" => page(
            StatusCode::OK,
            JSON,
            serde_json::json!({ "version": VERSION }).to_string(),
        ),
        "/metrics" => page(StatusCode::OK, "text/plain; version=0.0.4", metrics(view)),
        _ => {
            let pages = "no such page: /healthz /readyz /metrics /version\n";
            page(StatusCode::NOT_FOUND, "text/plain", pages.into())
        }
    }
}

fn page(status: StatusCode, kind: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response
}

/// Prometheus text, version 0.0.4.
fn metrics(view: &View) -> String {
    let (pulse, gateway, code) = (&view.pulse, &view.gateway, &view.code);
    let [.., server_errors] = gateway.answers;
    let nats = u64::from(view.nats);
    let rows = [
        ("replicas", "Live replicas.", pulse.replicas),
        ("replicas_ready", "Replicas that serve.", pulse.ready),
        (
            "memory_bytes",
            "Memory of all replicas.",
            pulse.memory_bytes,
        ),
        (
            "cpu_millis",
            "Cpu of all replicas, thousandths of a core.",
            pulse.cpu_millis,
        ),
        (
            "gateway_requests_total",
            "Requests accepted.",
            gateway.requests,
        ),
        (
            "gateway_errors_total",
            "Answers of 500 and above.",
            server_errors,
        ),
        (
            "gateway_forwarded_total",
            "Requests sent on to another host.",
            gateway.forwarded,
        ),
        (
            "gateway_retried_total",
            "Further tries of requests.",
            gateway.retried,
        ),
        ("gateway_in_flight", "Requests in hand.", gateway.in_flight),
        (
            "gateway_ejected_total",
            "Times a host was left alone for a while.",
            gateway.ejected,
        ),
        (
            "gateway_tunnelled_total",
            "Connections to other hosts that went through NATS.",
            gateway.tunnelled,
        ),
        (
            "gateway_connections_total",
            "Connections accepted.",
            gateway.connections,
        ),
        (
            "gateway_connections_refused_total",
            "Connections turned away for being too many.",
            gateway.connections_refused,
        ),
        (
            "gateway_connections_open",
            "Open connections.",
            gateway.connections_open,
        ),
        (
            "code_loaded",
            "Artifacts whose compiled code is in memory, in each runner.",
            code.artifacts,
        ),
        (
            "code_loaded_bytes",
            "What that takes; runners share most of it.",
            code.bytes,
        ),
        (
            "code_loads_total",
            "Times that compiled code was loaded.",
            code.loads,
        ),
        (
            "code_unloads_total",
            "Times that unused code was unloaded.",
            code.unloads,
        ),
        ("nats_up", "Whether NATS is there.", nats),
        ("term", "The highest term seen.", view.term.0),
        (
            "placements_sequence",
            "Store sequence of the set that is held.",
            pulse.sequence,
        ),
        (
            "tables_sequence",
            "Highest store sequence in the routing tables.",
            view.table_seq,
        ),
        (
            "log_lines_dropped_total",
            "Log lines that were not kept.",
            view.logs_dropped,
        ),
        (
            "reports_dropped_total",
            "Reports that NATS did not take.",
            view.reports_dropped,
        ),
        (
            "runner_restarts_total",
            "Times the runner was started again.",
            view.runner_restarts,
        ),
    ];
    let mut text = String::new();
    for (name, help, value) in rows {
        begin(&mut text, name, help);
        // Writing to a String does not fail.
        let _ = writeln!(text, "wasmorch_host_{name} {value}");
    }
    let name = "gateway_refusals_total";
    begin(
        &mut text,
        name,
        "Errors that the gateway answered with itself, by wasmorch-error.",
    );
    for class in ErrorClass::ALL {
        let (error, count) = (class.as_str(), gateway.errors_of(class));
        let _ = writeln!(text, "wasmorch_host_{name}{{error=\"{error}\"}} {count}");
    }
    text
}

/// What is said of a metric before its values. What only grows says so by its name.
fn begin(text: &mut String, name: &str, help: &str) {
    let kind = match name.ends_with("_total") {
        true => "counter",
        false => "gauge",
    };
    let _ = writeln!(
        text,
        "# HELP wasmorch_host_{name} {help}\n# TYPE wasmorch_host_{name} {kind}"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(path: &str, view: &View) -> u16 {
        respond(&Method::GET, path, view).status().as_u16()
    }

    #[test]
    fn ready_is_about_what_is_held_and_not_about_nats() {
        let mut view = View {
            runner: true,
            ..View::default()
        };
        assert_eq!(status("/readyz", &view), 503);
        view.settled = true;
        assert_eq!((view.nats, status("/readyz", &view)), (false, 200));
        view.runner = false;
        assert_eq!(status("/readyz", &view), 503);
        (view.runner, view.leaving) = (true, true);
        assert_eq!(status("/readyz", &view), 503);
    }

    #[test]
    fn healthy_is_a_loop_that_turns() {
        let mut view = View::default();
        assert_eq!(status("/healthz", &view), 200);
        let Some(long_ago) = Instant::now().checked_sub(STUCK * 2) else {
            return;
        };
        view.turned = long_ago;
        assert_eq!(status("/healthz", &view), 503);
        view.leaving = true;
        assert_eq!(status("/healthz", &view), 200);
    }

    #[test]
    fn other_pages() {
        let view = View::default();
        assert_eq!(status("/version", &view), 200);
        assert_eq!(status("/", &view), 404);
        assert_eq!(
            respond(&Method::POST, "/healthz", &view).status().as_u16(),
            405
        );
    }

    #[test]
    fn what_is_counted_is_shown() {
        let mut view = View {
            nats: true,
            ..View::default()
        };
        let gateway = &mut view.gateway;
        (gateway.ejected, gateway.retried, gateway.tunnelled) = (1, 2, 3);
        (gateway.connections_refused, gateway.connections_open) = (4, 5);
        gateway.answers = [0, 0, 0, 6];
        gateway.errors[ErrorClass::Busy as usize] = 7;
        let text = metrics(&view);
        for line in [
            "nats_up 1",
            "gateway_ejected_total 1",
            "gateway_retried_total 2",
            "gateway_tunnelled_total 3",
            "gateway_connections_refused_total 4",
            "gateway_connections_open 5",
            "gateway_errors_total 6",
            "gateway_refusals_total{error=\"busy\"} 7",
            "gateway_refusals_total{error=\"lost\"} 0",
        ] {
            let line = format!("\nwasmorch_host_{line}\n");
            assert!(text.contains(&line), "{line}: {text}");
        }
        assert!(text.contains("# TYPE wasmorch_host_gateway_ejected_total counter\n"));
        assert!(text.contains("# TYPE wasmorch_host_gateway_in_flight gauge\n"));
    }
}
