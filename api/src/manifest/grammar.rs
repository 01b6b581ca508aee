//! What single texts may look like: subjects, host patterns, addresses, labels, variables, paths.
//!
//! Owns these small grammars; each check says what is wrong and shows what would be right. It must
//! not know where in a manifest a text stands.

use std::net::IpAddr;

use super::reader::echo;
use crate::ids::Name;
use crate::schedule::Schedule;

/// No text of these kinds is longer; a NATS subject must fit a protocol line.
const TEXT_BYTES_MAX: usize = 512;

/// Whether a subject may hold `*` and `>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wildcards {
    /// Only plain tokens.
    Refused,
    /// `*` for one token, `>` for all that follow.
    Allowed,
}

/// A NATS subject that a workload may be granted.
///
/// Refused is what reaches wasmorch's own subjects, the server's (`$..`) and inboxes; so the first
/// token is no wildcard.
pub fn subject(text: &str, wildcards: Wildcards) -> Result<(), String> {
    let not = |why: &str| Err(format!("{} is not a subject: {why}", echo(text)));
    if text.len() > TEXT_BYTES_MAX {
        return not("it is longer than 512 bytes");
    }
    if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return not("it holds a space or a control character");
    }
    let tokens: Vec<&str> = text.split('.').collect();
    if tokens.contains(&"") {
        return not("write tokens with one `.` between two, as in shop.orders.placed");
    }
    for (index, token) in tokens.iter().enumerate() {
        let wild = matches!(*token, "*" | ">");
        if wild && wildcards == Wildcards::Refused {
            return not("it must be one subject, without `*` and `>`");
        }
        if !wild && token.contains(['*', '>']) {
            return not("`*` and `>` stand for whole tokens");
        }
        if *token == ">" && index + 1 < tokens.len() {
            return not("`>` can only stand at the end");
        }
    }
    let first = tokens[0];
    if matches!(first, "*" | ">") {
        return not("it would reach subjects that are wasmorch's own: begin with a word");
    }
    if first == "wasmorch" || first.starts_with('$') || first.starts_with("_INBOX") {
        return not("it belongs to wasmorch, the server or another client's inbox");
    }
    Ok(())
}

/// `host`, `host:port` or `[v6]:port`, split; `None` when what follows the last `:` is no port.
fn split_port(text: &str) -> Option<(&str, Option<u16>)> {
    let port = |text: &str| {
        text.bytes()
            .all(|b| b.is_ascii_digit())
            .then_some(text)?
            .parse()
            .ok()
            .filter(|port| *port > 0)
    };
    if let Some(rest) = text.strip_prefix('[') {
        let (host, rest) = rest.split_once(']')?;
        return match rest.strip_prefix(':') {
            Some(text) => Some((host, Some(port(text)?))),
            None => rest.is_empty().then_some((host, None)),
        };
    }
    match text.split_once(':') {
        // More than one colon: an IPv6 address without a port.
        Some((_, rest)) if rest.contains(':') => Some((text, None)),
        Some((host, text)) => Some((host, Some(port(text)?))),
        None => Some((text, None)),
    }
}

fn host_name(name: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    name.len() <= 253 && name.strip_suffix('.').unwrap_or(name).split('.').all(label)
}

/// Where outbound HTTP may go: `host[:port]`, `*.host[:port]`, an address, or `*`.
pub fn http_pattern(text: &str) -> Result<(), String> {
    let not = |why: &str| {
        Err(format!(
            "{} is not a host: {why}; write it like api.example.com, *.example.com:8443 or *",
            echo(text)
        ))
    };
    if text.contains("://") {
        return not("leave out the scheme");
    }
    if text.contains('/') {
        return not("leave out the path");
    }
    let Some((host, _)) = split_port(text) else {
        return not("its port is no number from 1 to 65535");
    };
    if host == "*"
        || host.parse::<IpAddr>().is_ok()
        || host_name(host.strip_prefix("*.").unwrap_or(host))
    {
        return Ok(());
    }
    not("its name is not one of letters, digits, `-` and `.`")
}

/// Where a socket may connect to: a name, an address or a range, and a port.
pub fn socket_target(text: &str) -> Result<(), String> {
    let not = |why: &str| {
        Err(format!(
            "{} is not an address: {why}; write it like 10.0.0.5:5432, db.example:5432 or 10.0.0.0/8:53",
            echo(text)
        ))
    };
    let Some((host, port)) = split_port(text) else {
        return not("its port is no number from 1 to 65535");
    };
    if port.is_none() {
        return not("it has no port");
    }
    if let Some((address, bits)) = host.split_once('/') {
        let width = match address.parse::<IpAddr>() {
            Ok(IpAddr::V4(_)) => 32,
            Ok(IpAddr::V6(_)) => 128,
            Err(_) => return not("its range is no ADDRESS/BITS"),
        };
        return match bits.parse::<u8>() {
            Ok(bits) if bits <= width => Ok(()),
            _ => not("its range has too many bits"),
        };
    }
    if host == "*" || host.parse::<IpAddr>().is_ok() || host_name(host) {
        return Ok(());
    }
    not("its host is no name and no address")
}

/// Another workload: `name`, or `name.namespace`.
pub fn workload_reference(text: &str) -> Result<(), String> {
    let (name, namespace) = text.split_once('.').unwrap_or((text, "default"));
    if name.parse::<Name>().is_ok() && namespace.parse::<Name>().is_ok() {
        return Ok(());
    }
    Err(format!(
        "{} is not a workload: write its name, or NAME.NAMESPACE",
        echo(text)
    ))
}

/// A host label's name, or `host`.
pub fn label(text: &str) -> Result<(), String> {
    let legal = (1..=128).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-_./".contains(&b));
    if legal {
        Ok(())
    } else {
        Err(format!(
            "{} is not a label: use letters, digits, `-`, `_`, `.`, `/`",
            echo(text)
        ))
    }
}

/// A label's value: one line, no control characters.
pub fn label_value(text: &str) -> Result<(), String> {
    if text.len() <= 256 && !text.chars().any(char::is_control) {
        return Ok(());
    }
    Err(format!(
        "{} is not a label's value: at most 256 bytes on one line",
        echo(text)
    ))
}

/// A taint that is tolerated: `KEY` or `KEY=VALUE`.
pub fn taint(text: &str) -> Result<(), String> {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    label(key).and_then(|()| label_value(value))
}

/// An environment variable's name.
pub fn variable_name(text: &str) -> Result<(), String> {
    if text.is_empty() {
        return Err("a variable needs a name".into());
    }
    if text.contains(['=', '\0']) || text.len() > 256 {
        return Err(format!(
            "{} cannot name a variable: no `=`, no NUL, at most 256 bytes",
            echo(text)
        ));
    }
    Ok(())
}

/// The value of an environment variable or of `wasi:config`, or an argument.
pub fn variable_value(text: &str) -> Result<(), String> {
    if text.contains('\0') {
        return Err("holds a NUL character, which cannot be passed on".into());
    }
    Ok(())
}

/// A text that is told again: who asks, or what is looked up. It stands in answers, events and headers.
pub fn free_text(text: &str) -> Result<(), String> {
    if text.len() > FREE_TEXT_MAX || text.chars().any(char::is_control) {
        return Err(format!(
            "must be at most {FREE_TEXT_MAX} bytes, without control characters"
        ));
    }
    Ok(())
}

/// Bytes of one.
const FREE_TEXT_MAX: usize = 200;

/// The arguments that a run is started with: no more than a spec could have.
pub fn arguments(args: &[String]) -> Result<(), String> {
    let bytes: usize = args.iter().map(String::len).sum();
    if args.len() > super::LIST_MAX || bytes > super::SPEC_BYTES_MAX {
        return Err(format!(
            "must be at most {} arguments of {} KiB together",
            super::LIST_MAX,
            super::SPEC_BYTES_MAX >> 10
        ));
    }
    args.iter().try_for_each(|arg| variable_value(arg))
}

/// A volume's or store's name.
pub fn binding_name(text: &str) -> Result<(), String> {
    let legal = (1..=63).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    if legal {
        Ok(())
    } else {
        Err(format!(
            "{} cannot name a binding: use 1 to 63 letters, digits, `-`, `_`",
            echo(text)
        ))
    }
}

/// Where a guest sees a volume.
pub fn guest_path(text: &str) -> Result<(), String> {
    let not = |why: &str| Err(format!("{} is not a path for a volume: {why}", echo(text)));
    if !text.starts_with('/') {
        return not("it must be absolute, as in /data");
    }
    if text.len() > TEXT_BYTES_MAX || text.chars().any(char::is_control) {
        return not("it is longer than 512 bytes or holds a control character");
    }
    if text.split('/').any(|part| part == "." || part == "..") {
        return not("it holds `.` or `..`");
    }
    if text.contains(':') {
        return not("it holds `:`, which ends the path in --grant");
    }
    Ok(())
}

/// The path that a probe asks for.
pub fn probe_path(text: &str) -> Result<(), String> {
    let legal = text.starts_with('/')
        && text.len() <= TEXT_BYTES_MAX
        && text.bytes().all(|b| b.is_ascii_graphic());
    if legal {
        Ok(())
    } else {
        Err(format!(
            "{} is not a path to ask for: write it like /healthz",
            echo(text)
        ))
    }
}

/// A cron schedule, in any zone.
pub fn schedule(text: &str) -> Result<(), String> {
    Schedule::parse(text, None).map(drop)
}

/// A time zone of the IANA database.
pub fn timezone(text: &str) -> Result<(), String> {
    crate::schedule::zone(text).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(check: impl Fn(&str) -> Result<(), String>, good: &[&str], bad: &[&str]) {
        for text in good {
            assert_eq!(check(text), Ok(()), "{text}");
        }
        for text in bad {
            assert!(check(text).is_err(), "{text:?} passed");
        }
    }

    #[test]
    fn subjects() {
        let wild = |text: &str| subject(text, Wildcards::Allowed);
        all(
            wild,
            &["a", "shop.orders.*", "a.>", "a.*.b", "wasmorchid.x"],
            &[
                "",
                "a..b",
                ".a",
                "a.",
                "a b",
                "a.>.b",
                "a.b*",
                ">",
                "*.a",
                "$SYS.a",
                "$JS.API",
                "wasmorch.v1.x",
                "_INBOX.x",
                "_INBOX_abc.x",
                "a\n.b",
                &"a".repeat(513),
            ],
        );
        assert!(subject("a.*", Wildcards::Refused).is_err());
        assert!(subject("a.b", Wildcards::Refused).is_ok());
    }

    #[test]
    fn hosts_and_addresses() {
        all(
            http_pattern,
            &[
                "a.b",
                "*.a.b:8443",
                "*",
                "10.0.0.5",
                "10.0.0.5:80",
                "[::1]:80",
                "::1",
                "localhost:1",
            ],
            &[
                "",
                "https://a.b",
                "a.b/c",
                "a.b:0",
                "a.b:99999",
                "a.b:+1",
                "a b",
                "a.*",
                "*.",
                "a..b",
                "[::1",
            ],
        );
        all(
            socket_target,
            &[
                "db:5432",
                "10.0.0.5:5432",
                "10.0.0.0/8:53",
                "[::1]:53",
                "[fd00::/8]:53",
                "*:443",
            ],
            &["db", "db:", ":1", "10.0.0.0/33:1", "x/8:1", "::1", "a b:1"],
        );
        all(
            workload_reference,
            &["orders", "orders.erp"],
            &["", "a.b.c", "A", "a.", "*"],
        );
    }

    #[test]
    fn names_and_paths() {
        all(variable_name, &["A", "a.b", "ü"], &["", "A=B", "A\0"]);
        all(
            guest_path,
            &["/", "/data", "/a/b"],
            &["", "data", "/a/../b", "/a\n", "/a:ro"],
        );
        all(taint, &["edge", "gpu=yes"], &["", "=x", "a b"]);
        all(probe_path, &["/", "/healthz?x=1"], &["", "x", "/a b", "/ü"]);
    }

    #[test]
    fn schedules() {
        all(
            schedule,
            &[
                "0 3 * * *",
                "*/5 0-6,12 1 jan-mar mon",
                "@daily",
                "0 0 * * 7",
            ],
            &[
                "",
                "* * * *",
                "60 * * * *",
                "* * 0 * *",
                "*/0 * * * *",
                "5-1 * * * *",
                "@never",
                "a * * * *",
                "0 3 * * * *",
            ],
        );
        all(
            timezone,
            &["UTC", "Europe/Berlin", "Etc/GMT+1"],
            &["", "/etc/passwd", "a b"],
        );
    }
}
