//! How to reach the cluster's NATS server, as plain data: connecting is each shell's own link.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Where the server is and as whom to come.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NatsOptions {
    /// One URL or several with commas: `nats://127.0.0.1:4222`.
    pub url: String,
    /// A credentials file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub creds: Option<PathBuf>,
    /// The JetStream domain, behind a leaf node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub js_domain: Option<String>,
}

impl NatsOptions {
    /// The URLs for messages and logs: without what stands before an `@`, which may be a password.
    pub fn shown(&self) -> String {
        let host = |rest: &str| {
            rest.rsplit_once('@')
                .map_or(rest, |(_, host)| host)
                .to_owned()
        };
        let one = |url: &str| match url.split_once("://") {
            Some((scheme, rest)) => format!("{scheme}://{}", host(rest)),
            None => host(url),
        };
        let urls = self.url.split(',').map(|url| one(url.trim()));
        urls.collect::<Vec<_>>().join(",")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_not_shown() {
        let shown = |url: &str| {
            let url = url.to_owned();
            let options = NatsOptions {
                url,
                ..NatsOptions::default()
            };
            options.shown()
        };
        assert_eq!(
            shown("nats://me:secret@a:4222, nats://b:4222,me:secret@c"),
            "nats://a:4222,nats://b:4222,c"
        );
        assert_eq!(shown("u:sec@ret@h,nats://h2"), "h,nats://h2");
        assert_eq!(shown("nats://h:1"), "nats://h:1");
    }
}
