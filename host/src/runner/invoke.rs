//! Calls of a workload by NATS request: `wasmorch.v1.invoke.<ns>.<workload>`.
//!
//! ```text
//!   Wasmorch-Method, Wasmorch-Path, other headers, body ──> http request ──> a replica here
//!   Wasmorch-Status, headers, body <── http response     or Nats-Service-Error(-Code), {"error":..}
//! ```
//!
//! Every http replica that is ready is a member of its workload's queue group, so calls are shared
//! in proportion to replicas. Every call with a reply subject is answered.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderName, HeaderValue, Method, Request, Response, Uri, header};
use http_body_util::{BodyExt as _, Full};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio_util::sync::CancellationToken;
use wasmorch_api::error::ErrorBody;
use wasmorch_api::{ApiError, ErrorCode, WorkloadKey, subjects};
use wasmorch_gateway::{Body, Local as _, LocalError};
use wasmorch_runtime::Ended;

use super::allow;
use super::intake::{Bounds, take_in};
use super::link::{Delivery, LinkError};
use super::messages::queue_group;
use super::replica::Life;
use super::supervisor::Context;

/// The request's method; GET without a body and POST with one unless given.
const METHOD: &str = "Wasmorch-Method";
/// The request's path and query; `/` unless given.
const PATH: &str = "Wasmorch-Path";
/// The response's status.
const STATUS: &str = "Wasmorch-Status";
/// Headers of a refusal, as NATS tools show them.
const ERROR: &str = "Nats-Service-Error";
const ERROR_CODE: &str = "Nats-Service-Error-Code";
/// The largest message before the server has said what it takes: the default of nats-server.
const PAYLOAD_MAX: usize = 1 << 20;
/// Before a subscription that was refused is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Who is called.
#[derive(Debug, Clone)]
pub(super) struct Callee {
    workload: WorkloadKey,
    /// The `Host` of calls that give none.
    host: String,
    /// Its gate has the seats that count; these bound what is under way to it.
    bounds: Bounds,
    /// It may rest when a call comes, which wakes it.
    rests: bool,
}

impl Callee {
    pub(super) fn of(life: &Life) -> Self {
        let resources = &life.launch.spec.resources;
        Self {
            workload: life.replica.workload.clone(),
            host: life.host_name(),
            bounds: Bounds::new(resources.concurrency, resources.queue),
            rests: life.launch.spec.standbys() > 0,
        }
    }
}

/// Takes calls whenever the replica is ready, and says so in `listening`, until `draining` is
/// cancelled and what was taken is answered.
pub(super) async fn serve(
    context: Arc<Context>,
    callee: Callee,
    mut ready: watch::Receiver<bool>,
    listening: watch::Sender<bool>,
    draining: CancellationToken,
) {
    if !context.link.is_configured() {
        return;
    }
    let subject = subjects::invoke(&callee.workload);
    let group = queue_group(&callee.workload);
    let callee = Arc::new(callee);
    while !draining.is_cancelled() {
        let waited = tokio::select! {
            () = draining.cancelled() => return,
            waited = until_ready(&mut ready) => waited,
        };
        if !waited {
            return;
        }
        // Boxed, as all that is over soon: there is such a task for every replica, and most do nothing.
        let feed = match Box::pin(context.link.subscribe(&subject, &group)).await {
            Ok(feed) => feed,
            Err(error) => {
                tracing::warn!(subject, %error, "calls cannot be taken");
                tokio::select! {
                    () = draining.cancelled() => return,
                    () = tokio::time::sleep(RETRY_AFTER) => continue,
                }
            }
        };
        let until = draining.child_token();
        let confirmed = async {
            if let Err(error) = Box::pin(confirmed(&context)).await {
                tracing::debug!(subject, %error, "calls are perhaps not taken yet");
            }
            listening.send_replace(true);
            std::future::pending::<()>().await;
        };
        let answer = |call: Delivery, seat| {
            let answering = answer(context.clone(), callee.clone(), call);
            async move {
                let _seat: OwnedSemaphorePermit = seat;
                answering.await;
            }
        };
        let shed = |call: Delivery| shed(context.clone(), callee.clone(), call);
        let mut taking = std::pin::pin!(take_in(
            vec![feed],
            Arc::new(callee.bounds.clone()),
            until.clone(),
            answer,
            shed
        ));
        let ended = tokio::select! {
            () = &mut taking => true,
            _ = ready.wait_for(|ready| !*ready) => false,
            () = confirmed => false,
        };
        listening.send_replace(false);
        if !ended {
            until.cancel();
            taking.await;
        }
    }
}

/// Returns once the server has taken the subscription, however long it is out of reach.
async fn confirmed(context: &Context) -> Result<(), LinkError> {
    context.link.connected().await?;
    context.link.confirm().await
}

/// `false`: whoever probes it is gone, so it will never be ready again.
async fn until_ready(ready: &mut watch::Receiver<bool>) -> bool {
    ready.wait_for(|ready| *ready).await.is_ok()
}

async fn answer(context: Arc<Context>, callee: Arc<Callee>, call: Delivery) {
    let reply = call.reply.clone().filter(|reply| allow::may_answer(reply));
    let workload = &callee.workload;
    if callee.rests && context.locals.ready(workload) == 0 {
        // In vain: another host may have been woken meanwhile, and is asked.
        context.locals.wake(workload).await;
    }
    let outcome = match request(call, &callee.host) {
        Err(refusal) => Err(refusal),
        Ok(request) => match handle(&context, workload, request).await {
            Err(refusal) => Err(refusal),
            Ok(response) => {
                let room = context.link.max_payload().unwrap_or(PAYLOAD_MAX);
                collect(workload, response, room).await
            }
        },
    };
    let Some(reply) = reply else { return };
    let answer = match outcome {
        Ok((headers, body)) => Delivery {
            subject: reply,
            reply: None,
            headers,
            body,
        },
        Err(refusal) => error(reply, refusal),
    };
    send(&context, answer).await;
}

/// By a replica here; by one elsewhere when none here has taken it: the one that was called drains.
async fn handle(
    context: &Context,
    workload: &WorkloadKey,
    request: Request<Body>,
) -> Result<Response<Body>, ApiError> {
    match context.locals.handle(workload, request).await {
        Ok(response) => Ok(response),
        Err(LocalError::NotHere(request) | LocalError::Refused(request)) => {
            Ok(context.gateway.dispatch(workload, request).await)
        }
        Err(error) => Err(refusal(workload, &error)),
    }
}

async fn shed(context: Arc<Context>, callee: Arc<Callee>, call: Delivery) {
    let Some(reply) = call.reply.filter(|reply| allow::may_answer(reply)) else {
        return;
    };
    let refusal = ApiError::new(
        ErrorCode::Busy,
        format!("{} was not called", callee.workload),
        "every seat and every place in its queue on this host is taken",
        "try again, or raise resources.concurrency, resources.queue or the number of replicas",
    );
    send(&context, error(reply, refusal)).await;
}

async fn send(context: &Context, answer: Delivery) {
    match context.link.publish(answer).await {
        Ok(()) => {}
        Err(LinkError::Disconnected) => tracing::debug!("NATS was lost before an answer was sent"),
        Err(error) => tracing::warn!(%error, "an answer could not be sent"),
    }
}

/// The http request that a call stands for.
fn request(call: Delivery, host: &str) -> Result<Request<Body>, ApiError> {
    let invalid = |what: String| {
        let fix = format!("{METHOD} is a word like GET, {PATH} begins with `/`");
        ApiError::new(ErrorCode::Invalid, "the call is no HTTP request", what, fix)
    };
    let default = if call.body.is_empty() {
        Method::GET
    } else {
        Method::POST
    };
    let method = match call.header(METHOD) {
        None => default,
        Some(text) => text
            .parse::<Method>()
            .ok()
            .filter(|method| *method != Method::CONNECT)
            .ok_or_else(|| invalid(format!("{METHOD} `{text}` is no method")))?,
    };
    let path = call.header(PATH).unwrap_or("/");
    let uri = path
        .parse::<Uri>()
        .ok()
        .filter(|uri| path.starts_with('/') && uri.authority().is_none());
    let uri = uri.ok_or_else(|| invalid(format!("{PATH} `{path}` is no path")))?;
    let mut request = Request::new(());
    *request.method_mut() = method;
    *request.uri_mut() = uri;
    let headers = request.headers_mut();
    for (name, value) in call.headers.iter().filter(|(name, _)| passes(name)) {
        let name = name
            .parse::<HeaderName>()
            .map_err(|_| invalid(format!("header name `{name}`")))?;
        let value = value
            .parse::<HeaderValue>()
            .map_err(|_| invalid(format!("the value of header `{name}`")))?;
        headers.append(name, value);
    }
    if !headers.contains_key(header::HOST)
        && let Ok(host) = host.parse()
    {
        headers.insert(header::HOST, host);
    }
    if !call.body.is_empty() {
        headers.insert(header::CONTENT_LENGTH, call.body.len().into());
    }
    Ok(request.map(|()| {
        Full::new(call.body)
            .map_err(|never| match never {})
            .boxed_unsync()
    }))
}

/// Whether a header goes through: not our own, and not what belongs to one HTTP connection.
fn passes(name: &str) -> bool {
    const NOT: [&str; 12] = [
        METHOD,
        PATH,
        STATUS,
        "Connection",
        "Content-Length",
        "Keep-Alive",
        "Proxy-Connection",
        "TE",
        "Trailer",
        "Transfer-Encoding",
        "Upgrade",
        "Wasmorch-Host",
    ];
    !NOT.iter().any(|not| not.eq_ignore_ascii_case(name))
}

/// The whole response, when one message holds it.
async fn collect(
    workload: &WorkloadKey,
    response: Response<Body>,
    room: usize,
) -> Result<(Vec<(String, String)>, Bytes), ApiError> {
    let (head, mut body) = response.into_parts();
    let mut headers = vec![(STATUS.to_owned(), head.status.as_u16().to_string())];
    for (name, value) in &head.headers {
        if passes(name.as_str()) {
            let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
            headers.push((name.to_string(), value));
        }
    }
    // What the header block of a NATS message needs: its first line, then `name: value` lines.
    let head_bytes: usize = headers
        .iter()
        .map(|(name, value)| name.len() + value.len() + 4)
        .sum::<usize>()
        + 16;
    let mut collected = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            let why = format!("the response broke off: {error}");
            ApiError::new(
                ErrorCode::Internal,
                format!("{workload} failed"),
                why,
                "see its logs",
            )
        })?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        if head_bytes + collected.len() + data.len() > room {
            return Err(too_large(workload, room));
        }
        collected.extend_from_slice(&data);
    }
    if head_bytes > room {
        return Err(too_large(workload, room));
    }
    Ok((headers, collected.freeze()))
}

fn too_large(workload: &WorkloadKey, room: usize) -> ApiError {
    ApiError::new(
        ErrorCode::TooLarge,
        format!("the answer of {workload} is too large for a NATS message"),
        format!("the server takes {room} bytes, headers included"),
        "ask by HTTP, or raise max_payload of the server",
    )
}

/// Why a replica here did not answer.
fn refusal(workload: &WorkloadKey, error: &LocalError) -> ApiError {
    let (code, fix) = match error {
        // Not executed, and so answered elsewhere.
        LocalError::NotHere(_) | LocalError::Refused(_) => (ErrorCode::Unavailable, "try again"),
        LocalError::Busy { .. } => (ErrorCode::Busy, "try again"),
        LocalError::TimedOut { .. } => (ErrorCode::Unavailable, ""),
        LocalError::TooLarge { .. } => (ErrorCode::TooLarge, ""),
        LocalError::Failed { .. } => (ErrorCode::Internal, "see its logs"),
    };
    ApiError::new(
        code,
        format!("{workload} did not answer"),
        error.to_string(),
        fix,
    )
}

/// The answer to a message that was not handled.
pub(super) fn failure(reply: String, subject: &str, ended: &Ended) -> Delivery {
    let code = match ended {
        Ended::Busy { .. } | Ended::HostFull { .. } => ErrorCode::Busy,
        Ended::BodyTooLarge { .. } => ErrorCode::TooLarge,
        Ended::Timeout { .. } | Ended::CallerTimeout { .. } | Ended::Stopped => {
            ErrorCode::Unavailable
        }
        _ => ErrorCode::Internal,
    };
    let what = format!("the message on `{subject}` was not handled");
    error(reply, ApiError::new(code, what, ended.to_string(), ""))
}

/// The answer to a call that the guest handled without answering.
pub(super) fn empty(reply: String) -> Delivery {
    let headers = vec![(STATUS.to_owned(), "204".to_owned())];
    Delivery {
        subject: reply,
        reply: None,
        headers,
        body: Bytes::new(),
    }
}

/// A refusal in the shape of the API.
fn error(reply: String, refusal: ApiError) -> Delivery {
    let code = refusal.code.number().to_string();
    // A header is one line.
    let what: String = refusal
        .what
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    let body = serde_json::to_vec(&ErrorBody { error: refusal })
        .expect("a refusal holds texts and numbers, which are always JSON");
    let headers = vec![
        (ERROR.to_owned(), what),
        (ERROR_CODE.to_owned(), code.clone()),
        (STATUS.to_owned(), code),
    ];
    Delivery {
        subject: reply,
        reply: None,
        headers,
        body: body.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(headers: &[(&str, &str)], body: &'static str) -> Delivery {
        let headers = headers
            .iter()
            .map(|(n, v)| ((*n).to_owned(), (*v).to_owned()))
            .collect();
        Delivery {
            headers,
            body: Bytes::from_static(body.as_bytes()),
            ..Delivery::default()
        }
    }

    fn workload() -> WorkloadKey {
        WorkloadKey::new("shop".parse().unwrap(), "web".parse().unwrap())
    }

    fn response(body: &'static [u8]) -> Response<Body> {
        let body = Full::new(Bytes::from_static(body)).map_err(|never| match never {});
        Response::builder()
            .status(201)
            .header("x-a", "1")
            .body(body.boxed_unsync())
            .unwrap()
    }

    #[test]
    fn a_call_is_a_get_or_a_post_to_the_root() {
        let get = request(call(&[], ""), "web.shop.localhost").unwrap();
        assert_eq!((get.method(), get.uri().path()), (&Method::GET, "/"));
        assert_eq!(get.headers()[header::HOST], "web.shop.localhost");
        let post = request(call(&[], "x"), "h").unwrap();
        assert_eq!(post.method(), Method::POST);
        assert_eq!(post.headers()[header::CONTENT_LENGTH], "1");
    }

    #[test]
    fn headers_choose_method_and_path_and_the_rest_go_through() {
        let headers = [
            ("wasmorch-method", "PUT"),
            ("Wasmorch-Path", "/a?b=c"),
            ("X-Own", "1"),
            ("Host", "other"),
            ("Transfer-Encoding", "chunked"),
        ];
        let put = request(call(&headers, "x"), "h").unwrap();
        assert_eq!(put.method(), Method::PUT);
        assert_eq!(put.uri().path_and_query().unwrap(), "/a?b=c");
        assert_eq!(put.headers()["x-own"], "1");
        assert_eq!(put.headers()[header::HOST], "other");
        assert!(!put.headers().contains_key(header::TRANSFER_ENCODING));
        assert!(!put.headers().contains_key("wasmorch-path"));
    }

    #[test]
    fn what_is_no_request_is_refused() {
        for bad in [
            [(METHOD, "G T")],
            [(METHOD, "CONNECT")],
            [(PATH, "x")],
            [(PATH, "http://x/")],
            [(PATH, "/ x")],
        ] {
            let refused = request(call(&bad, ""), "h").unwrap_err();
            assert_eq!(refused.code, ErrorCode::Invalid, "{bad:?}");
        }
    }

    #[tokio::test]
    async fn an_answer_fits_one_message_or_is_too_large() {
        let (headers, body) = collect(&workload(), response(b"hello"), 1000)
            .await
            .unwrap();
        assert_eq!(body, "hello");
        assert_eq!(headers[0], (STATUS.to_owned(), "201".to_owned()));
        assert!(headers.contains(&("x-a".to_owned(), "1".to_owned())));
        let refused = collect(&workload(), response(&[0; 1000]), 1000)
            .await
            .unwrap_err();
        assert_eq!(refused.code, ErrorCode::TooLarge);
    }

    #[test]
    fn a_refusal_has_the_shape_of_the_api() {
        let answer = error(
            "_INBOX.1".into(),
            ApiError::new(ErrorCode::TooLarge, "a\nb", "", ""),
        );
        assert_eq!(answer.header(ERROR), Some("a b"));
        assert_eq!(answer.header(ERROR_CODE), Some("413"));
        let body: ErrorBody = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!(body.error.code, ErrorCode::TooLarge);
    }
}
