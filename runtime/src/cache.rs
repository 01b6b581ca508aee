//! Compiled code on disk: `<dir>/<engine>/<target>/<digest>.cwasm`, its mark in `<digest>.mac`.
//!
//! Invariants:
//!
//! - Code is mapped only after its mark was verified: HMAC-SHA256 by a key that this host made for
//!   itself (`<dir>/key`, mode 0600). Whatever fails the check is deleted and compiled again.
//! - Files appear whole: written beside, synced, renamed.
//! - Not being able to write is never fatal: the code runs from memory.
//!
//! Known limit: who can write to the folder as the host's own user can replace a file between the
//! check and the mapping. That user can replace the host itself.

use std::fs::{self, File};
use std::hash::{Hash, Hasher};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use hmac::{Hmac, Mac};
use rand::TryRngCore as _;
use sha2::{Digest as _, Sha256};
use wasmorch_api::Digest;
use wasmtime::component::Component;
use wasmtime::{Engine, Module, Precompiled};

use crate::artifact::Compiled;
use crate::engines::Engines;
use crate::files::write_atomic;

const KEY_BYTES: usize = 32;
const MAC_BYTES: usize = 32;

/// The compiled code that this host keeps for its engines, by the fingerprint of the plain one.
pub(crate) struct Cache {
    dir: PathBuf,
    key: [u8; KEY_BYTES],
    warned: AtomicBool,
}

impl Cache {
    /// Opens the folder for the engines, of which this is the plain one, making it and the key where
    /// they are missing.
    pub(crate) fn open(root: &Path, engine: &Engine) -> io::Result<Self> {
        fs::create_dir_all(root)?;
        let key = load_or_make_key(&root.join("key"))?;
        let dir = root.join(fingerprint(engine)).join(target());
        fs::create_dir_all(&dir)?;
        Ok(Self {
            dir,
            key,
            warned: AtomicBool::new(false),
        })
    }

    /// The code kept for a digest, verified and mapped; `None` when there is none to be trusted.
    pub(crate) fn get(&self, engines: &Engines, digest: &Digest) -> Option<Compiled> {
        let (code, mark) = self.paths(digest);
        let verified = match self.verify(digest, &code, &mark) {
            Ok(verified) => verified,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::warn!(%digest, %error, "compiled code cannot be read");
                return None;
            }
        };
        if !verified {
            tracing::warn!(%digest, "compiled code fails its check; it is deleted and made again");
            self.forget(digest);
            return None;
        }
        match map(engines, &code) {
            Ok(compiled) => Some(compiled),
            Err(error) => {
                tracing::warn!(%digest, error = format!("{error:#}"), "compiled code cannot be mapped");
                self.forget(digest);
                None
            }
        }
    }

    /// Keeps code for a digest. Says so once when it cannot.
    pub(crate) fn put(&self, digest: &Digest, serialized: &[u8]) {
        let (code, mark) = self.paths(digest);
        let mac = self.mac(digest, serialized).finalize().into_bytes();
        // The mark goes last: code without one is not used.
        let written = write_atomic(&code, serialized).and_then(|()| write_atomic(&mark, &mac));
        if let Err(error) = written {
            self.forget(digest);
            if !self.warned.swap(true, Ordering::Relaxed) {
                tracing::warn!(
                    dir = %self.dir.display(), %error,
                    "compiled code cannot be kept; it runs from memory (said once)"
                );
            }
        }
    }

    fn forget(&self, digest: &Digest) {
        let (code, mark) = self.paths(digest);
        // What cannot be deleted fails its check again next time.
        let _ = fs::remove_file(mark);
        let _ = fs::remove_file(code);
    }

    fn verify(&self, digest: &Digest, code: &Path, mark: &Path) -> io::Result<bool> {
        let mut expected = Vec::with_capacity(MAC_BYTES);
        File::open(mark)?
            .take(MAC_BYTES as u64 + 1)
            .read_to_end(&mut expected)?;
        let mut mac = self.mac(digest, &[]);
        let mut file = File::open(code)?;
        let mut buffer = vec![0; 256 << 10];
        loop {
            match file.read(&mut buffer)? {
                0 => return Ok(mac.verify_slice(&expected).is_ok()),
                n => mac.update(&buffer[..n]),
            }
        }
    }

    /// The mark covers the digest too: valid code under another name is not valid.
    fn mac(&self, digest: &Digest, bytes: &[u8]) -> Hmac<Sha256> {
        let mut mac = <Hmac<Sha256> as Mac>::new_from_slice(&self.key)
            .expect("HMAC takes a key of any length");
        mac.update(digest.hex().as_bytes());
        mac.update(bytes);
        mac
    }

    fn paths(&self, digest: &Digest) -> (PathBuf, PathBuf) {
        let hex = digest.hex();
        (
            self.dir.join(format!("{hex}.cwasm")),
            self.dir.join(format!("{hex}.mac")),
        )
    }
}

#[expect(
    unsafe_code,
    reason = "mapping compiled code trusts its bytes; the caller has verified them by a keyed hash"
)]
fn map(engines: &Engines, code: &Path) -> wasmtime::Result<Compiled> {
    match Engine::detect_precompiled_file(code)? {
        Some(Precompiled::Component) => {
            // SAFETY: the file holds what `Component::serialize` of one of these very engines (the
            // fingerprint of the plain one is in the path) gave, unchanged: `Cache::get` has just
            // verified its HMAC by the key that only this host has. It is never written in place, only
            // replaced by rename, so the mapping cannot change. An engine refuses what the other made.
            unsafe { Component::deserialize_file(engines.plain(), code) }
                // SAFETY: as above.
                .or_else(|_| unsafe { Component::deserialize_file(engines.concurrent(), code) })
                .map(Compiled::Component)
        }
        Some(Precompiled::Module) => {
            // SAFETY: as above, with `Module::serialize`.
            unsafe { Module::deserialize_file(engines.plain(), code) }.map(Compiled::Module)
        }
        None => Err(wasmtime::format_err!("not compiled code")),
    }
}

fn load_or_make_key(path: &Path) -> io::Result<[u8; KEY_BYTES]> {
    match fs::read(path) {
        Ok(bytes) => {
            if let Ok(key) = bytes.try_into() {
                return Ok(key);
            }
            tracing::warn!(path = %path.display(), "the key of compiled code is damaged; made anew");
            fs::remove_file(path)?;
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let mut key = [0; KEY_BYTES];
    rand::rngs::OsRng
        .try_fill_bytes(&mut key)
        .map_err(io::Error::other)?;
    let dir = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new().prefix(".key-").tempfile_in(dir)?;
    file.write_all(&key)?;
    file.as_file().sync_all()?;
    // Runners of one host open the same folder at the same time: the first key stays.
    match file.persist_noclobber(path) {
        Ok(_) => Ok(key),
        Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => fs::read(path)?
            .try_into()
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "the key is damaged")),
        Err(error) => Err(error.error),
    }
}

/// Names what compiled code depends on: wasmtime's version, its settings, the processor's features.
fn fingerprint(engine: &Engine) -> String {
    struct Sha(Sha256);
    impl Hasher for Sha {
        fn write(&mut self, bytes: &[u8]) {
            self.0.update(bytes);
        }
        fn finish(&self) -> u64 {
            0
        }
    }
    let mut sha = Sha(Sha256::new());
    engine.precompile_compatibility_hash().hash(&mut sha);
    let hash = sha.0.finalize();
    hash[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

fn target() -> String {
    let family = if cfg!(target_env = "musl") {
        "-musl"
    } else {
        ""
    };
    format!(
        "{}-{}{family}",
        std::env::consts::ARCH,
        std::env::consts::OS
    )
}
