//! Traps on every request, before any answer. `/ok` answers, so that it can become ready with
//! `health.ready.path = "/ok"`.

use answer::{answer, target};
use wasip2::http::types::{IncomingRequest, ResponseOutparam};

struct Crasher;

wasip2::http::proxy::export!(Crasher);

impl wasip2::exports::http::incoming_handler::Guest for Crasher {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        if target(&request).0 == "/ok" {
            return answer(out, 200, "ok\n");
        }
        core::arch::wasm32::unreachable()
    }
}
