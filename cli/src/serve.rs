//! A small HTTP server for `run --http`: one replica, no routes, no cluster.

use std::convert::Infallible;
use std::io::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulShutdown;
use serde_json::json;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::timeout;
use wasmorch_runtime::{Body, BodySide, Ended, HttpReplica, LogLine, LogSink, LogStream};

use crate::commands::{Context, Interrupt};
use crate::error::{CliError, Exit};
use crate::out::human::harmless;
use crate::out::table::Tone;

/// Open connections at once; beyond it new ones wait in the kernel.
const CONNECTIONS_MAX: usize = 1024;
/// A client has so long for the head of a request, its pause before that included.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// After Ctrl-C, requests in hand may take this long.
const DRAIN: Duration = Duration::from_secs(5);

/// Listens, or says who is in the way.
pub(crate) fn listen(address: SocketAddr) -> Result<TcpListener, CliError> {
    TcpListener::bind(address).map_err(|error| bind_error("--http", address, &error))
}

/// Why an address cannot be listened on.
pub(crate) fn bind_error(flag: &str, address: SocketAddr, error: &std::io::Error) -> CliError {
    if error.kind() == std::io::ErrorKind::AddrInUse {
        return CliError::new(
            Exit::BLOCKED,
            format!("port {} is in use", address.port()),
            format!("another process listens on {address}"),
            format!("pass another {flag}, or port 0 for a free one"),
        );
    }
    let exit = match error.kind() {
        std::io::ErrorKind::PermissionDenied => Exit::DENIED,
        _ => Exit::USAGE,
    };
    CliError::new(
        exit,
        format!("cannot listen on {address}"),
        error.to_string(),
        "",
    )
}

/// Serves until Ctrl-C.
pub(crate) async fn serve(
    ctx: &Context,
    listener: TcpListener,
    replica: HttpReplica,
    interrupt: &mut Interrupt,
) -> Result<Exit, CliError> {
    let wrong = |error: std::io::Error| {
        CliError::new(
            Exit::BLOCKED,
            "the listener cannot be used",
            error.to_string(),
            "",
        )
    };
    listener.set_nonblocking(true).map_err(wrong)?;
    let listener = tokio::net::TcpListener::from_std(listener).map_err(wrong)?;
    let url = format!("http://{}/", listener.local_addr().map_err(wrong)?);
    if ctx.out.is_json() {
        ctx.out.json_line(&json!({ "url": url }))?;
    } else {
        ctx.out.line(&url)?;
    }
    let replica = Arc::new(replica);
    let mut server = Builder::new(TokioExecutor::new());
    // Whoever has sent all may close its half, and is answered. One that is gone is noticed when something
    // is sent to it: its request ends within `--timeout` all the same.
    server
        .http1()
        .half_close(true)
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT);
    let graceful = GracefulShutdown::new();
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let full = connections.len() >= CONNECTIONS_MAX;
        tokio::select! {
            () = interrupt.next() => break,
            _ = connections.join_next(), if full => {}
            accepted = listener.accept(), if !full => {
                // One that broke off, or no file handle is free: the next may go well.
                let Ok((stream, _)) = accepted else {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    continue;
                };
                // An answer in several small pieces would wait 40 ms for the client's delayed ACK.
                if stream.set_nodelay(true).is_err() {
                    continue;
                }
                let replica = replica.clone();
                let began = Arc::new(Notify::new());
                let asks = began.clone();
                let service = service_fn(move |request| {
                    asks.notify_one();
                    answer(replica.clone(), request)
                });
                let io = TokioIo::new(stream);
                let connection = server.serve_connection(io, service).into_owned();
                let connection = graceful.watch(connection);
                // Before hyper knows which protocol it is, it waits for as long as it takes.
                let silent = async move {
                    if timeout(HEAD_TIMEOUT, began.notified()).await.is_ok() {
                        std::future::pending().await
                    }
                };
                connections.spawn(async move {
                    tokio::select! {
                        // The client's own doing: it went away.
                        _ = connection => {}
                        () = silent => {}
                    }
                });
            }
        }
    }
    drop(listener);
    let drained = async {
        graceful.shutdown().await;
        while connections.join_next().await.is_some() {}
    };
    tokio::select! {
        () = drained => {}
        () = interrupt.next() => {}
        () = tokio::time::sleep(DRAIN) => {}
    }
    replica.stop();
    Ok(Exit::OK)
}

async fn answer(
    replica: Arc<HttpReplica>,
    request: http::Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    if !has_host(&request) {
        return Ok(plain(
            StatusCode::BAD_REQUEST,
            "the request names no host\n",
        ));
    }
    let what = format!("{} {}", request.method(), request.uri());
    let request = request.map(|body| body.map_err(Into::into).boxed_unsync());
    match replica.handle(request).await {
        // What breaks off later can be told here alone.
        Ok(response) => Ok(response.map(|body| {
            let told = body.inspect_err(move |error| match error.downcast_ref::<Ended>() {
                None | Some(Ended::Stopped) => {}
                Some(ended) => warn(&format!("{}: {ended}", harmless(&what))),
            });
            told.boxed_unsync()
        })),
        Err(ended) => {
            warn(&format!("{}: {ended}", harmless(&what)));
            Ok(refusal(&ended))
        }
    }
}

fn refusal(ended: &Ended) -> Response<Body> {
    let status = match ended {
        Ended::Busy { .. } | Ended::HostFull { .. } | Ended::Stopped => {
            StatusCode::SERVICE_UNAVAILABLE
        }
        Ended::Timeout { .. } | Ended::CallerTimeout { .. } => StatusCode::GATEWAY_TIMEOUT,
        Ended::BodyTooLarge {
            side: BodySide::Request,
            ..
        } => StatusCode::PAYLOAD_TOO_LARGE,
        Ended::RequestBroken(_) => StatusCode::BAD_REQUEST,
        Ended::RequestTimeout { .. } => StatusCode::REQUEST_TIMEOUT,
        // As a gateway has it, so that what is tried out here looks the same there.
        _ => StatusCode::BAD_GATEWAY,
    };
    let mut response = plain(status, format!("{ended}\n"));
    if let Ended::Busy { retry_after, .. } | Ended::HostFull { retry_after, .. } = ended {
        let seconds = header::HeaderValue::from(retry_after.as_secs().max(1));
        response.headers_mut().insert(header::RETRY_AFTER, seconds);
    }
    response
}

fn plain(status: StatusCode, text: impl Into<Bytes>) -> Response<Body> {
    let body = Full::new(text.into()).map_err(|never: Infallible| match never {});
    let mut response = Response::new(body.boxed_unsync());
    *response.status_mut() = status;
    let plain = header::HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response
}

/// A guest of 0.2 cannot be called without.
fn has_host<B>(request: &http::Request<B>) -> bool {
    let named = request.headers().get(header::HOST);
    request.uri().authority().is_some() || named.is_some_and(|host| host.to_str().is_ok())
}

fn warn(text: &str) {
    // When nobody reads stderr there is nobody to tell.
    let _ = writeln!(
        anstream::stderr().lock(),
        "{} {text}",
        Tone::Warn.paint("warning:")
    );
}

/// A guest's lines on our stderr, so that stdout keeps the URL alone.
pub(crate) struct StderrLogs;

impl LogSink for StderrLogs {
    fn line(&self, line: LogLine) {
        let tone = match line.stream {
            LogStream::Stdout => Tone::Plain,
            LogStream::Stderr | LogStream::Wasi(_) => Tone::Dim,
        };
        let _ = writeln!(
            anstream::stderr().lock(),
            "{}",
            tone.paint(&harmless(&line.text))
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_have_their_status() {
        let timeout = Ended::Timeout {
            limit: Duration::from_secs(1),
            throttled: Duration::ZERO,
        };
        assert_eq!(refusal(&timeout).status(), 504);
        let busy = Ended::Busy {
            concurrency: 1,
            queue: 0,
            retry_after: Duration::from_millis(10),
        };
        let response = refusal(&busy);
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()[header::RETRY_AFTER], "1");
        assert_eq!(refusal(&Ended::NoResponse).status(), 502);
        let broken = Ended::RequestBroken("invalid chunk size".into());
        assert_eq!(refusal(&broken).status(), 400);
    }

    #[test]
    fn a_port_in_use_is_named() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let error = listen(address).unwrap_err();
        assert_eq!(error.exit, Exit::BLOCKED);
        assert!(error.what.contains(&address.port().to_string()));
    }
}
