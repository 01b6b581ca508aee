//! What a call by NATS means as HTTP, and what an answer means as a NATS message.

use bytes::{Bytes, BytesMut};
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full};
use wasmorch_api::error::ErrorBody;
use wasmorch_api::{ApiError, ErrorCode, WorkloadKey};
use wasmorch_gateway::{Body, ErrorClass};
use wasmorch_runtime::Ended;

use super::Delivery;

/// The request's method; GET without a body and POST with one unless given.
const METHOD: &str = "Wasmorch-Method";
/// The request's path and query; `/` unless given.
const PATH: &str = "Wasmorch-Path";
/// The response's status.
const STATUS: &str = "Wasmorch-Status";
/// Headers of a refusal, as NATS tools show them.
const ERROR: &str = "Nats-Service-Error";
const ERROR_CODE: &str = "Nats-Service-Error-Code";
/// What a gateway says for people, headers included, is no longer.
const WHY_BYTES_MAX: usize = 4 * 1024;

/// The http request that a call stands for.
pub(super) fn request(call: Delivery, host: &str) -> Result<Request<Body>, ApiError> {
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

/// Why a call has no answer of a guest. Where a gateway says so the status is its own, as any client of it
/// sees it; else that of the code.
#[derive(Debug)]
pub(super) struct Refusal {
    error: ApiError,
    status: Option<StatusCode>,
}

impl From<ApiError> for Refusal {
    fn from(error: ApiError) -> Self {
        Self {
            error,
            status: None,
        }
    }
}

/// A guest's answer; or why there is none, when a gateway says so in its place.
pub(super) async fn answered(
    workload: &WorkloadKey,
    response: Response<Body>,
) -> Result<Response<Body>, Refusal> {
    let Some(class) = ErrorClass::of(response.headers()) else {
        return Ok(response);
    };
    let status = Some(response.status());
    let (code, fix) = match class {
        ErrorClass::Busy | ErrorClass::Overloaded => (ErrorCode::Busy, "try again"),
        ErrorClass::NoEndpoint | ErrorClass::Refused | ErrorClass::Unreachable => {
            (ErrorCode::Unavailable, "try again")
        }
        // Whether it was executed is not known.
        ErrorClass::TimedOut | ErrorClass::Lost => (ErrorCode::Unavailable, ""),
        ErrorClass::TooLarge => (ErrorCode::TooLarge, ""),
        ErrorClass::UnknownHost => (ErrorCode::NotFound, ""),
        ErrorClass::BadRequest
        | ErrorClass::LateRequest
        | ErrorClass::NotCarried
        | ErrorClass::Loop => (ErrorCode::Invalid, ""),
        ErrorClass::Failed => (ErrorCode::Internal, "see its logs"),
    };
    let why = match collect(workload, response, WHY_BYTES_MAX).await {
        Ok((_, text)) => String::from_utf8_lossy(&text).trim().to_owned(),
        Err(_) => class.as_str().to_owned(),
    };
    let what = format!("{workload} did not answer");
    let error = ApiError::new(code, what, why, fix);
    Err(Refusal { error, status })
}

/// The whole response, when one message holds it.
pub(super) async fn collect(
    workload: &WorkloadKey,
    response: Response<Body>,
    room: usize,
) -> Result<(Vec<(String, String)>, Bytes), Refusal> {
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
            let what = format!("{workload} failed");
            Refusal {
                error: ApiError::new(ErrorCode::Internal, what, why, "see its logs"),
                // A client of HTTP sees it break off; of what has not begun a gateway says this.
                status: Some(StatusCode::BAD_GATEWAY),
            }
        })?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        if head_bytes + collected.len() + data.len() > room {
            return Err(too_large(workload, room).into());
        }
        collected.extend_from_slice(&data);
    }
    if head_bytes > room {
        return Err(too_large(workload, room).into());
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

/// The answer to a message that was not handled.
pub(in super::super) fn failure(reply: String, subject: &str, ended: &Ended) -> Delivery {
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
pub(in super::super) fn empty(reply: String) -> Delivery {
    let headers = vec![(STATUS.to_owned(), "204".to_owned())];
    Delivery {
        subject: reply,
        reply: None,
        headers,
        body: Bytes::new(),
    }
}

/// A refusal in the shape of the API.
pub(super) fn error(reply: String, refusal: impl Into<Refusal>) -> Delivery {
    let Refusal { error, status } = refusal.into();
    let code = error.code.number().to_string();
    let status = status.map_or_else(|| code.clone(), |status| status.as_str().to_owned());
    // A header is one line.
    let what: String = error
        .what
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    let body = serde_json::to_vec(&ErrorBody { error })
        .expect("a refusal holds texts and numbers, which are always JSON");
    let headers = vec![
        (ERROR.to_owned(), what),
        (ERROR_CODE.to_owned(), code),
        (STATUS.to_owned(), status),
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
        assert_eq!(refused.error.code, ErrorCode::TooLarge);
    }

    #[tokio::test]
    async fn what_a_gateway_says_in_a_guests_place_is_an_error() {
        let own = response(b"as it is");
        assert!(answered(&workload(), own).await.is_ok());
        for class in ErrorClass::ALL {
            let mut vain = response(b"no replica is ready\n");
            let name = HeaderName::from_static("wasmorch-error");
            let value = HeaderValue::from_static(class.as_str());
            vain.headers_mut().insert(name, value);
            *vain.status_mut() = StatusCode::BAD_GATEWAY;
            let refusal = answered(&workload(), vain).await.unwrap_err();
            assert_eq!(refusal.error.why, "no replica is ready");
            let code = refusal.error.code;
            let busy = matches!(class, ErrorClass::Busy | ErrorClass::Overloaded);
            assert_eq!(code == ErrorCode::Busy, busy, "{class:?}");
            // Two words for it: what a gateway answers, and the code of the API.
            let told = error("_INBOX.1".into(), refusal);
            assert_eq!(told.header(STATUS), Some("502"), "{class:?}");
            let number = code.number().to_string();
            assert_eq!(told.header(ERROR_CODE), Some(&*number), "{class:?}");
        }
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
