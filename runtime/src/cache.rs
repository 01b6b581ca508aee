//! Compiled code on disk: `<dir>/<engine>/<target>/<digest>.cwasm`, its mark in `<digest>.mac`. It was
//! compiled here, or taken from what the operator gave.
//!
//! Invariants:
//!
//! - Code is mapped only after its mark was verified: HMAC-SHA256 by a key that this host made for
//!   itself (`<dir>/key`, mode 0600). Whatever fails the check is deleted and compiled again.
//! - Files appear whole: written beside, synced, renamed.
//! - There is a bound on their size: what was used longest ago leaves ([`crate::evict`]).
//! - Not being able to write is never fatal: the code runs from memory. On a host, runners may not: its
//!   compiler writes, they read.
//!
//! Known limit: who can write to the folder as the host's own user can replace a file between the
//! check and the mapping. That user can replace the host itself.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use hmac::{Hmac, Mac};
use rand::TryRngCore as _;
use sha2::Sha256;
use wasmorch_api::Digest;
use wasmtime::component::Component;
use wasmtime::{Engine, Module, Precompiled};

use crate::artifact::Compiled;
use crate::engines::Engines;
use crate::evict::Bound;
use crate::files::{UNFINISHED, sweep_unfinished, write_atomic, write_whole};
use crate::given::Given;
use crate::target::{file_name, folder_here};

/// The name of the key's file.
const KEY: &str = "key";
const KEY_BYTES: usize = 32;
const MAC_BYTES: usize = 32;
const CHUNK_BYTES: usize = 256 << 10;
/// Nobody writes one file for so long.
const UNFINISHED_FOR: Duration = Duration::from_secs(3600);

/// The compiled code that this host keeps for its engines.
pub(crate) struct Cache {
    dir: PathBuf,
    /// Where the key lies, and what it was when it was last read: it is made anew when it is damaged.
    key_file: PathBuf,
    key: Mutex<[u8; KEY_BYTES]>,
    given: Option<Given>,
    bound: Bound,
    warned: AtomicBool,
}

impl Cache {
    /// Opens the folder for the engines, making it and the key where they are missing. `given`: where
    /// the operator puts what was compiled elsewhere. `most`: bytes of code that may lie there.
    pub(crate) fn open(root: &Path, given: Option<PathBuf>, most: u64) -> io::Result<Self> {
        let (dir, key) = lay_out(root)?;
        for folder in [root, &dir] {
            sweep_unfinished(folder, SystemTime::now() - UNFINISHED_FOR);
        }
        Ok(Self {
            bound: Bound::new(&dir, most),
            dir,
            key_file: root.join(KEY),
            key: Mutex::new(key),
            given: given.map(Given::new),
            warned: AtomicBool::new(false),
        })
    }

    /// The code kept or given for a digest, verified and mapped; `None` when there is none.
    ///
    /// # Errors
    ///
    /// Why what was given is not used, for the operator.
    pub(crate) fn get(
        &self,
        engines: &Engines,
        digest: &Digest,
    ) -> Result<Option<Compiled>, String> {
        match self.kept(engines, digest) {
            Some(compiled) => Ok(Some(compiled)),
            None => self.take_given(engines, digest),
        }
    }

    fn kept(&self, engines: &Engines, digest: &Digest) -> Option<Compiled> {
        let (code, mark) = self.paths(digest);
        let verified = self.verify(digest, &code, &mark);
        // Another process of this host may have made the key anew.
        let verified = match verified {
            Ok(false) if self.read_key_again() => self.verify(digest, &code, &mark),
            verified => verified,
        };
        let verified = match verified {
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
            Ok(compiled) => {
                Bound::used(&code);
                Some(compiled)
            }
            Err(error) => {
                tracing::warn!(%digest, error = format!("{error:#}"), "compiled code cannot be mapped");
                self.forget(digest);
                None
            }
        }
    }

    /// Copies what the operator gave here, under the mark of this host, and maps the copy.
    fn take_given(&self, engines: &Engines, digest: &Digest) -> Result<Option<Compiled>, String> {
        let Some(given) = &self.given else {
            return Ok(None);
        };
        let Some(file) = given.open(digest)? else {
            return Ok(None);
        };
        self.store(digest, file)
            .map_err(|error| format!("it cannot be copied: {error}"))?;
        let (code, _) = self.paths(digest);
        match map(engines, &code) {
            Ok(compiled) => {
                tracing::info!(%digest, "compiled code was given, and taken");
                Ok(Some(compiled))
            }
            Err(error) => {
                self.forget(digest);
                Err(format!("{error:#}"))
            }
        }
    }

    /// Keeps code for a digest; whether it could. Says so once when it cannot.
    pub(crate) fn put(&self, digest: &Digest, serialized: &[u8]) -> bool {
        let stored = self.store(digest, serialized);
        if let Err(error) = &stored
            && !self.warned.swap(true, Ordering::Relaxed)
        {
            tracing::warn!(
                dir = %self.dir.display(), %error,
                "compiled code cannot be kept; it runs from memory (said once)"
            );
        }
        stored.is_ok()
    }

    /// The code of a digest is in use, whoever mapped it when.
    pub(crate) fn is_used(&self, digest: &Digest) {
        Bound::used(&self.paths(digest).0);
    }

    /// Writes code and its mark. The mark goes last: code without one is not used.
    fn store(&self, digest: &Digest, mut from: impl Read) -> io::Result<()> {
        let (code, mark) = self.paths(digest);
        let mut mac = self.mac(digest);
        let copied = write_whole(&code, |file| {
            each_chunk(&mut from, |chunk| {
                mac.update(chunk);
                file.write_all(chunk)
            })
        });
        let stored = copied.and_then(|()| write_atomic(&mark, &mac.finalize().into_bytes()));
        match stored {
            Ok(()) => self.bound.written(&code),
            Err(_) => self.forget(digest),
        }
        stored
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
        let mut mac = self.mac(digest);
        each_chunk(&mut File::open(code)?, |chunk| {
            mac.update(chunk);
            Ok(())
        })?;
        Ok(mac.verify_slice(&expected).is_ok())
    }

    /// Whether it is another than before.
    fn read_key_again(&self) -> bool {
        let Some(read) = fs::read(&self.key_file)
            .ok()
            .and_then(|bytes| <[u8; KEY_BYTES]>::try_from(bytes).ok())
        else {
            return false;
        };
        let mut key = self.key.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *key, read) != read
    }

    /// The mark covers the digest too: valid code under another name is not valid.
    fn mac(&self, digest: &Digest) -> Hmac<Sha256> {
        let mut mac = <Hmac<Sha256> as Mac>::new_from_slice(
            &*self.key.lock().unwrap_or_else(PoisonError::into_inner),
        )
        .expect("HMAC takes a key of any length");
        mac.update(digest.hex().as_bytes());
        mac
    }

    fn paths(&self, digest: &Digest) -> (PathBuf, PathBuf) {
        let code = self.dir.join(file_name(digest));
        let mark = code.with_extension("mac");
        (code, mark)
    }
}

/// Reads to the end, a piece at a time: code may be larger than what memory there is to spare.
fn each_chunk(
    from: &mut impl Read,
    mut take: impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        match from.read(&mut chunk)? {
            0 => return Ok(()),
            n => take(&chunk[..n])?,
        }
    }
}

#[expect(
    unsafe_code,
    reason = "mapping compiled code trusts its bytes; the caller has verified them by a keyed hash"
)]
fn map(engines: &Engines, code: &Path) -> wasmtime::Result<Compiled> {
    match Engine::detect_precompiled_file(code)? {
        Some(Precompiled::Component) => {
            // SAFETY: the file holds what wasmtime's compiler gave, unchanged: `Cache` has just verified
            // its HMAC by the key that only this host has, or has just copied it from where only the
            // operator writes. It is never written in place, only replaced by rename, so the mapping
            // cannot change. An engine refuses what was made by another version, with other settings
            // or for another processor.
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

/// Makes the folder of compiled code, and this host's key in it, where they are missing: for processes that may
/// only read there.
///
/// # Errors
///
/// When the disk does not take them.
pub fn prepare_compiled_folder(root: &Path) -> io::Result<()> {
    lay_out(root).map(drop)
}

/// The folder for this engine on this target, and the key.
fn lay_out(root: &Path) -> io::Result<(PathBuf, [u8; KEY_BYTES])> {
    fs::create_dir_all(root)?;
    let key = load_or_make_key(&root.join(KEY))?;
    let dir = root.join(folder_here());
    fs::create_dir_all(&dir)?;
    Ok((dir, key))
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
    let mut file = tempfile::Builder::new()
        .prefix(UNFINISHED)
        .tempfile_in(dir)?;
    file.write_all(&key)?;
    file.as_file().sync_all()?;
    // Several may open the same folder at the same time: the first key stays.
    match file.persist_noclobber(path) {
        Ok(_) => Ok(key),
        Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => fs::read(path)?
            .try_into()
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "the key is damaged")),
        Err(error) => Err(error.error),
    }
}
