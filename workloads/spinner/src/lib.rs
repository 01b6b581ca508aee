//! Never returns: every request loops without a call to the host, so only interruption from outside ends it.
//! `/ok` answers, so that it can become ready with `health.ready.path = "/ok"`.

use std::hint::black_box;

use answer::{answer, target};
use wasip2::http::types::{IncomingRequest, ResponseOutparam};

struct Spinner;

wasip2::http::proxy::export!(Spinner);

impl wasip2::exports::http::incoming_handler::Guest for Spinner {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        if target(&request).0 == "/ok" {
            return answer(out, 200, "ok\n");
        }
        loop {
            black_box(());
        }
    }
}
