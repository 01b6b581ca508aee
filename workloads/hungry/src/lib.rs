//! Allocates without end: every request takes memory in steps of 1 MiB and touches it, until the host's memory limit
//! ends the instance. `/ok` answers, so that it can become ready with `health.ready.path = "/ok"`.

use std::hint::black_box;

use answer::{answer, target};
use wasip2::http::types::{IncomingRequest, ResponseOutparam};

const STEP_BYTES: usize = 1 << 20;
/// Smaller than any host's page, so that no page stays untouched.
const TOUCH_EVERY_BYTES: usize = 4096;

struct Hungry;

wasip2::http::proxy::export!(Hungry);

impl wasip2::exports::http::incoming_handler::Guest for Hungry {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        if target(&request).0 == "/ok" {
            return answer(out, 200, "ok\n");
        }
        loop {
            let mut block = vec![0u8; STEP_BYTES];
            block
                .iter_mut()
                .step_by(TOUCH_EVERY_BYTES)
                .for_each(|byte| *byte = 1);
            black_box(block).leak();
        }
    }
}
