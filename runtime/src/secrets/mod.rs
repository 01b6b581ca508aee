//! Secrets: what a store of them must be, what a replica is granted of one, and how a value is held.
//!
//! ```text
//!   guest ── get("db") ──> granted by that name? ──> dyn SecretStore ──> a handle, which shows nothing
//!         ── reveal(handle) ──> the value, into the guest's own memory
//! ```
//!
//! The store itself is not here, and this version has none: it implements [`SecretStore`]. Until then a host
//! grants nothing, and every question is answered with the words for that.
//!
//! Invariants: a name that is not granted never reaches the store; a value is in memory once, shared by who
//! holds it, and overwritten when the last lets go of it; nothing prints it.

#[expect(
    unreachable_pub,
    reason = "the generated bindings re-export what guests hold"
)]
pub(crate) mod guest;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use zeroize::Zeroize as _;

pub(crate) use guest::add_to_linker;

/// The largest secret: keys, tokens and certificates are far smaller, and what is larger is data.
pub const SECRET_BYTES_MAX: usize = 64 << 10;

/// The value of a secret. Clones share it, and the last one overwrites it. It is shown to guests only: there
/// is no way to it from outside of this crate, and `{:?}` does not print it.
#[derive(Clone)]
pub struct SecretValue(Arc<Held>);

/// Both are shared with wasmtime for as long as it copies them into a guest, so that no other copy is made.
enum Held {
    Text(Arc<str>),
    Bytes(Arc<[u8]>),
}

impl SecretValue {
    /// A secret that is text. What was handed in is overwritten.
    pub fn text(mut text: String) -> Self {
        let held = Arc::from(text.as_str());
        text.zeroize();
        Self(Arc::new(Held::Text(held)))
    }

    /// A secret of any bytes. What was handed in is overwritten.
    pub fn bytes(mut bytes: Vec<u8>) -> Self {
        let held = Arc::from(bytes.as_slice());
        bytes.zeroize();
        Self(Arc::new(Held::Bytes(held)))
    }

    fn len(&self) -> usize {
        match &*self.0 {
            Held::Text(text) => text.len(),
            Held::Bytes(bytes) => bytes.len(),
        }
    }
}

impl fmt::Debug for SecretValue {
    /// Not even how long it is.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretValue(..)")
    }
}

impl Held {
    fn wipe(&mut self) {
        // Alone: a guest that is shown it holds its handle, and with it another owner of this.
        match self {
            Self::Text(text) => Arc::get_mut(text).map_or((), |text| text.zeroize()),
            Self::Bytes(bytes) => Arc::get_mut(bytes).map_or((), |bytes| bytes.zeroize()),
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.wipe();
    }
}

/// Why a store gave no answer. The text goes to guests, so no value may be in it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    /// The store refused or failed.
    #[error("{0}")]
    Store(String),
    /// The store could not be reached.
    #[error("{0}")]
    Unreachable(String),
}

/// Where secrets are kept. One for all replicas: what a replica may ask for is settled before.
#[async_trait]
pub trait SecretStore: Send + Sync {
    /// The secret of this name as it is now, and `None` where there is none. Must not wait for ever.
    async fn get(&self, name: &str) -> Result<Option<SecretValue>, SecretError>;
}

/// The secrets that a replica is granted: by default none, on a host without a store.
#[derive(Clone, Default)]
pub struct Secrets {
    store: Option<Arc<dyn SecretStore>>,
    granted: Arc<BTreeSet<String>>,
}

/// Why a guest gets no handle.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum Refused {
    #[error("not granted: this host has no store of secrets")]
    NoStore,
    #[error("not granted: this workload has no secret of this name")]
    NotGranted,
    #[error("there is no such secret")]
    NotFound,
    #[error("the secret is larger than {} KiB", SECRET_BYTES_MAX >> 10)]
    TooLarge,
    #[error("{0}")]
    Store(SecretError),
}

impl Secrets {
    /// Those of these names, out of a store.
    pub fn granted(
        store: Arc<dyn SecretStore>,
        names: impl IntoIterator<Item = impl Into<String>>,
    ) -> Self {
        Self {
            store: Some(store),
            granted: Arc::new(names.into_iter().map(Into::into).collect()),
        }
    }

    async fn get(&self, name: &str) -> Result<SecretValue, Refused> {
        let store = self.store.as_ref().ok_or(Refused::NoStore)?;
        if !self.granted.contains(name) {
            return Err(Refused::NotGranted);
        }
        let found = store.get(name).await.map_err(Refused::Store)?;
        let value = found.ok_or(Refused::NotFound)?;
        if value.len() > SECRET_BYTES_MAX {
            return Err(Refused::TooLarge);
        }
        Ok(value)
    }
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secrets")
            .field("granted", &self.granted)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Has a secret of every name, of so many bytes, and counts who asks.
    struct Every(usize, AtomicUsize);

    #[async_trait]
    impl SecretStore for Every {
        async fn get(&self, name: &str) -> Result<Option<SecretValue>, SecretError> {
            self.1.fetch_add(1, Ordering::SeqCst);
            let value = SecretValue::bytes(vec![b'x'; self.0]);
            Ok((name != "absent").then_some(value))
        }
    }

    #[tokio::test]
    async fn a_name_that_is_not_granted_never_reaches_the_store() {
        let none = Secrets::default();
        assert_eq!(none.get("db").await.err(), Some(Refused::NoStore));
        let store = Arc::new(Every(SECRET_BYTES_MAX, AtomicUsize::new(0)));
        let secrets = Secrets::granted(store.clone(), ["db", "absent"]);
        for name in ["", "Db", "db ", "other"] {
            let refused = secrets.get(name).await.err();
            assert_eq!(refused, Some(Refused::NotGranted), "{name}");
        }
        assert_eq!(store.1.load(Ordering::SeqCst), 0);
        assert_eq!(secrets.get("db").await.unwrap().len(), SECRET_BYTES_MAX);
        assert_eq!(secrets.get("absent").await.err(), Some(Refused::NotFound));
        let large = Arc::new(Every(SECRET_BYTES_MAX + 1, AtomicUsize::new(0)));
        let large = Secrets::granted(large, ["db"]).get("db").await;
        assert_eq!(large.err(), Some(Refused::TooLarge));
    }

    #[test]
    fn nothing_prints_a_value() {
        let text = SecretValue::text("hunter2".into());
        let bytes = SecretValue::bytes(b"hunter2".to_vec());
        let store = Arc::new(Every(1, AtomicUsize::new(0)));
        let secrets = Secrets::granted(store, ["db"]);
        let shown = format!("{text:?} {text:#?} {bytes:?} {:?} {secrets:?}", Some(&text));
        let numbers = "104, 117"; // the bytes of it, as lists are printed
        assert!(
            !shown.contains("hunter2") && !shown.contains(numbers),
            "{shown}"
        );
        assert!(shown.contains("SecretValue(..)") && shown.contains("\"db\""));
    }

    #[test]
    fn a_value_is_overwritten_unless_another_holds_it() {
        let mut held = Held::Text(Arc::from("hunter2"));
        held.wipe();
        assert!(matches!(&held, Held::Text(text) if **text == *"\0\0\0\0\0\0\0"));
        let mut held = Held::Bytes(Arc::from(&b"hunter2"[..]));
        held.wipe();
        assert!(matches!(&held, Held::Bytes(bytes) if **bytes == [0; 7]));
        // A clone is the same value, and the first to go leaves it to the other.
        let one = SecretValue::text("hunter2".into());
        let other = one.clone();
        drop(one);
        assert!(matches!(&*other.0, Held::Text(text) if **text == *"hunter2"));
    }
}
