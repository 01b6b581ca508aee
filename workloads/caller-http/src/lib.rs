//! One workload calls another by its name inside the cluster: with `CALLS=orders.shop` it asks
//! `http://orders.shop.internal/` for the same path and answers `web > ` and what it was told, under the same status.
//!
//! Without `CALLS` it answers its own name, so that several of them make a chain, and two that call each other a circle,
//! which the cluster cuts. It needs `--grant workloads=orders.shop`. A call that is refused or fails is answered 502
//! with the error's name.

use answer::{answer, respond};
use wasip2::http::outgoing_handler;
use wasip2::http::types::{
    ErrorCode, Fields, IncomingRequest, IncomingResponse, OutgoingRequest, ResponseOutparam, Scheme,
};
use wasip2::io::streams::StreamError;

/// The most that one blocking write of `wasi:io` takes.
const WRITE_BYTES_MAX: u64 = 4096;

struct Caller;

wasip2::http::proxy::export!(Caller);

impl wasip2::exports::http::incoming_handler::Guest for Caller {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let own = variable("WASMORCH_WORKLOAD").unwrap_or_else(|| "nobody".to_owned());
        let Some(callee) = variable("CALLS") else {
            return answer(out, 200, &format!("{own}\n"));
        };
        let path = request.path_with_query();
        match call(&callee, path.as_deref().unwrap_or("/")) {
            Ok(response) => pass_on(&own, &response, out),
            Err(error) => answer(out, 502, &format!("{own}: {error:?}\n")),
        }
    }
}

fn variable(name: &str) -> Option<String> {
    let variables = wasip2::cli::environment::get_environment();
    let found = variables.into_iter().find(|(held, _)| held == name);
    found.map(|(_, value)| value)
}

fn call(callee: &str, path: &str) -> Result<IncomingResponse, ErrorCode> {
    let request = OutgoingRequest::new(Fields::new());
    request
        .set_scheme(Some(&Scheme::Http))
        .and_then(|()| request.set_authority(Some(&format!("{callee}.internal"))))
        .and_then(|()| request.set_path_with_query(Some(path)))
        .map_err(|()| ErrorCode::HttpRequestUriInvalid)?;
    let response = outgoing_handler::handle(request, None)?;
    response.subscribe().block();
    match response.get() {
        Some(Ok(result)) => result,
        _ => Err(ErrorCode::InternalError(None)),
    }
}

fn pass_on(own: &str, response: &IncomingResponse, out: ResponseOutparam) {
    let Ok(body) = response.consume() else { return };
    let Ok(input) = body.stream() else { return };
    respond(out, response.status(), |output| {
        output.blocking_write_and_flush(format!("{own} > ").as_bytes())?;
        loop {
            match input.blocking_read(WRITE_BYTES_MAX) {
                Ok(chunk) => output.blocking_write_and_flush(&chunk)?,
                Err(StreamError::Closed) => return Ok(()),
                Err(failed) => return Err(failed),
            }
        }
    });
}
