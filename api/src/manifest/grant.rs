//! `--grant`: one line of `bindings` on the command line.
//!
//! Owns its grammar (docs/reference.md, "Grants") and the way back, which refusals print.

use super::bindings::DEFAULT_BACKEND;
use super::grammar::{self, Wildcards};
use super::reader::{echo, nearest};
use crate::error::Problem;
use crate::spec::{Bindings, Sockets, StoreBinding, Subscription, Volume};

const NAMES: [&str; 8] = [
    "http",
    "workloads",
    "publish",
    "subscribe",
    "keyvalue",
    "blobstore",
    "volume",
    "sockets",
];

/// Adds what one `--grant NAME=VALUE` grants; the same grant twice changes nothing.
pub fn read_grant(text: &str, bindings: &mut Bindings) -> Result<(), Problem> {
    add(text, bindings).map_err(|what| Problem {
        at: format!(
            "--grant {}",
            text.chars()
                .take(80)
                .flat_map(char::escape_debug)
                .collect::<String>()
        ),
        line: None,
        column: None,
        what,
    })
}

fn add(text: &str, bindings: &mut Bindings) -> Result<(), String> {
    let Some((name, value)) = text.split_once('=') else {
        return Err("write NAME=VALUE, as in http=api.example.com".into());
    };
    match name {
        "http" => add_text(&mut bindings.http, value, grammar::http_pattern),
        "workloads" => add_text(&mut bindings.workloads, value, grammar::workload_reference),
        "publish" => add_text(&mut bindings.publish, value, |text| {
            grammar::subject(text, Wildcards::Allowed)
        }),
        "subscribe" => {
            grammar::subject(value, Wildcards::Allowed)?;
            if !bindings
                .subscribe
                .iter()
                .any(|other| other.subject == value)
            {
                bindings.subscribe.push(Subscription {
                    subject: value.into(),
                    ..Subscription::default()
                });
            }
            Ok(())
        }
        "keyvalue" | "blobstore" => {
            grammar::binding_name(value)?;
            let stores = if name == "keyvalue" {
                &mut bindings.keyvalue
            } else {
                &mut bindings.blobstore
            };
            stores.entry(value.into()).or_insert_with(|| StoreBinding {
                backend: DEFAULT_BACKEND.into(),
                ..StoreBinding::default()
            });
            Ok(())
        }
        "volume" => add_volume(value, bindings),
        "sockets" => add_socket(value, bindings),
        _ => {
            let hint = nearest(name, NAMES.into_iter()).map_or_else(
                || format!("the grants are {}", NAMES.join(", ")),
                |word| format!("did you mean `{word}`?"),
            );
            Err(format!("{} is no grant: {hint}", echo(name)))
        }
    }
}

fn add_text(
    list: &mut Vec<String>,
    text: &str,
    check: impl Fn(&str) -> Result<(), String>,
) -> Result<(), String> {
    check(text)?;
    if !list.iter().any(|other| other == text) {
        list.push(text.into());
    }
    Ok(())
}

/// `NAME:/PATH` or `NAME:/PATH:ro`.
fn add_volume(value: &str, bindings: &mut Bindings) -> Result<(), String> {
    let Some((name, path)) = value.split_once(':') else {
        return Err("write volume=NAME:/PATH or volume=NAME:/PATH:ro".into());
    };
    let (path, mode) = match path.rsplit_once(':') {
        Some((path, mode @ ("ro" | "rw"))) => (path, mode),
        _ => (path, "rw"),
    };
    grammar::binding_name(name)?;
    grammar::guest_path(path)?;
    if let Some((other, _)) = bindings
        .volume
        .iter()
        .find(|(other, volume)| *other != name && volume.path == path)
    {
        return Err(format!(
            "{} is already the path of volume {}",
            echo(path),
            echo(other)
        ));
    }
    // The size and the rest of a volume that the manifest has already described stay.
    let volume = bindings
        .volume
        .entry(name.into())
        .or_insert_with(|| Volume {
            on_host_loss: "wait".into(),
            ..Volume::default()
        });
    path.clone_into(&mut volume.path);
    mode.clone_into(&mut volume.mode);
    Ok(())
}

/// `connect:HOST:PORT` or `listen:PORT`.
fn add_socket(value: &str, bindings: &mut Bindings) -> Result<(), String> {
    let wrong = || Err("write sockets=connect:HOST:PORT or sockets=listen:PORT".to_owned());
    match value.split_once(':') {
        Some(("connect", target)) => {
            grammar::socket_target(target)?;
            let sockets = bindings.sockets.get_or_insert_with(Sockets::default);
            add_text(&mut sockets.connect, target, |_| Ok(()))
        }
        Some(("listen", port)) => {
            let legal = port.bytes().all(|b| b.is_ascii_digit());
            let Some(port) = port.parse::<u16>().ok().filter(|port| legal && *port > 0) else {
                return Err(format!("{} is no port: 1 to 65535", echo(port)));
            };
            let sockets = bindings.sockets.get_or_insert_with(Sockets::default);
            if !sockets.listen.contains(&port) {
                sockets.listen.push(port);
            }
            Ok(())
        }
        _ => wrong(),
    }
}

/// The flags that grant this, as far as flags can: a store's bucket, a volume's size and a
/// consumer's settings need a manifest.
pub fn grant_flags(bindings: &Bindings) -> Vec<String> {
    let mut flags = Vec::new();
    let mut flag = |name: &str, value: &str| flags.push(format!("--grant {}", quoted(name, value)));
    for (name, list) in [
        ("http", &bindings.http),
        ("workloads", &bindings.workloads),
        ("publish", &bindings.publish),
    ] {
        list.iter().for_each(|text| flag(name, text));
    }
    bindings
        .subscribe
        .iter()
        .for_each(|subscription| flag("subscribe", &subscription.subject));
    bindings
        .keyvalue
        .keys()
        .for_each(|name| flag("keyvalue", name));
    bindings
        .blobstore
        .keys()
        .for_each(|name| flag("blobstore", name));
    for (name, volume) in &bindings.volume {
        let suffix = if volume.mode == "ro" { ":ro" } else { "" };
        flag("volume", &format!("{name}:{}{suffix}", volume.path));
    }
    if let Some(sockets) = &bindings.sockets {
        sockets
            .connect
            .iter()
            .for_each(|target| flag("sockets", &format!("connect:{target}")));
        sockets
            .listen
            .iter()
            .for_each(|port| flag("sockets", &format!("listen:{port}")));
    }
    flags
}

/// `name=value`, in single quotes when a shell would change it.
fn quoted(name: &str, value: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.:/,+@%".contains(c);
    if value.chars().all(plain) {
        format!("{name}={value}")
    } else {
        format!("'{name}={}'", value.replace('\'', r"'\''"))
    }
}
