//! Values kept in `wasi:keyvalue`, in both drafts: what `--grant keyvalue=NAME` grants.
//!
//! | path | what it does |
//! | --- | --- |
//! | `/get?STORE/KEY`, `/exists?STORE/KEY`, `/size?STORE/KEY` | reads |
//! | `/set?STORE/KEY=VALUE`, `/fill?STORE/KEY=BYTES`, `/delete?STORE/KEY` | writes |
//! | `/increment?STORE/KEY` | adds one |
//! | `/swap?STORE/KEY` | swaps a value that changes meanwhile: refused once, read again, then done |
//! | `/batch?STORE` | sets, gets and deletes several keys |
//! | `/list?STORE` | every key, a line each |
//! | `/config?/KEY`, `/config` | what `wasi:config` has under KEY, or all of it, a line each; in all its versions |
//! | `/log?LEVEL/TEXT` | says TEXT by `wasi:logging`, in the context `keeper` |
//! | `/warn?/TEXT` | says TEXT, a warning, by `wasi:logging` without a version |
//!
//! KEY and VALUE are percent-encoded. 403: no store is granted, 404: no such store or key, 502: it failed.

use std::fmt::Debug;

use answer::{answer, decoded, respond, target};
use wasi::config0_2_0_draft::{runtime as config_runtime, store as config_draft};
use wasi::config0_2_0_draft_2024_09_27::store as config_spin;
use wasi::config0_2_0_rc_1::store as config;
use wasi::keyvalue0_2_0_draft::store::{Bucket, Error};
use wasi::keyvalue0_2_0_draft::{atomics, batch, store};
use wasi::keyvalue0_2_0_draft2 as draft2;
use wasi::logging::logging as unversioned;
use wasi::logging0_1_0_draft::logging::{self, Level};
use wasip2::http::types::{IncomingRequest, ResponseOutparam};

/// The most that one blocking write of `wasi:io` takes.
const WRITE_BYTES_MAX: usize = 4096;

wit_bindgen::generate!({
    path: [
        "../../wit/deps/wasi-keyvalue",
        "../../wit/deps/wasi-keyvalue-draft2",
        "../../wit/deps/wasi-config",
        "../../wit/deps/wasi-config-draft",
        "../../wit/deps/wasi-config-draft-2024-09-27",
        "../../wit/deps/wasi-logging",
        "../../wit/deps/wasi-logging-unversioned",
    ],
    inline: "
        package wasmorch:samples;

        world keeper {
            import wasi:keyvalue/store@0.2.0-draft;
            import wasi:keyvalue/atomics@0.2.0-draft;
            import wasi:keyvalue/batch@0.2.0-draft;
            import wasi:keyvalue/store@0.2.0-draft2;
            import wasi:keyvalue/atomics@0.2.0-draft2;
            import wasi:config/store@0.2.0-rc.1;
            import wasi:config/store@0.2.0-draft;
            import wasi:config/runtime@0.2.0-draft;
            import wasi:config/store@0.2.0-draft-2024-09-27;
            import wasi:logging/logging@0.1.0-draft;
            import wasi:logging/logging;
        }
    ",
    generate_all,
});

struct Keeper;

wasip2::http::proxy::export!(Keeper);

impl wasip2::exports::http::incoming_handler::Guest for Keeper {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        match target(&request) {
            (path, _) if path == "/" => answer(out, 200, "try /increment?default/visits\n"),
            (path, query) => match ask(&path, &query) {
                Ok(body) => respond(out, 200, |stream| {
                    let mut parts = body.chunks(WRITE_BYTES_MAX);
                    parts.try_for_each(|part| stream.blocking_write_and_flush(part))
                }),
                Err(Failure::Path) => answer(out, 404, "no such path\n"),
                Err(Failure::NoKey) => answer(out, 404, "no such key\n"),
                Err(Failure::Store(Error::NoSuchStore)) => answer(out, 404, "no such store\n"),
                Err(Failure::Store(Error::AccessDenied)) => answer(out, 403, "access denied\n"),
                Err(Failure::Store(Error::Other(why))) => answer(out, 502, &format!("{why}\n")),
            },
        }
    }
}

enum Failure {
    Path,
    NoKey,
    Store(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Store(error)
    }
}

impl From<draft2::store::Error> for Failure {
    fn from(error: draft2::store::Error) -> Self {
        Self::Store(match error {
            draft2::store::Error::NoSuchStore => Error::NoSuchStore,
            draft2::store::Error::AccessDenied => Error::AccessDenied,
            draft2::store::Error::Other(why) => Error::Other(why),
        })
    }
}

/// The value of a key, or everything that is configured: whichever version is asked.
fn configured(key: &str) -> Result<Vec<u8>, Failure> {
    if !key.is_empty() {
        let value = agreed([
            config::get(key).map_err(failed)?,
            config_draft::get(key).map_err(failed)?,
            config_runtime::get(key).map_err(failed)?,
            config_spin::get(key).map_err(failed)?,
        ])?;
        return Ok(value.ok_or(Failure::NoKey)?.into());
    }
    let all = agreed([
        config::get_all().map_err(failed)?,
        config_draft::get_all().map_err(failed)?,
        config_runtime::get_all().map_err(failed)?,
        config_spin::get_all().map_err(failed)?,
    ])?;
    let lines = all.iter().map(|(key, value)| format!("{key}={value}\n"));
    Ok(lines.collect::<String>().into())
}

fn failed(why: impl Debug) -> Failure {
    Failure::Store(Error::Other(format!("{why:?}")))
}

fn agreed<T: PartialEq + Debug>(answers: [T; 4]) -> Result<T, Failure> {
    if answers.iter().any(|answer| *answer != answers[0]) {
        return Err(failed(answers));
    }
    let [first, ..] = answers;
    Ok(first)
}

fn level(name: &str) -> Option<Level> {
    Some(match name {
        "trace" => Level::Trace,
        "debug" => Level::Debug,
        "info" => Level::Info,
        "warn" => Level::Warn,
        "error" => Level::Error,
        "critical" => Level::Critical,
        _ => return None,
    })
}

fn ask(path: &str, query: &str) -> Result<Vec<u8>, Failure> {
    let (name, rest) = query.split_once('/').unwrap_or((query, ""));
    let (key, value) = rest.split_once('=').unwrap_or((rest, ""));
    let (key, value) = (text(key), decoded(value));
    let open = || store::open(name);
    let body = match path {
        "/get" => open()?.get(&key)?.ok_or(Failure::NoKey)?,
        "/size" => {
            let value = open()?.get(&key)?.ok_or(Failure::NoKey)?;
            let whole = value.iter().all(|byte| *byte == b'x');
            format!("{} {whole}", value.len()).into()
        }
        "/exists" => open()?.exists(&key)?.to_string().into(),
        "/set" => done(open()?.set(&key, &value)?),
        "/fill" => {
            let bytes: usize = text(&String::from_utf8_lossy(&value)).parse().unwrap_or(0);
            done(open()?.set(&key, &vec![b'x'; bytes])?)
        }
        "/delete" => done(open()?.delete(&key)?),
        "/increment" => atomics::increment(&open()?, &key, 1)?.to_string().into(),
        "/swap" => swap(name, &key)?,
        "/batch" => several(&open()?)?,
        "/list" => list(&open()?)?,
        "/config" => configured(&key)?,
        "/log" => done(logging::log(
            level(name).ok_or(Failure::Path)?,
            "keeper",
            &key,
        )),
        "/warn" => done(unversioned::log(unversioned::Level::Warn, "keeper", &key)),
        _ => return Err(Failure::Path),
    };
    Ok(body)
}

fn done((): ()) -> Vec<u8> {
    b"done".to_vec()
}

/// Compare-and-swap, which only the second draft has.
fn swap(name: &str, key: &str) -> Result<Vec<u8>, Failure> {
    use draft2::atomics::{Cas, CasError};
    let bucket = draft2::store::open(name)?;
    let handle = Cas::new(&bucket, key)?;
    bucket.set(key, b"theirs")?;
    let handle = match draft2::atomics::swap(handle, b"too late") {
        Err(CasError::CasFailed(current)) => current,
        Err(CasError::StoreError(error)) => return Err(error.into()),
        Ok(()) => return Ok(b"swapped what had changed".to_vec()),
    };
    bucket.set(key, b"theirs again")?;
    let now = handle.current()?; // the handle goes with it
    match draft2::atomics::swap(handle, b"mine") {
        Ok(()) => {}
        Err(CasError::CasFailed(_)) => return Ok(b"refused twice".to_vec()),
        Err(CasError::StoreError(error)) => return Err(error.into()),
    }
    let now = String::from_utf8_lossy(&now.unwrap_or_default()).into_owned();
    let then = bucket.get(key)?.unwrap_or_default();
    Ok(format!("{now} then {}", String::from_utf8_lossy(&then)).into())
}

fn several(bucket: &Bucket) -> Result<Vec<u8>, Error> {
    let pair = |key: &str| (key.to_owned(), key.as_bytes().to_vec());
    batch::set_many(bucket, &[pair("a"), pair("b")])?;
    let keys = ["a", "missing", "b"].map(str::to_owned);
    let found = batch::get_many(bucket, &keys)?;
    batch::delete_many(bucket, &keys)?;
    let left = batch::get_many(bucket, &keys)?;
    let shown: Vec<String> = found
        .iter()
        .map(|pair| match pair {
            Some((key, value)) => format!("{key}={}", String::from_utf8_lossy(value)),
            None => "none".to_owned(),
        })
        .collect();
    let left = left.iter().flatten().count();
    Ok(format!("{} then {left} left", shown.join(" ")).into())
}

fn list(bucket: &Bucket) -> Result<Vec<u8>, Error> {
    let mut keys = Vec::new();
    let mut cursor = None;
    loop {
        let page = bucket.list_keys(cursor)?;
        keys.extend(page.keys);
        cursor = page.cursor;
        if cursor.is_none() {
            break;
        }
    }
    keys.sort();
    Ok(keys.join("\n").into())
}

fn text(encoded: &str) -> String {
    String::from_utf8_lossy(&decoded(encoded)).into_owned()
}
