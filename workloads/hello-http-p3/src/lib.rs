//! A web service of `wasi:http` 0.3: handlers are async, bodies are streams of the component model.
//!
//! | path | answer |
//! | --- | --- |
//! | `/` | the greeting |
//! | `/echo` | the request's body, passed through without a copy into this guest |
//! | `/sleep?MS` | after so many milliseconds; other requests of the instance go on meanwhile |

use wasip3::clocks::monotonic_clock;
use wasip3::http::types::{ErrorCode, Fields, Request, Response};
use wasip3::{wit_bindgen, wit_future, wit_stream};

struct Hello;

wasip3::http::service::export!(Hello);

impl wasip3::exports::http::handler::Guest for Hello {
    async fn handle(request: Request) -> Result<Response, ErrorCode> {
        let target = request.get_path_with_query().unwrap_or_default();
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        match (path, query.parse::<u64>()) {
            ("/", _) => answer(200, "Hello from wasmorch, p3\n"),
            ("/echo", _) => Ok(echo(request)),
            ("/sleep", Ok(ms)) => {
                monotonic_clock::wait_for(ms.saturating_mul(1_000_000)).await;
                answer(200, "slept\n")
            }
            _ => answer(404, "no such path\n"),
        }
    }
}

/// The body is written by a task of its own, which starts once the head of the answer has been given to the host.
fn answer(status: u16, body: &'static str) -> Result<Response, ErrorCode> {
    let (mut writer, contents) = wit_stream::new();
    let (_, no_trailers) = wit_future::new(|| Ok(None));
    let (response, _sent) = Response::new(Fields::new(), Some(contents), no_trailers);
    response
        .set_status_code(status)
        .map_err(|()| ErrorCode::InternalError(None))?;
    wit_bindgen::spawn_local(async move {
        // What remains unwritten remains because the client has gone.
        let _unwritten = writer.write_all(body.as_bytes().to_vec()).await;
    });
    Ok(response)
}

/// Gives the request's stream to the response: the host moves the bytes, as they arrive.
fn echo(request: Request) -> Response {
    let (_, handled) = wit_future::new(|| Ok(()));
    let (contents, trailers) = Request::consume_body(request, handled);
    let (response, _sent) = Response::new(Fields::new(), Some(contents), trailers);
    response
}
