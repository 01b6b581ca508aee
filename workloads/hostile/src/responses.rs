//! Answers that do not end, lie, or carry what does not belong there.

use std::fmt::Write as _;

use answer::{answer, respond};
use wasip2::clocks::monotonic_clock;
use wasip2::http::types::{
    Fields, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam,
};
use wasip2::io::streams::StreamError;

/// The most that one blocking write of `wasi:io` takes.
const WRITE_BYTES_MAX: usize = 4096;

pub(crate) fn endless(out: ResponseOutparam) {
    respond(out, 200, |stream| {
        loop {
            stream.blocking_write_and_flush(&[b'x'; WRITE_BYTES_MAX])?;
        }
    });
}

pub(crate) fn drip(out: ResponseOutparam) {
    respond(out, 200, |stream| {
        loop {
            stream.blocking_write_and_flush(b".")?;
            monotonic_clock::subscribe_duration(5_000_000).block();
        }
    });
}

pub(crate) fn spin_in_body(out: ResponseOutparam) {
    respond(out, 200, |stream| {
        stream.blocking_write_and_flush(b"and now")?;
        crate::processor::spin()
    });
}

/// Promises 100 bytes.
fn promise(out: ResponseOutparam, bytes: usize) {
    let fields = Fields::new();
    let _taken = fields.append("content-length", b"100");
    let response = OutgoingResponse::new(fields);
    let Ok(body) = response.body() else { return };
    ResponseOutparam::set(out, Ok(response));
    let Ok(stream) = body.write() else { return };
    let written: Result<(), StreamError> = stream.blocking_write_and_flush(&vec![b'x'; bytes]);
    drop(stream);
    let _refused = written.map(|()| OutgoingBody::finish(body, None));
}

pub(crate) fn short(out: ResponseOutparam) {
    promise(out, 10);
}

pub(crate) fn long(out: ResponseOutparam) {
    promise(out, 1000);
}

/// Answers in full, leaves nothing behind, and traps.
pub(crate) fn panic_after(request: IncomingRequest, out: ResponseOutparam) -> ! {
    drop(request);
    answer(out, 200, "and now\n");
    panic!("as planned")
}

/// Answers without a body, and says in a line when the work after that is done.
pub(crate) fn works_after(status: u16, out: ResponseOutparam) {
    let response = OutgoingResponse::new(Fields::new());
    let (Ok(()), Ok(body)) = (response.set_status_code(status), response.body()) else {
        return;
    };
    ResponseOutparam::set(out, Ok(response));
    monotonic_clock::subscribe_duration(5_000_000).block();
    println!("worked");
    let _refused = OutgoingBody::finish(body, None);
}

/// Returns with a body that is neither written nor finished.
pub(crate) fn never_finished(out: ResponseOutparam) {
    let response = OutgoingResponse::new(Fields::new());
    let body = response.body();
    ResponseOutparam::set(out, Ok(response));
    std::mem::forget(body);
}

/// Answers without a look at what was sent.
pub(crate) fn unread(request: IncomingRequest, out: ResponseOutparam) {
    std::mem::forget(request);
    answer(out, 200, "not read\n");
}

/// Trailers as long as the host lets them be.
pub(crate) fn trailers(out: ResponseOutparam) {
    let response = OutgoingResponse::new(Fields::new());
    let Ok(body) = response.body() else { return };
    ResponseOutparam::set(out, Ok(response));
    let trailers = Fields::new();
    for number in 0..10_000 {
        if trailers
            .append(&format!("x-{number}"), &[b'x'; 1000])
            .is_err()
        {
            break;
        }
    }
    let _refused = OutgoingBody::finish(body, Some(trailers));
}

/// Splits the answer in two, or would.
pub(crate) fn control_characters() -> String {
    let fields = Fields::new();
    let mut report = String::new();
    let attempts: [(&str, &[u8]); 6] = [
        ("x-a", b"a\r\nset-cookie: stolen"),
        ("x-b", b"b\nset-cookie: stolen"),
        ("x-c", b"c\0"),
        ("x-d\r\nset-cookie", b"stolen"),
        ("x d", b"name with a space"),
        ("", b"no name"),
    ];
    for (name, value) in attempts {
        let taken = fields.append(name, value);
        let _ = write!(
            report,
            "{} ",
            if taken.is_ok() { "taken" } else { "refused" }
        );
    }
    report
}

pub(crate) fn large_header() -> String {
    let fields = Fields::new();
    match fields.append("x-large", &vec![b'x'; 8 << 20]) {
        Ok(()) => "taken".into(),
        Err(error) => format!("{error:?}"),
    }
}
