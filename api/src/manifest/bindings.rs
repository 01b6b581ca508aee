//! Reads `[workload.bindings]`.
//!
//! Owns which keys each binding has and the defaults of storage bindings.

use std::collections::BTreeMap;

use super::grammar::{self, Wildcards};
use super::reader::{Field, echo};
use crate::spec::{Bindings, Sockets, StoreBinding, Subscription, Volume};
use crate::stores;
use crate::units::ByteSize;

/// At most so many entries in one binding: a placement carries them all.
const ENTRIES_MAX: usize = 1_000;
/// A consumer may hold this many unacknowledged messages.
const IN_FLIGHT_MAX: u32 = 1_000_000;

/// A backend's word, and the settings it takes.
type Backends = [(&'static str, &'static [&'static str])];

const KEYVALUE: &Backends = &[
    ("jetstream", &["bucket"]),
    ("memory", &[]),
    ("redis", &["url", "prefix"]),
];
const BLOBSTORE: &Backends = &[
    ("jetstream", &["container"]),
    ("disk", &["container", "path", "size"]),
    ("s3", &["container", "endpoint", "region", "prefix"]),
];

/// The words of all backends, of keyvalue and of blobstore.
#[cfg(test)]
pub(crate) fn backends() -> (Vec<&'static str>, Vec<&'static str>) {
    let words = |backends: &Backends| backends.iter().map(|(word, _)| *word).collect();
    (words(KEYVALUE), words(BLOBSTORE))
}

/// The backend of a storage binding that names none.
pub(super) const DEFAULT_BACKEND: &str = "jetstream";

pub(super) fn read(field: &Field<'_>) -> Bindings {
    let mut bindings = Bindings::default();
    let Some(mut table) = field.table() else {
        return bindings;
    };
    table.texts(
        "http",
        ENTRIES_MAX,
        grammar::http_pattern,
        &mut bindings.http,
    );
    table.texts(
        "workloads",
        ENTRIES_MAX,
        grammar::workload_reference,
        &mut bindings.workloads,
    );
    let publish = |text: &str| grammar::subject(text, Wildcards::Allowed);
    table.texts("publish", ENTRIES_MAX, publish, &mut bindings.publish);
    if let Some(field) = table.take("subscribe") {
        bindings.subscribe = field
            .list(ENTRIES_MAX, |field| subscription(&field))
            .unwrap_or_default();
        for (index, subscription) in bindings.subscribe.iter().enumerate() {
            if bindings.subscribe[..index].contains(subscription) {
                field.wrong(format!("names {} twice", echo(&subscription.subject)));
                break;
            }
            let consumer = |one: &Subscription| {
                one.stream
                    .clone()
                    .map(|stream| (stream, one.durable.clone()))
            };
            let others = bindings.subscribe[..index].iter();
            if let Some((stream, durable)) = consumer(subscription)
                && { others }.any(|other| {
                    consumer(other).as_ref() == Some(&(stream.clone(), durable.clone()))
                })
            {
                field.wrong(format!(
                    "takes from the stream {} twice: give each a `durable` of its own",
                    echo(&stream)
                ));
                break;
            }
        }
    }
    if let Some(field) = table.take("keyvalue") {
        bindings.keyvalue = stores(&field, KEYVALUE);
    }
    if let Some(field) = table.take("blobstore") {
        bindings.blobstore = stores(&field, BLOBSTORE);
    }
    if let Some(field) = table.take("volume") {
        bindings.volume = field.map(ENTRIES_MAX, volume).unwrap_or_default();
        distinct_paths(&field, &bindings.volume);
    }
    bindings.sockets = table.take("sockets").and_then(|field| sockets(&field));
    table.finish_with(&[
        ("subscriptions", "subscribe"),
        ("kv", "keyvalue"),
        ("blob", "blobstore"),
    ]);
    bindings
}

fn subscription(field: &Field<'_>) -> Option<Subscription> {
    use crate::document::Value;
    let check = |field: &Field<'_>, wildcards| {
        let text = field.text()?;
        grammar::subject(text, wildcards)
            .map_err(|what| field.wrong(what))
            .ok()?;
        Some(text.to_owned())
    };
    if let Value::String(_) = field.node.value {
        let subject = check(field, Wildcards::Allowed)?;
        return Some(Subscription {
            subject,
            ..Subscription::default()
        });
    }
    let Value::Table(_) = field.node.value else {
        field.wrong("must be a subject like \"shop.orders.*\", or a table with a `subject`");
        return None;
    };
    let mut table = field.table()?;
    let subject = match table.take("subject") {
        Some(field) => check(&field, Wildcards::Allowed),
        None => {
            table.wrong("has no `subject`");
            None
        }
    };
    let mut token = |key| {
        let field = table.take(key)?;
        let text = field.text()?;
        grammar::binding_name(text)
            .map_err(|what| field.wrong(what))
            .ok()?;
        Some(text.to_owned())
    };
    let (stream, durable) = (token("stream"), token("durable"));
    let max_in_flight = table.count_option("max_in_flight", 1..=IN_FLIGHT_MAX);
    let attempts = table.count_option("attempts", 1..=1_000);
    let dead_letter = table
        .take("dead_letter")
        .and_then(|field| check(&field, Wildcards::Refused));
    if !table.has("stream") {
        for key in ["durable", "max_in_flight", "attempts", "dead_letter"] {
            if table.has(key) {
                table.wrong_at(key, "needs `stream`: only a JetStream consumer has it");
            }
        }
    }
    if let Some(stream) = &stream
        && let Err(what) = stores::check_stream(stream)
    {
        table.wrong_at("stream", what);
    }
    table.finish();
    Some(Subscription {
        subject: subject?,
        stream,
        durable,
        max_in_flight,
        attempts,
        dead_letter,
    })
}

fn stores(field: &Field<'_>, backends: &'static Backends) -> BTreeMap<String, StoreBinding> {
    field
        .map(ENTRIES_MAX, |name, field| store(name, &field, backends))
        .unwrap_or_default()
}

fn store(name: &str, field: &Field<'_>, backends: &'static Backends) -> Option<StoreBinding> {
    if let Err(what) = grammar::binding_name(name) {
        field.wrong(what);
    }
    let mut table = field.table()?;
    let words: Vec<(&str, &str)> = backends.iter().map(|(word, _)| (*word, *word)).collect();
    let mut backend = DEFAULT_BACKEND;
    table.choice("backend", &words, &mut backend);
    let keys = backends
        .iter()
        .find(|(word, _)| *word == backend)
        .map_or(&[][..], |(_, keys)| keys);
    let mut settings = BTreeMap::new();
    for key in keys {
        let Some(field) = table.take(key) else {
            continue;
        };
        let Some(text) = field.text() else { continue };
        if text.is_empty() || text.len() > 512 || text.chars().any(char::is_control) {
            field.wrong("must be 1 to 512 bytes, without control characters");
            continue;
        }
        let checked = match (*key, backend) {
            ("bucket" | "container", "jetstream") => stores::check_jetstream(text),
            ("bucket" | "container", _) => stores::check(text),
            ("path", _) => stores::check_folder(text),
            ("size", _) => stores::check_size(text).map(drop),
            _ => Ok(()),
        };
        if let Err(what) = checked {
            field.wrong(what);
            continue;
        }
        settings.insert((*key).to_owned(), text.to_owned());
    }
    for (other, key) in backends
        .iter()
        .flat_map(|(word, keys)| keys.iter().map(move |key| (word, *key)))
    {
        if !keys.contains(&key) && table.take(key).is_some() {
            table.wrong_at(key, format!("is a setting of backend = \"{other}\""));
        }
    }
    if backend == "redis" && !table.has("url") {
        table.wrong("has no `url`, as in redis://10.0.0.5:6379/0");
    }
    table.finish();
    Some(StoreBinding {
        backend: backend.to_owned(),
        settings,
    })
}

fn volume(name: &str, field: Field<'_>) -> Option<Volume> {
    if let Err(what) = grammar::binding_name(name) {
        field.wrong(what);
    }
    let mut table = field.table()?;
    let mut path = String::new();
    match table.take("path") {
        Some(field) => {
            let text = field.text()?;
            match grammar::guest_path(text) {
                Ok(()) => text.clone_into(&mut path),
                Err(what) => field.wrong(what),
            }
        }
        None => table.wrong("has no `path`: where the guest sees it"),
    }
    let size = table.unit_option("size", ByteSize(4096)..=ByteSize(1 << 50));
    let mut mode = "rw";
    table.choice("mode", &[("ro", "ro"), ("rw", "rw")], &mut mode);
    let mut on_host_loss = "wait";
    table.choice(
        "on_host_loss",
        &[("wait", "wait"), ("new", "new")],
        &mut on_host_loss,
    );
    table.finish_with(&[("read_only", "mode = \"ro\"")]);
    Some(Volume {
        path,
        size,
        mode: mode.into(),
        on_host_loss: on_host_loss.into(),
    })
}

fn distinct_paths(field: &Field<'_>, volumes: &BTreeMap<String, Volume>) {
    let mut seen: BTreeMap<&str, &str> = BTreeMap::new();
    for (name, volume) in volumes {
        if volume.path.is_empty() {
            continue;
        }
        if let Some(other) = seen.insert(volume.path.trim_end_matches('/'), name) {
            field.wrong(format!(
                "`{other}` and `{name}` have the same path {}",
                echo(&volume.path)
            ));
        }
    }
}

fn sockets(field: &Field<'_>) -> Option<Sockets> {
    let mut sockets = Sockets::default();
    let mut table = field.table()?;
    table.texts(
        "connect",
        ENTRIES_MAX,
        grammar::socket_target,
        &mut sockets.connect,
    );
    if let Some(field) = table.take("listen") {
        let ports: Vec<u16> = field
            .list(ENTRIES_MAX, |field| field.integer(1..=u16::MAX))
            .unwrap_or_default();
        if let Some((_, port)) = ports
            .iter()
            .enumerate()
            .find(|(at, port)| ports[..*at].contains(port))
        {
            field.wrong(format!("names port {port} twice"));
        }
        sockets.listen = ports;
    }
    table.finish();
    Some(sockets)
}
