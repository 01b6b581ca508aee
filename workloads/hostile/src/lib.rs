//! Attacks on its host, one for each path: `runtime/tests/all/hostile` runs each and sees it contained. Those by WASI
//! 0.3 are in `hostile-p3`, those that no compiler would make lie as text in `wat/`.
//!
//! `/ok` answers, so that it can become ready with `health.ready.path = "/ok"`. What a host refuses in an orderly way is
//! the answer's text; whatever has no answer is meant to be ended. `/count` says how many requests this instance has seen,
//! which tells one that was used again.

mod handles;
mod processor;
mod reach;
mod responses;

use std::sync::atomic::{AtomicU64, Ordering};

use answer::{answer, target};
use wasip2::http::types::{IncomingRequest, ResponseOutparam};

wit_bindgen::generate!({
    path: [
        "../../wit/deps/wasi-io-0.2",
        "../../wit/deps/wasi-blobstore",
    ],
    inline: "
        package wasmorch:samples;

        world hostile {
            import wasi:blobstore/types@0.2.0-draft;
            import wasi:blobstore/container@0.2.0-draft;
            import wasi:blobstore/blobstore@0.2.0-draft;
        }
    ",
    with: {
        "wasi:io/error@0.2.12": wasip2::io::error,
        "wasi:io/poll@0.2.12": wasip2::io::poll,
        "wasi:io/streams@0.2.12": wasip2::io::streams,
    },
    generate_all,
});

static SEEN: AtomicU64 = AtomicU64::new(0);

struct Hostile;

wasip2::http::proxy::export!(Hostile);

impl wasip2::exports::http::incoming_handler::Guest for Hostile {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let seen = SEEN.fetch_add(1, Ordering::Relaxed) + 1;
        let (path, query) = target(&request);
        let number = query.parse().unwrap_or(u64::MAX);
        match path.as_str() {
            "/ok" => return answer(out, 200, "ok\n"),
            // Before the answer, and instead of it.
            "/spin" => processor::spin(),
            "/recurse" => processor::recurse(),
            "/memory-at-once" => processor::memory_at_once(),
            "/memory-slowly" => processor::memory_slowly(),
            "/fill" => processor::fill(),
            "/host-calls" => processor::host_calls(),
            "/panic" => panic!("as planned"),
            "/exit" => wasip2::cli::exit::exit(Err(())),
            "/poll" => handles::poll_one_often(),
            "/fields" => handles::fields(),
            "/headers" => handles::headers(),
            "/long-method" => handles::long_method(),
            "/kept-answers" => handles::kept_answers(&query),
            "/pollables" => handles::pollables(),
            "/bodies" => handles::bodies(),
            "/files" => handles::files(&query),
            "/file-streams" => handles::file_streams(&query),
            "/listings" => handles::listings(),
            "/sockets" => handles::sockets(),
            "/values" => handles::values(&query),
            "/wait" => processor::wait(),
            // In the answer.
            "/panic-after" => responses::panic_after(request, out),
            "/endless" => return responses::endless(out),
            "/drip" => return responses::drip(out),
            "/short" => return responses::short(out),
            "/long" => return responses::long(out),
            "/never-finished" => return responses::never_finished(out),
            "/works-after" => return responses::works_after(number as u16, out),
            "/unread" => return responses::unread(request, out),
            "/spin-in-body" => return responses::spin_in_body(out),
            "/trailers" => return responses::trailers(out),
            _ => {}
        }
        let came_of_it = match path.as_str() {
            "/count" => seen.to_string(),
            "/denied" => processor::denied(),
            "/list" => handles::list(),
            "/hold" => processor::hold(number),
            "/lines" => processor::lines(number),
            "/long-line" => processor::long_line(number),
            "/random" => processor::random(),
            "/control-characters" => responses::control_characters(),
            "/large-header" => responses::large_header(),
            "/escape" => reach::escape(),
            "/symlink" => reach::symlink(&query),
            "/disk" => reach::disk(),
            "/connect" => reach::connect(&query),
            "/lookup" => reach::lookup(&query),
            "/requests" => reach::requests(&query),
            _ => return answer(out, 404, "no such attack\n"),
        };
        answer(out, 200, &came_of_it);
    }
}
