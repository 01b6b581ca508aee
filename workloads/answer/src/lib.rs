//! How the smaller `wasi:http` 0.2 guests answer. `hello-http` shows the same in full.

use wasip2::http::types::{
    Fields, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam,
};
use wasip2::io::streams::{OutputStream, StreamError};

/// The path of a request, and what follows its question mark.
pub fn target(request: &IncomingRequest) -> (String, String) {
    let target = request.path_with_query().unwrap_or_default();
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    (path.to_owned(), query.to_owned())
}

/// The most that one blocking write of `wasi:io` takes.
pub const WRITE_BYTES_MAX: usize = 4096;

/// An answer that is at hand.
pub fn answer(out: ResponseOutparam, status: u16, body: &str) {
    respond(out, status, |stream| {
        let mut pieces = body.as_bytes().chunks(WRITE_BYTES_MAX);
        pieces.try_for_each(|piece| stream.blocking_write_and_flush(piece))
    });
}

/// Sends the head of the answer, then lets `write` stream the body.
///
/// A body that ends with an error is dropped unfinished: the client sees a broken answer, not a short one.
pub fn respond(
    out: ResponseOutparam,
    status: u16,
    write: impl FnOnce(&OutputStream) -> Result<(), StreamError>,
) {
    let response = OutgoingResponse::new(Fields::new());
    let (Ok(()), Ok(body)) = (response.set_status_code(status), response.body()) else {
        return;
    };
    ResponseOutparam::set(out, Ok(response));
    let Ok(stream) = body.write() else { return };
    let written = write(&stream);
    drop(stream); // a child of the body: it goes first
    if written.is_ok() {
        let _ = OutgoingBody::finish(body, None);
    }
}

/// The bytes that percent-encoded text stands for; `?` where it is none.
pub fn decoded(encoded: &str) -> Vec<u8> {
    let mut bytes = encoded.bytes();
    let mut decoded = Vec::new();
    while let Some(byte) = bytes.next() {
        let digit = |byte: Option<u8>| byte.and_then(|byte| char::from(byte).to_digit(16));
        decoded.push(match byte {
            b'%' => match (digit(bytes.next()), digit(bytes.next())) {
                (Some(high), Some(low)) => u8::try_from(high * 16 + low).unwrap_or_default(),
                _ => b'?',
            },
            byte => byte,
        });
    }
    decoded
}
