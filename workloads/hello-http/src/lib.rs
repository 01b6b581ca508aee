//! A web service in one file: `wasi:http` 0.2, streaming bodies both ways, a fresh instance for every request.
//!
//! | path | answer |
//! | --- | --- |
//! | `/` | the greeting, with the major version of this package |
//! | `/echo` | the request's body, chunk by chunk as it arrives |
//! | `/bytes?N` | N bytes, streamed |
//! | `/none?N` | says that N bytes come, and writes none: right for HEAD, broken for GET |
//! | `/headers` | the request's headers, one a line |
//! | `/env?NAME` | an environment variable, 404 when there is none |
//! | `/status?CODE` | that status |
//! | `/log?TEXT` | writes TEXT to stdout and to stderr |
//! | `/sleep?MS` | after so many milliseconds |
//! | `/instance` | how many requests this instance has served: 1 |
//! | `/sick`, `/health` | turns this instance sick; 200, and 500 from a sick one |
//! | `/some` | 500 to so many requests in a hundred as the environment's `FAILS` says, by chance |
//! | `/grow?MIB` | after allocating and touching so much memory |
//! | `/spin`, `/trap` | never; no answer at all |

use core::hint::black_box;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use wasip2::cli::{environment, stderr, stdout};
use wasip2::clocks::monotonic_clock;
use wasip2::http::types::{
    Fields, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam,
};
use wasip2::io::streams::{OutputStream, StreamError};

/// The second version of this workload is the same source under another package version.
const GREETING: &str = concat!(
    "Hello from wasmorch, v",
    env!("CARGO_PKG_VERSION_MAJOR"),
    "\n"
);

/// Requests that this instance has seen. It stays at one, for every request gets an instance of its own.
static REQUESTS: AtomicU32 = AtomicU32::new(0);

/// Only an instance that serves again (`instance.reuse`) is ever seen to be sick.
static SICK: AtomicBool = AtomicBool::new(false);

/// The most that one blocking write of `wasi:io` takes.
const WRITE_BYTES_MAX: usize = 4096;

struct Hello;

wasip2::http::proxy::export!(Hello);

impl wasip2::exports::http::incoming_handler::Guest for Hello {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let requests = REQUESTS.fetch_add(1, Ordering::Relaxed) + 1;
        let target = request.path_with_query().unwrap_or_default();
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        let number = query.parse::<u64>();

        match (path, number) {
            ("/", _) => answer(out, 200, GREETING.as_bytes()),
            ("/echo", _) => echo(&request, out),
            ("/headers", _) => answer(out, 200, &headers(&request)),
            ("/env", _) => match variable(query) {
                Some(value) => answer(out, 200, value.as_bytes()),
                None => answer(out, 404, b"not set\n"),
            },
            ("/log", _) => {
                log(query);
                answer(out, 200, b"logged\n");
            }
            ("/instance", _) => answer(out, 200, (requests.to_string() + "\n").as_bytes()),
            ("/sick", _) => {
                SICK.store(true, Ordering::Relaxed);
                answer(out, 200, b"sick from here on\n");
            }
            ("/health", _) if SICK.load(Ordering::Relaxed) => answer(out, 500, b"sick\n"),
            ("/health", _) => answer(out, 200, b"well\n"),
            ("/some", _) if fails() => answer(out, 500, b"not this one\n"),
            ("/some", _) => answer(out, 200, b"this one\n"),
            ("/spin", _) => spin(),
            ("/trap", _) => core::arch::wasm32::unreachable(),
            ("/bytes", Ok(count)) => bytes(out, count),
            ("/none", Ok(count)) => none_of(out, count),
            ("/status", Ok(code @ 100..=599)) => answer(out, code as u16, b""),
            ("/sleep", Ok(ms)) => {
                monotonic_clock::subscribe_duration(ms.saturating_mul(1_000_000)).block();
                answer(out, 200, b"slept\n");
            }
            ("/grow", Ok(mib)) => {
                grow(mib as usize);
                answer(out, 200, b"grew\n");
            }
            ("/bytes" | "/none" | "/status" | "/sleep" | "/grow", _) => {
                answer(out, 400, b"a number must follow the question mark\n");
            }
            _ => answer(out, 404, b"no such path\n"),
        }
    }
}

/// A whole answer at once.
fn answer(out: ResponseOutparam, status: u16, body: &[u8]) {
    respond(out, status, |stream| {
        body.chunks(WRITE_BYTES_MAX)
            .try_for_each(|chunk| stream.blocking_write_and_flush(chunk))
    });
}

/// Sends the head of the answer, then lets `write` stream the body.
///
/// A body that ends with an error is dropped unfinished: the client sees a broken answer, not a short one.
fn respond(
    out: ResponseOutparam,
    status: u16,
    write: impl FnOnce(&OutputStream) -> Result<(), StreamError>,
) {
    respond_with(out, status, Fields::new(), write);
}

fn respond_with(
    out: ResponseOutparam,
    status: u16,
    headers: Fields,
    write: impl FnOnce(&OutputStream) -> Result<(), StreamError>,
) {
    let response = OutgoingResponse::new(headers);
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

fn echo(request: &IncomingRequest, out: ResponseOutparam) {
    let Ok(body) = request.consume() else { return };
    let Ok(input) = body.stream() else { return };
    respond(out, 200, |output| {
        loop {
            match input.blocking_read(WRITE_BYTES_MAX as u64) {
                Ok(chunk) => output.blocking_write_and_flush(&chunk)?,
                Err(StreamError::Closed) => return Ok(()),
                Err(failed) => return Err(failed),
            }
        }
    });
}

fn bytes(out: ResponseOutparam, count: u64) {
    let chunk = [b'x'; WRITE_BYTES_MAX];
    respond(out, 200, |stream| {
        let mut left = count;
        while left > 0 {
            let size = left.min(chunk.len() as u64);
            stream.blocking_write_and_flush(&chunk[..size as usize])?;
            left -= size;
        }
        Ok(())
    });
}

fn none_of(out: ResponseOutparam, count: u64) {
    let headers = Fields::new();
    if headers
        .set("content-length", &[count.to_string().into_bytes()])
        .is_ok()
    {
        respond_with(out, 200, headers, |_| Ok(()));
    }
}

fn headers(request: &IncomingRequest) -> Vec<u8> {
    let mut lines = Vec::new();
    for (name, value) in request.headers().entries() {
        lines.extend_from_slice(name.as_bytes());
        lines.extend_from_slice(b": ");
        lines.extend_from_slice(&value);
        lines.push(b'\n');
    }
    lines
}

fn variable(name: &str) -> Option<String> {
    let found = environment::get_environment()
        .into_iter()
        .find(|(key, _)| key == name);
    found.map(|(_, value)| value + "\n")
}

/// By chance: which one in a hundred this is, the clock says.
fn fails() -> bool {
    let percent = variable("FAILS").and_then(|text| text.trim().parse().ok());
    monotonic_clock::now() / 1_000 % 100 < percent.unwrap_or(0)
}

fn log(text: &str) {
    let line = [text.as_bytes(), b"\n"].concat();
    for stream in [stdout::get_stdout(), stderr::get_stderr()] {
        let _ = stream.blocking_write_and_flush(&line);
    }
}

/// Takes memory a page at a time; over the limit the instance traps.
fn grow(mib: usize) {
    for _ in 0..mib {
        let mut block = vec![0u8; 1 << 20];
        for page in block.chunks_mut(4096) {
            page[0] = 1;
        }
        black_box(block).leak();
    }
}

/// Never returns, never waits: only the host can end it.
fn spin() -> ! {
    loop {
        black_box(());
    }
}
