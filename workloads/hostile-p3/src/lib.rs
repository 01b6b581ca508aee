//! Attacks by the means of WASI 0.3, one for each path. See `hostile` for those of 0.2.

mod handles;

use std::future::Future;
use std::hint::black_box;
use std::mem::forget;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Waker};

use wasip3::clocks::monotonic_clock;
use wasip3::http::client;
use wasip3::http::types::{ErrorCode, Fields, Request, Response, Scheme};
use wasip3::{wit_bindgen, wit_future, wit_stream};

struct Hostile;

wasip3::http::service::export!(Hostile);

static SEEN: AtomicU64 = AtomicU64::new(0);

impl wasip3::exports::http::handler::Guest for Hostile {
    async fn handle(request: Request) -> Result<Response, ErrorCode> {
        let seen = SEEN.fetch_add(1, Ordering::Relaxed) + 1;
        let target = request.get_path_with_query().unwrap_or_default();
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        match path {
            "/ok" => answer("ok\n"),
            "/count" => answer(seen.to_string()),
            "/wait" => {
                monotonic_clock::wait_for(150_000_000).await;
                answer(seen.to_string())
            }
            "/wait-long" => {
                monotonic_clock::wait_for(10_000_000_000).await;
                answer(seen.to_string())
            }
            "/works-after" => {
                wit_bindgen::spawn_local(async {
                    monotonic_clock::wait_for(5_000_000).await;
                    println!("worked");
                });
                match query.parse() {
                    Ok(status) => without_body(status),
                    Err(_) => answer(seen.to_string()),
                }
            }
            "/in-two-pieces" => in_two_pieces(),
            "/call-self" => call_self().await,
            "/line-and-wait" => {
                println!("{seen} came");
                monotonic_clock::wait_for(150_000_000).await;
                answer(seen.to_string())
            }
            "/spin" => spin(),
            "/tasks" => tasks().await,
            "/streams" => streams(),
            "/long-method" => handles::long_method(),
            "/file-streams" => handles::file_streams(query).await,
            "/listings" => handles::listings(query).await,
            "/list" => answer(handles::list().await),
            "/connections" => handles::connections(query).await,
            "/receive" => answer(handles::receive(query).await),
            "/dropped" => {
                dropped();
                answer("dropped\n")
            }
            "/after" => {
                wit_bindgen::spawn_local(async { spin() });
                answer("and now\n")
            }
            "/waits-after" => {
                wit_bindgen::spawn_local(async {
                    monotonic_clock::wait_for(u64::MAX).await;
                });
                answer("and now\n")
            }
            "/ignores" => endless(true),
            "/endless" => endless(false),
            "/panic" => panic!("as planned"),
            _ => answer("no such attack\n"),
        }
    }
}

/// Says its length, and writes one half after the other.
fn in_two_pieces() -> Result<Response, ErrorCode> {
    let headers = [("content-length".to_owned(), b"8".to_vec())];
    let headers = Fields::from_list(&headers).map_err(|_| ErrorCode::InternalError(None))?;
    let (mut writer, contents) = wit_stream::new();
    let (_, no_trailers) = wit_future::new(|| Ok(None));
    let (response, _sent) = Response::new(headers, Some(contents), no_trailers);
    wit_bindgen::spawn_local(async move {
        let _unwritten = writer.write_all(b"four".to_vec()).await;
        monotonic_clock::wait_for(20_000_000).await;
        let _unwritten = writer.write_all(b"more".to_vec()).await;
    });
    Ok(response)
}

/// Asks its own workload, and passes the answer on.
async fn call_self() -> Result<Response, ErrorCode> {
    let (_, no_trailers) = wit_future::new(|| Ok(None));
    let (request, _sent) = Request::new(Fields::new(), None, no_trailers, None);
    let wrong = |()| ErrorCode::InternalError(None);
    request.set_scheme(Some(&Scheme::Http)).map_err(wrong)?;
    request
        .set_authority(Some("self.default.internal"))
        .map_err(wrong)?;
    request.set_path_with_query(Some("/count")).map_err(wrong)?;
    client::send(request).await
}

fn spin() -> ! {
    loop {
        black_box(());
    }
}

/// Starts waits without end, and waits for all of them.
async fn tasks() -> ! {
    loop {
        wit_bindgen::spawn_local(async {
            monotonic_clock::wait_for(u64::MAX).await;
        });
        // Each has begun before the next.
        wit_bindgen::yield_async().await;
    }
}

fn streams() -> ! {
    loop {
        forget(wit_stream::new::<u8>());
    }
}

/// Begins host calls and drops them in the middle, many times.
fn dropped() {
    let mut context = Context::from_waker(Waker::noop());
    for number in 0..1000 {
        let waiting = pin!(monotonic_clock::wait_for(1_000_000_000 + number));
        black_box(waiting.poll(&mut context).is_ready());
    }
}

/// Writes for ever, and when nobody reads any more too, if it ignores that.
fn endless(ignores: bool) -> Result<Response, ErrorCode> {
    let (mut writer, contents) = wit_stream::new();
    let (_, no_trailers) = wit_future::new(|| Ok(None));
    let (response, _sent) = Response::new(Fields::new(), Some(contents), no_trailers);
    wit_bindgen::spawn_local(async move {
        loop {
            let unwritten = writer.write_all(vec![b'x'; 64 << 10]).await;
            if !unwritten.is_empty() && !ignores {
                return;
            }
        }
    });
    Ok(response)
}

fn without_body(status: u16) -> Result<Response, ErrorCode> {
    let (_, no_trailers) = wit_future::new(|| Ok(None));
    let (response, _sent) = Response::new(Fields::new(), None, no_trailers);
    let set = response.set_status_code(status);
    set.map_err(|()| ErrorCode::InternalError(None))?;
    Ok(response)
}

fn answer(body: impl Into<Vec<u8>>) -> Result<Response, ErrorCode> {
    let body = body.into();
    let (mut writer, contents) = wit_stream::new();
    let (_, no_trailers) = wit_future::new(|| Ok(None));
    let (response, _sent) = Response::new(Fields::new(), Some(contents), no_trailers);
    wit_bindgen::spawn_local(async move {
        let _unwritten = writer.write_all(body).await;
    });
    Ok(response)
}
