//! An outgoing request: `/fetch?URL` gets URL by `wasi:http/outgoing-handler` and passes on its status and its body.
//!
//! Importing the outgoing handler is what makes a deploy ask for a grant, for instance `--grant http=api.example.com`.
//! When the request is refused or fails, the answer is 502 with the error's name.
//!
//! `/within?CONNECT,FIRST,BETWEEN,URL` gives it so many milliseconds to connect, to the first byte and between two of
//! them, and answers when it has read the whole body, or why it could not.

use answer::{WRITE_BYTES_MAX, answer, respond, target};
use wasip2::http::outgoing_handler;
use wasip2::http::types::{
    ErrorCode, Fields, IncomingRequest, IncomingResponse, OutgoingRequest, RequestOptions,
    ResponseOutparam, Scheme, http_error_code,
};
use wasip2::io::streams::StreamError;

struct Fetcher;

wasip2::http::proxy::export!(Fetcher);

impl wasip2::exports::http::incoming_handler::Guest for Fetcher {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        match target(&request) {
            (path, _) if path == "/" => answer(out, 200, "try /fetch?URL\n"),
            (path, url) if path == "/fetch" => match fetch(&url, None) {
                Ok(response) => pass_on(&response, out),
                Err(error) => answer(out, 502, &format!("{error:?}\n")),
            },
            (path, query) if path == "/within" => match within(&query) {
                Ok(body) => answer(out, 200, &String::from_utf8_lossy(&body)),
                Err(error) => answer(out, 502, &format!("{error:?}\n")),
            },
            _ => answer(out, 404, "no such path\n"),
        }
    }
}

fn fetch(url: &str, options: Option<RequestOptions>) -> Result<IncomingResponse, ErrorCode> {
    let invalid = || ErrorCode::HttpRequestUriInvalid;
    let (scheme, rest) = url.split_once("://").ok_or_else(invalid)?;
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let scheme = match scheme {
        "http" => Scheme::Http,
        "https" => Scheme::Https,
        _ => return Err(invalid()),
    };

    let request = OutgoingRequest::new(Fields::new());
    request
        .set_scheme(Some(&scheme))
        .and_then(|()| request.set_authority(Some(authority)))
        .and_then(|()| request.set_path_with_query(Some(if path.is_empty() { "/" } else { path })))
        .map_err(|()| invalid())?;

    let response = outgoing_handler::handle(request, options)?;
    response.subscribe().block();
    match response.get() {
        Some(Ok(result)) => result,
        _ => Err(ErrorCode::InternalError(None)),
    }
}

/// Fetches within times that are given, to the end of the body.
fn within(query: &str) -> Result<Vec<u8>, ErrorCode> {
    let invalid = || ErrorCode::HttpRequestUriInvalid;
    let parts: Vec<&str> = query.splitn(4, ',').collect();
    let [connect, first, between, url] = parts[..] else {
        return Err(invalid());
    };
    let nanoseconds = |text: &str| text.parse().map(|ms: u64| ms * 1_000_000).ok();
    let options = RequestOptions::new();
    options
        .set_connect_timeout(nanoseconds(connect))
        .and_then(|()| options.set_first_byte_timeout(nanoseconds(first)))
        .and_then(|()| options.set_between_bytes_timeout(nanoseconds(between)))
        .map_err(|()| invalid())?;
    let response = fetch(url, Some(options))?;
    let internal = || ErrorCode::InternalError(None);
    let body = response.consume().map_err(|()| internal())?;
    let input = body.stream().map_err(|()| internal())?;
    let mut read = Vec::new();
    loop {
        match input.blocking_read(WRITE_BYTES_MAX as u64) {
            Ok(chunk) => read.extend(chunk),
            Err(StreamError::Closed) => return Ok(read),
            Err(StreamError::LastOperationFailed(why)) => {
                let unnamed = || ErrorCode::InternalError(Some(why.to_debug_string()));
                return Err(http_error_code(&why).unwrap_or_else(unnamed));
            }
        }
    }
}

fn pass_on(response: &IncomingResponse, out: ResponseOutparam) {
    let Ok(body) = response.consume() else { return };
    let Ok(input) = body.stream() else { return };
    respond(out, response.status(), |output| {
        loop {
            match input.blocking_read(WRITE_BYTES_MAX as u64) {
                Ok(chunk) => output.blocking_write_and_flush(&chunk)?,
                Err(StreamError::Closed) => return Ok(()),
                Err(failed) => return Err(failed),
            }
        }
    });
}
