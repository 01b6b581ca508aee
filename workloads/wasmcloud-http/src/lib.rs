//! A component for wasmCloud, written with wasmCloud's own SDK: nothing in it knows of wasmorch.
//!
//! A request for `/NAME` (`home`, without one) is logged and counted in the store `visits`, its body kept in the container
//! `bodies`, and `visits.NAME` told the count. The answer is the body as it was kept; in headers the configured `greeting`
//! and the count.

use std::fmt::Debug;

use wasmcloud_component::http::{self, ErrorCode, IncomingBody, IncomingRequest, Response};
use wasmcloud_component::info;
use wasmcloud_component::wasi::blobstore::blobstore;
use wasmcloud_component::wasi::blobstore::types::{IncomingValue, OutgoingValue};
use wasmcloud_component::wasi::config;
use wasmcloud_component::wasi::io::streams::{InputStream, StreamError};
use wasmcloud_component::wasi::keyvalue::{atomics, store};
use wasmcloud_component::wasmcloud::messaging::consumer;
use wasmcloud_component::wasmcloud::messaging::types::BrokerMessage;

const STORE: &str = "visits";
const CONTAINER: &str = "bodies";

struct Visits;

http::export!(Visits);

impl http::Server for Visits {
    fn handle(request: IncomingRequest) -> http::Result<Response<impl http::OutgoingBody>> {
        let name = match request.uri().path().trim_start_matches('/') {
            "" => "home".to_owned(),
            name => name.to_owned(),
        };
        let store = store::open(STORE).map_err(failed)?;
        let count = atomics::increment(&store, &name, 1).map_err(failed)?;
        info!(context: "visits", "{name} was here {count} times");
        let kept = keep(&name, &request.into_body()).map_err(failed)?;
        consumer::publish(&BrokerMessage {
            subject: format!("visits.{name}"),
            body: count.to_string().into(),
            reply_to: None,
        })
        .map_err(failed)?;
        let greeting = config::store::get("greeting").map_err(failed)?;
        Response::builder()
            .header("greeting", greeting.unwrap_or_default())
            .header("count", count)
            .body(kept)
            .map_err(failed)
    }
}

/// Streams the body into an object, and opens it again.
fn keep(name: &String, body: &IncomingBody) -> Result<InputStream, String> {
    let container = if blobstore::container_exists(&CONTAINER.to_owned())? {
        blobstore::get_container(&CONTAINER.to_owned())?
    } else {
        blobstore::create_container(&CONTAINER.to_owned())?
    };
    let object = OutgoingValue::new_outgoing_value();
    let stream = object.outgoing_value_write_body().map_err(|()| "no body")?;
    container.write_data(name, &object)?;
    loop {
        match stream.blocking_splice(body, u64::MAX) {
            Ok(_) => {}
            Err(StreamError::Closed) => break,
            Err(broken) => return Err(broken.to_string()),
        }
    }
    drop(stream); // a child of the object: it goes first
    OutgoingValue::finish(object)?;
    IncomingValue::incoming_value_consume_async(container.get_data(name, 0, u64::MAX)?)
}

fn failed(why: impl Debug) -> ErrorCode {
    ErrorCode::InternalError(Some(format!("{why:?}")))
}
