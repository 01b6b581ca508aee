//! A component for Spin, written with Spin's own SDK: nothing in it knows of wasmorch. It imports no more than `wasi:*`.
//!
//! Any request gets its body back as it came, with the configured `greeting` in a header, and in another how often its path
//! was asked for, which is counted in the store `default`.

use spin_sdk::experimental::wasi::config::store as config;
use spin_sdk::experimental::wasi::keyvalue::atomics::{Cas, CasError, swap};
use spin_sdk::experimental::wasi::keyvalue::store;
use spin_sdk::http::{Error, IntoResponse, Request, Response};
use spin_sdk::http_service;

#[http_service]
async fn visits(request: Request) -> Result<impl IntoResponse, Error> {
    let greeting = config::get("greeting").map_err(|error| Error::other(format!("{error:?}")))?;
    let count = count(request.uri().path()).map_err(|error| Error::other(format!("{error:?}")))?;
    let response = Response::builder()
        .header("greeting", greeting.unwrap_or_default())
        .header("count", count)
        .body(request.into_body());
    response.map_err(Error::HttpError)
}

/// By compare-and-swap, which Spin's draft of `wasi:keyvalue` brought: again, when another request was quicker.
fn count(path: &str) -> Result<u64, store::Error> {
    let bucket = store::open("default")?;
    let mut handle = Cas::new(&bucket, path)?;
    loop {
        let before = handle.current()?.unwrap_or_default();
        let before: u64 = String::from_utf8_lossy(&before).parse().unwrap_or(0);
        match swap(handle, (before + 1).to_string().as_bytes()) {
            Ok(()) => return Ok(before + 1),
            Err(CasError::CasFailed(newer)) => handle = newer,
            Err(CasError::StoreError(error)) => return Err(error),
        }
    }
}
