//! An outgoing request: `/fetch?URL` gets URL by `wasi:http/outgoing-handler` and passes on its status and its body.
//!
//! Importing the outgoing handler is what makes a deploy ask for a grant, for instance `--grant http=api.example.com`.
//! When the request is refused or fails, the answer is 502 with the error's name.

use answer::{answer, respond, target};
use wasip2::http::outgoing_handler;
use wasip2::http::types::{
    ErrorCode, Fields, IncomingRequest, IncomingResponse, OutgoingRequest, ResponseOutparam, Scheme,
};
use wasip2::io::streams::StreamError;

/// The most that one blocking write of `wasi:io` takes.
const WRITE_BYTES_MAX: u64 = 4096;

struct Fetcher;

wasip2::http::proxy::export!(Fetcher);

impl wasip2::exports::http::incoming_handler::Guest for Fetcher {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        match target(&request) {
            (path, _) if path == "/" => answer(out, 200, "try /fetch?URL\n"),
            (path, url) if path == "/fetch" => match fetch(&url) {
                Ok(response) => pass_on(&response, out),
                Err(error) => answer(out, 502, &format!("{error:?}\n")),
            },
            _ => answer(out, 404, "no such path\n"),
        }
    }
}

fn fetch(url: &str) -> Result<IncomingResponse, ErrorCode> {
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

    let response = outgoing_handler::handle(request, None)?;
    response.subscribe().block();
    match response.get() {
        Some(Ok(result)) => result,
        _ => Err(ErrorCode::InternalError(None)),
    }
}

fn pass_on(response: &IncomingResponse, out: ResponseOutparam) {
    let Ok(body) = response.consume() else { return };
    let Ok(input) = body.stream() else { return };
    respond(out, response.status(), |output| {
        loop {
            match input.blocking_read(WRITE_BYTES_MAX) {
                Ok(chunk) => output.blocking_write_and_flush(&chunk)?,
                Err(StreamError::Closed) => return Ok(()),
                Err(failed) => return Err(failed),
            }
        }
    });
}
