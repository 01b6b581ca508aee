//! Names and ids: newtypes that can only hold what is legal.
//!
//! Owns their grammar and how they are shown. It must not know how ids are made: randomness is
//! the caller's (the host's data folder, the controller's start), passed in as bytes.

use std::cell::RefCell;
use std::cmp::Ordering;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::str::FromStr;
use std::sync::Arc;

use serde::de::Visitor;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};

/// Why a text is no legal id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Not a DNS label.
    #[error("`{0}` is not a DNS label: use 1 to 63 of a-z, 0-9 and `-`, with no `-` at either end")]
    NotALabel(String),
    /// Not a digest.
    #[error("`{0}` is not a digest: write sha256: and 64 lower-case hex digits")]
    NotADigest(String),
    /// Not a replica id.
    #[error("`{0}` is not a replica: write SLOT-PLACEMENT-START, as in 2-7-1")]
    NotAReplica(String),
    /// Not a minted id.
    #[error("`{0}` is not an id: 1 to 64 of A-Z, a-z, 0-9, `-`, `_`")]
    NotAnId(String),
}

/// Serialises through `Display`, reads through `FromStr`: the text is the one form of an id.
macro_rules! serde_as_text {
    ($type:ty) => {
        serde_as_text!($type, str::parse::<$type>);
    };
    ($type:ty, $read:expr) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_str(Text($read))
            }
        }
    };
}

/// Reads an id from the text that is being read, without a copy of it.
struct Text<F>(F);

impl<T, F: FnOnce(&str) -> Result<T, IdError>> Visitor<'_> for Text<F> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<T, E> {
        (self.0)(text).map_err(E::custom)
    }
}

/// A workload, namespace or host name: a DNS label (RFC 1123): 1 to 63 of `[a-z0-9-]`, no hyphen
/// at either end.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Name(Arc<str>);

impl Ord for Name {
    /// Clones of one name are most of what is compared (a namespace, a key looked up by itself), and
    /// need no look at the text.
    fn cmp(&self, other: &Self) -> Ordering {
        if Arc::ptr_eq(&self.0, &other.0) {
            return Ordering::Equal;
        }
        self.0.cmp(&other.0)
    }
}

impl PartialOrd for Name {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Name {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The nearest legal name for any text: lower case, everything else made `-`; `None` when
    /// nothing legal remains.
    pub fn nearest(text: &str) -> Option<Self> {
        let folded: String = text
            .to_ascii_lowercase()
            .chars()
            .map(|c| {
                if c.is_ascii_lowercase() || c.is_ascii_digit() {
                    c
                } else {
                    '-'
                }
            })
            .take(63)
            .collect();
        folded.trim_matches('-').parse().ok()
    }
}

impl FromStr for Name {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let bytes = text.as_bytes();
        let legal = (1..=63).contains(&bytes.len())
            && bytes
                .iter()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
            && bytes.first() != Some(&b'-')
            && bytes.last() != Some(&b'-');
        if legal {
            Ok(Self(text.into()))
        } else {
            Err(IdError::NotALabel(shortened(text)))
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}
serde_as_text!(Name, Name::read);

/// So many names are kept for each thread.
const READ_MOST: usize = 1_024;

thread_local! {
    static READ: RefCell<Vec<Option<Name>>> = const { RefCell::new(Vec::new()) };
}

impl Name {
    /// The name in a message that is being read: millions of statuses that name a thousand workloads share
    /// their names.
    fn read(text: &str) -> Result<Self, IdError> {
        READ.with_borrow_mut(|read| {
            read.resize(READ_MOST, None);
            let mut hasher = DefaultHasher::new();
            text.hash(&mut hasher);
            let known = &mut read[hasher.finish() as usize % READ_MOST];
            match known {
                Some(name) if name.as_str() == text => Ok(name.clone()),
                _ => Ok(known.insert(text.parse()?).clone()),
            }
        })
    }
}

impl Default for Name {
    /// The namespace `default`.
    fn default() -> Self {
        Self("default".into())
    }
}

/// At most 80 characters of an input that is echoed back in an error.
fn shortened(text: &str) -> String {
    if text.chars().count() <= 80 {
        return text.to_owned();
    }
    text.chars().take(77).chain("...".chars()).collect()
}

/// A workload's full name: namespace and name. Shown `namespace/name`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct WorkloadKey {
    /// The namespace.
    pub namespace: Name,
    /// The workload's name in it.
    pub name: Name,
}

impl WorkloadKey {
    /// Puts a key together.
    pub fn new(namespace: Name, name: Name) -> Self {
        Self { namespace, name }
    }
}

impl fmt::Display for WorkloadKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// An id minted once from randomness and kept: safe as a NATS subject token and as a file name.
macro_rules! minted_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Makes the id from fresh random bytes (the caller's, so that tests can choose them).
            pub fn from_random(bytes: [u8; 10]) -> Self {
                Self(hex(&bytes).into())
            }
            /// The id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                let legal = (1..=64).contains(&text.len())
                    && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
                if legal { Ok(Self(text.into())) } else { Err(IdError::NotAnId(shortened(text))) }
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
        serde_as_text!($name);
    };
}

minted_id!(
    /// A host's id: generated once and kept with its data.
    HostId
);
minted_id!(
    /// One start of a host daemon: a new one after every restart.
    BootId
);
minted_id!(
    /// The cluster's id: minted once with its state, carried by everything, so that two clusters
    /// never mix.
    ClusterId
);
minted_id!(
    /// One controller process.
    LeaderId
);
minted_id!(
    /// A client's id for one write; a repeat within ten minutes gets the first answer.
    RequestId
);

fn hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
}

/// A counter that only grows.
macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// The next number. The last that there can be is followed by none: it stays.
            #[must_use]
            pub fn next(self) -> Self {
                Self(self.0.saturating_add(1))
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

number!(
    /// The number of a controller's leadership. It only grows; 0 is before the first.
    Term
);

impl Term {
    /// No cluster has ever begun so many.
    const AHEAD_MAX: u64 = 1 << 32;

    /// Whether somebody may have seen this term who speaks to a leader of `ours`. One that is beyond all that
    /// can have begun is an error or a lie: to follow it would leave no term to come after.
    #[must_use]
    pub fn is_credible(self, ours: Self) -> bool {
        self.0.saturating_sub(ours.0) <= Self::AHEAD_MAX
    }
}

number!(
    /// A revision's number within its workload, from 1.
    RevisionNumber
);
number!(
    /// A numbered seat of a workload, from 1.
    Slot
);
number!(
    /// A placement's number within its workload, given by the leader, from 1.
    PlacementNumber
);

/// One replica: slot, placement and the host's start of that placement. Shown `2-7-1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReplicaId {
    /// The seat.
    pub slot: Slot,
    /// The leader's number for "this slot, this revision, on that host".
    pub placement: PlacementNumber,
    /// The host's number for its starts of that placement, from 1.
    pub start: u32,
}

impl fmt::Display for ReplicaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}-{}", self.slot, self.placement, self.start)
    }
}

impl FromStr for ReplicaId {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let wrong = || IdError::NotAReplica(shortened(text));
        let mut parts = text.split('-');
        let mut number = || -> Result<u64, IdError> {
            let part = parts.next().ok_or_else(wrong)?;
            // `u64::from_str` would also take "+1".
            if !part.bytes().all(|b| b.is_ascii_digit()) {
                return Err(wrong());
            }
            part.parse().map_err(|_| wrong())
        };
        let (slot, placement, start) = (number()?, number()?, number()?);
        if parts.next().is_some() {
            return Err(wrong());
        }
        Ok(Self {
            slot: Slot(slot),
            placement: PlacementNumber(placement),
            start: u32::try_from(start).map_err(|_| wrong())?,
        })
    }
}
serde_as_text!(ReplicaId);

/// The sha256 digest that names an artifact. Shown `sha256:<64 hex>`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(Arc<str>);

impl Digest {
    const PREFIX: &'static str = "sha256:";

    /// The digest of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self::from_hash(Sha256::digest(bytes).into())
    }

    /// A digest from a hash that was computed piece by piece.
    pub fn from_hash(hash: [u8; 32]) -> Self {
        Self(format!("{}{}", Self::PREFIX, hex(&hash)).into())
    }

    /// The 64 hex digits: the form for file names.
    pub fn hex(&self) -> &str {
        &self.0[Self::PREFIX.len()..]
    }

    /// The whole text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first 12 hex digits, for people.
    pub fn short(&self) -> &str {
        &self.hex()[..12]
    }
}

impl FromStr for Digest {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let digits = text.strip_prefix(Self::PREFIX);
        let legal = digits.is_some_and(|digits| {
            digits.len() == 64
                && digits
                    .bytes()
                    .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        });
        if legal {
            Ok(Self(text.into()))
        } else {
            Err(IdError::NotADigest(shortened(text)))
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}
serde_as_text!(Digest);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_that_are_read_share_their_text() {
        let read = |text: &str| serde_json::from_str::<Vec<Name>>(text);
        let names = read(r#"["web", "api", "web"]"#).unwrap();
        assert!(Arc::ptr_eq(&names[0].0, &names[2].0));
        assert_eq!(names[1].as_str(), "api");
        // More than are kept at a time, with an escape, and what is no name.
        for n in 0..3 * READ_MOST {
            let text = format!(r#"["w{n}", "\u0077{n}"]"#);
            let names = read(&text).unwrap();
            assert_eq!(names[0].as_str(), format!("w{n}"));
            assert_eq!(names[0], names[1]);
        }
        assert!(read(r#"["Web"]"#).is_err());
        assert!(read("[7]").is_err());
    }

    #[test]
    fn names_are_dns_labels() {
        for good in ["a", "web", "a-b", "0x9", &"a".repeat(63)] {
            assert_eq!(good.parse::<Name>().unwrap().as_str(), good);
        }
        for bad in ["", "-a", "a-", "A", "a_b", "a.b", "ü", &"a".repeat(64)] {
            assert!(bad.parse::<Name>().is_err(), "{bad}");
        }
        assert_eq!(Name::nearest("My_App.v2").unwrap().as_str(), "my-app-v2");
        assert_eq!(Name::nearest("___"), None);
    }

    #[test]
    fn replica_ids_refuse_signs_and_rests() {
        assert_eq!("2-7-1".parse::<ReplicaId>().unwrap().to_string(), "2-7-1");
        for bad in [
            "",
            "2-7",
            "2-7-1-",
            "2-7-1-4",
            "+2-7-1",
            "a-7-1",
            "2--1",
            "2-7-4294967296",
        ] {
            assert!(bad.parse::<ReplicaId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn digest_of_known_bytes() {
        let digest = Digest::of(b"");
        assert_eq!(digest.short(), "e3b0c44298fc");
        assert_eq!(digest.to_string().parse::<Digest>().unwrap(), digest);
        assert!("sha256:E3".parse::<Digest>().is_err());
    }

    proptest! {
        #[test]
        fn ids_never_panic_on_any_text(text in ".{0,100}") {
            let _ = text.parse::<Name>();
            let _ = text.parse::<ReplicaId>();
            let _ = text.parse::<Digest>();
            let _ = text.parse::<HostId>();
            if let Some(name) = Name::nearest(&text) {
                prop_assert!(name.as_str().parse::<Name>().is_ok());
            }
        }
    }
}
