//! What a key of a bucket holds, and the form in which keys go over NATS.

use async_nats::jetstream::message::StreamMessage;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;

/// What was done to a key, when not written.
pub(super) const OPERATION: &str = "KV-Operation";
/// Why a server has removed it.
pub(super) const MARKER_REASON: &str = "Nats-Marker-Reason";
/// The object that holds a large value.
pub(super) const LARGE: &str = "Wasmorch-Large";

/// What a key holds.
pub(super) struct Entry {
    pub(super) revision: u64,
    pub(super) value: Held,
}

pub(super) enum Held {
    Nothing,
    Small(Bytes),
    Large(String),
}

pub(super) fn encode(key: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_/=.".contains(&b);
    let is_key = !key.is_empty()
        && !key.starts_with(['=', '.'])
        && !key.ends_with('.')
        && !key.contains("..")
        && key.bytes().all(plain);
    if is_key {
        key.to_owned()
    } else {
        format!("={}", URL_SAFE_NO_PAD.encode(key))
    }
}

/// `None`: nothing that was encoded here.
pub(super) fn decode(encoded: &str) -> Option<String> {
    match encoded.strip_prefix('=') {
        None => Some(encoded.to_owned()),
        Some(rest) => String::from_utf8(URL_SAFE_NO_PAD.decode(rest).ok()?).ok(),
    }
}

impl Entry {
    pub(super) const NONE: Self = Self {
        revision: 0,
        value: Held::Nothing,
    };

    pub(super) fn of(message: StreamMessage) -> Self {
        let header = |name: &str| message.headers.get(name).map(|value| value.as_str());
        let marker = header(OPERATION).is_some() || header(MARKER_REASON).is_some();
        let value = match header(LARGE) {
            _ if marker => Held::Nothing,
            Some(object) => Held::Large(object.to_owned()),
            None => Held::Small(message.payload),
        };
        Self {
            revision: message.sequence,
            value,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_key_has_a_form_that_nats_takes_and_comes_back() {
        for (key, plain) in [
            ("cart", true),
            ("user/42.name", true),
            ("a=b", true),
            ("", false),
            ("=", false),
            (".a", false),
            ("a.", false),
            ("a..b", false),
            ("a b", false),
            ("*", false),
            (">", false),
            ("ключ", false),
            ("a\r\nPUB x", false),
        ] {
            let encoded = encode(key);
            assert_eq!(encoded == key, plain, "{key:?}");
            assert!(
                encoded
                    .split('.')
                    .all(|token| !token.is_empty() && !token.contains(['*', '>', ' ', '\r'])),
                "{encoded}"
            );
            assert_eq!(decode(&encoded).as_deref(), Some(key));
        }
        assert_eq!(decode("=!"), None, "somebody else's");
    }
}
