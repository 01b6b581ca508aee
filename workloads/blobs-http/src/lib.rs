//! Objects in `wasi:blobstore`, written and read as streams: what `--grant blobstore=NAME` grants.
//!
//! | path | what it does |
//! | --- | --- |
//! | `/put?CONTAINER/NAME=BYTES`, `/drop?CONTAINER/NAME=BYTES` | writes `x`; writes it and does not finish |
//! | `/get?CONTAINER/NAME`, `/sum?CONTAINER/NAME` | passes the object on; counts its bytes |
//! | `/range?CONTAINER/NAME=FROM-TO` | the size of a part |
//! | `/info?CONTAINER/NAME`, `/has?CONTAINER/NAME`, `/delete?CONTAINER/NAME` | one object |
//! | `/list?CONTAINER`, `/clear?CONTAINER` | all of them |
//! | `/copy?CONTAINER/NAME=CONTAINER/NAME`, `/move?..` | the same object elsewhere |
//!
//! Names are percent-encoded. A failure is answered with 502 and its text.

use answer::{answer, decoded, respond, target};
use wasi::blobstore::blobstore::{copy_object, get_container, move_object};
use wasi::blobstore::container::Container;
use wasi::blobstore::types::{IncomingValue, ObjectId, OutgoingValue};
use wasip2::http::types::{IncomingRequest, ResponseOutparam};
use wasip2::io::streams::{InputStream, StreamError};

/// The most that one blocking write of `wasi:io` takes.
const WRITE_BYTES_MAX: u64 = 4096;

wit_bindgen::generate!({
    path: [
        "../../wit/deps/wasi-io-0.2",
        "../../wit/deps/wasi-blobstore",
    ],
    inline: "
        package wasmorch:samples;

        world blobs {
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

struct Blobs;

wasip2::http::proxy::export!(Blobs);

impl wasip2::exports::http::incoming_handler::Guest for Blobs {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let (path, query) = target(&request);
        if path == "/" {
            return answer(out, 200, "try /put?default/cat=1000\n");
        }
        if path == "/get" {
            return match value(&query).and_then(IncomingValue::incoming_value_consume_async) {
                Ok(stream) => respond(out, 200, |output| {
                    read(&stream, |part| output.blocking_write_and_flush(part))
                }),
                Err(why) => answer(out, 502, &why),
            };
        }
        match act(&path, &query) {
            Ok(body) => respond(out, 200, |stream| {
                let mut parts = body.as_bytes().chunks(WRITE_BYTES_MAX as usize);
                parts.try_for_each(|part| stream.blocking_write_and_flush(part))
            }),
            Err(why) => answer(out, 502, &why),
        }
    }
}

fn act(path: &str, query: &str) -> Result<String, String> {
    let (first, second) = query.split_once('=').unwrap_or((query, ""));
    let object = id(first);
    let open = || get_container(&object.container);
    let name = &object.object;
    match path {
        "/put" | "/drop" => put(&open()?, name, number(second)?, path == "/put"),
        "/sum" => {
            let value = value(first)?;
            let size = value.size();
            let stream = IncomingValue::incoming_value_consume_async(value)?;
            let mut sum = 0;
            read(&stream, |part| {
                sum += part.len();
                Ok(())
            })
            .map_err(|error| format!("{error:?}"))?;
            Ok(format!("{sum} of {size}"))
        }
        "/range" => {
            let (from, to) = second.split_once('-').ok_or("FROM-TO")?;
            let value = open()?.get_data(name, number(from)?, number(to)?)?;
            let bytes = IncomingValue::incoming_value_consume_sync(value)?;
            Ok(bytes.len().to_string())
        }
        "/info" => {
            let info = open()?.object_info(name)?;
            let recent = info.created_at > 1_700_000_000;
            Ok(format!(
                "{} {} {} {recent}",
                info.container, info.name, info.size
            ))
        }
        "/has" => Ok(open()?.has_object(name)?.to_string()),
        "/delete" => open()?.delete_object(name).map(done),
        "/list" => list(&open()?),
        "/clear" => open()?.clear().map(done),
        "/copy" => copy_object(&object, &id(second)).map(done),
        "/move" => move_object(&object, &id(second)).map(done),
        _ => Err("no such path".into()),
    }
}

fn done((): ()) -> String {
    "done".into()
}

fn put(container: &Container, name: &str, bytes: u64, finish: bool) -> Result<String, String> {
    let value = OutgoingValue::new_outgoing_value();
    let stream = value.outgoing_value_write_body().map_err(|()| "no body")?;
    container.write_data(name, &value)?;
    let part = [b'x'; WRITE_BYTES_MAX as usize];
    let mut left = bytes;
    while left > 0 {
        let length = left.min(WRITE_BYTES_MAX);
        let part = &part[..length as usize];
        let written = stream.blocking_write_and_flush(part);
        written.map_err(|error| format!("{error:?}"))?;
        left -= length;
    }
    drop(stream); // a child of the value: it goes first
    if finish {
        OutgoingValue::finish(value)?;
    }
    Ok(done(()))
}

fn value(query: &str) -> Result<IncomingValue, String> {
    let object = id(query);
    get_container(&object.container)?.get_data(&object.object, 0, u64::MAX)
}

fn read(
    stream: &InputStream,
    mut each: impl FnMut(&[u8]) -> Result<(), StreamError>,
) -> Result<(), StreamError> {
    loop {
        match stream.blocking_read(WRITE_BYTES_MAX) {
            Ok(part) => each(&part)?,
            Err(StreamError::Closed) => return Ok(()),
            Err(failed) => return Err(failed),
        }
    }
}

fn list(container: &Container) -> Result<String, String> {
    let stream = container.list_objects()?;
    let mut names = Vec::new();
    loop {
        let (mut some, ended) = stream.read_stream_object_names(3)?;
        names.append(&mut some);
        if ended {
            names.sort();
            return Ok(names.join("\n"));
        }
    }
}

fn id(text: &str) -> ObjectId {
    let (container, object) = text.split_once('/').unwrap_or((text, ""));
    ObjectId {
        container: container.to_owned(),
        object: String::from_utf8_lossy(&decoded(object)).into_owned(),
    }
}

fn number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("`{text}` is no number"))
}
