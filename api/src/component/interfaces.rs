//! The interfaces that hosts know: always provided, provided when granted, and those that make a kind.
//!
//! Owns the lists and how versions match. The runtime links these same names (its own test holds the
//! lists equal): a component that passes here must not fail to link there.

use crate::spec::Kind;

/// What every component may import, each with the versions that fit: `@0.2` is any released 0.2.x
/// (0.2.0 to 0.2.12 and what comes), anything else is exactly that version, or none.
pub const PROVIDED: &[&str] = &[
    "wasi:cli/environment@0.2",
    "wasi:cli/exit@0.2",
    "wasi:cli/stderr@0.2",
    "wasi:cli/stdin@0.2",
    "wasi:cli/stdout@0.2",
    "wasi:cli/terminal-input@0.2",
    "wasi:cli/terminal-output@0.2",
    "wasi:cli/terminal-stderr@0.2",
    "wasi:cli/terminal-stdin@0.2",
    "wasi:cli/terminal-stdout@0.2",
    "wasi:clocks/monotonic-clock@0.2",
    "wasi:clocks/wall-clock@0.2",
    "wasi:filesystem/preopens@0.2",
    "wasi:filesystem/types@0.2",
    "wasi:http/types@0.2",
    "wasi:io/error@0.2",
    "wasi:io/poll@0.2",
    "wasi:io/streams@0.2",
    "wasi:random/insecure@0.2",
    "wasi:random/insecure-seed@0.2",
    "wasi:random/random@0.2",
    "wasi:sockets/instance-network@0.2",
    "wasi:sockets/ip-name-lookup@0.2",
    "wasi:sockets/network@0.2",
    "wasi:sockets/tcp@0.2",
    "wasi:sockets/tcp-create-socket@0.2",
    "wasi:sockets/udp@0.2",
    "wasi:sockets/udp-create-socket@0.2",
    "wasi:cli/environment@0.3",
    "wasi:cli/exit@0.3",
    "wasi:cli/stderr@0.3",
    "wasi:cli/stdin@0.3",
    "wasi:cli/stdout@0.3",
    "wasi:cli/terminal-input@0.3",
    "wasi:cli/terminal-output@0.3",
    "wasi:cli/terminal-stderr@0.3",
    "wasi:cli/terminal-stdin@0.3",
    "wasi:cli/terminal-stdout@0.3",
    "wasi:cli/types@0.3",
    "wasi:clocks/monotonic-clock@0.3",
    "wasi:clocks/system-clock@0.3",
    "wasi:clocks/types@0.3",
    "wasi:filesystem/preopens@0.3",
    "wasi:filesystem/types@0.3",
    "wasi:http/types@0.3",
    "wasi:random/insecure@0.3",
    "wasi:random/insecure-seed@0.3",
    "wasi:random/random@0.3",
    "wasi:sockets/ip-name-lookup@0.3",
    "wasi:sockets/types@0.3",
    "wasi:config/store@0.2.0-rc.1",
    // The same by the names that wasmCloud 1 and Spin have for it.
    "wasi:config/runtime@0.2.0-draft",
    "wasi:config/store@0.2.0-draft",
    "wasi:config/store@0.2.0-draft-2024-09-27",
    "wasi:logging/logging@0.1.0-draft",
    "wasi:logging/logging",
    "wasmcloud:messaging/types@0.2",
];

/// A binding that no spec can have yet: there is no store of secrets.
pub(super) const SECRETS: &str = "secrets";

/// What a component may import when the binding named grants it. Sockets and file systems are
/// provided always and deny at run time: toolchains import them without using them.
pub const GRANTED: &[(&str, &str)] = &[
    ("wasi:http/outgoing-handler@0.2", "http"),
    ("wasi:http/client@0.3", "http"),
    ("wasmcloud:messaging/consumer@0.2", "publish"),
    ("wasmcloud:secrets/store@0.1.0-draft", SECRETS),
    ("wasmcloud:secrets/reveal@0.1.0-draft", SECRETS),
    ("wasi:keyvalue/store@0.2.0-draft", "keyvalue"),
    ("wasi:keyvalue/atomics@0.2.0-draft", "keyvalue"),
    ("wasi:keyvalue/batch@0.2.0-draft", "keyvalue"),
    ("wasi:keyvalue/store@0.2.0-draft2", "keyvalue"),
    ("wasi:keyvalue/atomics@0.2.0-draft2", "keyvalue"),
    ("wasi:keyvalue/batch@0.2.0-draft2", "keyvalue"),
    ("wasi:blobstore/blobstore@0.2.0-draft", "blobstore"),
    ("wasi:blobstore/container@0.2.0-draft", "blobstore"),
    ("wasi:blobstore/types@0.2.0-draft", "blobstore"),
];

/// What a core module may import from.
pub const PREVIEW1_MODULES: &[&str] = &["wasi_snapshot_preview1"];

/// The exports that make a kind; a command is named by the first of its kinds.
const KINDS: &[(&str, Kind)] = &[
    ("wasi:http/incoming-handler@0.2", Kind::Http),
    ("wasi:http/handler@0.3", Kind::Http),
    ("wasmcloud:messaging/handler@0.2", Kind::Messages),
    ("wasi:cli/run@0.2", Kind::Service),
    ("wasi:cli/run@0.3", Kind::Service),
];

/// Whether a name (`wasi:http/types@0.2.4`) is one of this list's entry (`wasi:http/types@0.2`).
fn fits(name: &str, entry: &str) -> bool {
    // A draft or a release candidate is another interface than any other version, and so is one without.
    if entry
        .split_once('@')
        .is_none_or(|(_, version)| version.contains('-'))
    {
        return name == entry;
    }
    name.strip_prefix(entry)
        .and_then(|rest| rest.strip_prefix('.'))
        .is_some_and(|patch| !patch.is_empty() && patch.bytes().all(|b| b.is_ascii_digit()))
}

pub(super) fn provided(name: &str) -> bool {
    PROVIDED.iter().any(|entry| fits(name, entry))
}

/// The binding that grants this import.
pub(super) fn granted_by(name: &str) -> Option<&'static str> {
    GRANTED
        .iter()
        .find(|(entry, _)| fits(name, entry))
        .map(|(_, binding)| *binding)
}

/// The kind that this export makes.
pub(super) fn makes(name: &str) -> Option<Kind> {
    KINDS
        .iter()
        .find(|(entry, _)| fits(name, entry))
        .map(|(_, kind)| *kind)
}

/// For an import that hosts know in other versions only: those.
pub(super) fn import_versions(name: &str) -> Vec<&'static str> {
    let granted = GRANTED.iter().map(|(entry, _)| *entry);
    versions(name, PROVIDED.iter().copied().chain(granted))
}

/// For an export that makes a kind in other versions only: those.
pub(super) fn export_versions(name: &str) -> Vec<&'static str> {
    versions(name, KINDS.iter().map(|(entry, _)| *entry))
}

fn versions(name: &str, entries: impl Iterator<Item = &'static str>) -> Vec<&'static str> {
    let interface = name.split('@').next().unwrap_or(name);
    let entries = entries.filter_map(|entry| entry.split_once('@'));
    entries
        .filter(|(known, _)| *known == interface)
        .map(|(_, version)| version)
        .collect()
}

/// The exports that deploy, for the message to a component that has none of them.
pub(super) fn kind_exports() -> String {
    let list: Vec<String> = KINDS
        .iter()
        .map(|(entry, _)| format!("{entry}.x"))
        .collect();
    list.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_match_as_linking_does() {
        for good in [
            "wasi:http/types@0.2.0",
            "wasi:http/types@0.2.12",
            "wasi:http/types@0.3.0",
            "wasi:cli/types@0.3.2",
            "wasi:config/store@0.2.0-rc.1",
            "wasi:config/store@0.2.0-draft",
            "wasi:logging/logging@0.1.0-draft",
            "wasi:logging/logging",
        ] {
            assert!(provided(good), "{good}");
        }
        for bad in [
            "wasi:http/types@0.2.0-rc-2023-11-10",
            "wasi:http/types@0.2",
            "wasi:http/types",
            "wasi:http/types@1.0.0",
            "wasi:http/types@0.20.1",
            "wasi:http/types@0.2.",
            "wasi:config/store@0.2.0",
            "wasi:config/store@0.2.0-rc.1.1",
            "wasi:config/store@0.2.0-draft-2024",
            "wasi:config/store",
            "wasi:logging/logging.1",
            "wasi:clocks/timezone@0.2.1",
            "wasi:http/types@0.3.0-rc-2025-09-16",
        ] {
            assert!(!provided(bad), "{bad}");
        }
        assert_eq!(granted_by("wasi:http/outgoing-handler@0.2.4"), Some("http"));
        assert_eq!(makes("wasi:cli/run@0.2.6"), Some(Kind::Service));
        assert_eq!(
            import_versions("wasi:http/types@0.2.0-rc-2023-11-10"),
            ["0.2", "0.3"]
        );
        assert_eq!(
            export_versions("wasi:http/handler@0.3.0-rc-2025-09-16"),
            ["0.3"]
        );
    }
}
