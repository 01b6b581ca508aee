//! Where the public port's certificates come from: files, folders, or one that this host makes for
//! development; and when they are read again.
//!
//! ```text
//!   files ──read, checked──> in force ──changed──> read, checked ──> in force
//!                                         └── refused: the old ones stay, and the log says why
//! ```
//!
//! Owns the reading. What makes a certificate good is the gateway's ([`Certificates::read`]). A
//! runner is given bytes, never paths: it need not be able to read a key's file.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use wasmorch_gateway::{BadCertificate, Certificates, PemPair};

use crate::error::HostError;

/// How often files are looked at: a renewal is in force soon, and looking costs a few stats.
const LOOK_EVERY: Duration = Duration::from_secs(2);
const DAY: Duration = Duration::from_secs(24 * 3600);
/// A chain or a key is far smaller; more is some other file.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// How long a certificate for development lasts, and how long before its end another is made.
const OWN_DAYS: i64 = 365;
const OWN_RENEWED_BEFORE: Duration = Duration::from_secs(30 * 24 * 3600);

/// What was asked for on the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TlsSource {
    /// Certificates with their keys. Without a key the path is a folder: each `NAME.crt` or
    /// `NAME.pem` in it stands beside `NAME.key`.
    Files(Vec<(PathBuf, Option<PathBuf>)>),
    /// One that this host makes and keeps, which no client trusts unless told to.
    SelfSigned,
}

/// Certificates as files hold them, and when they were found good.
#[derive(Debug, Clone)]
pub(crate) struct Accepted {
    pub(crate) pairs: Vec<PemPair>,
    pub(crate) as_of: SystemTime,
}

/// The certificates of a host.
#[derive(Debug)]
pub(crate) struct Store {
    files: Vec<(PathBuf, Option<PathBuf>)>,
    /// Set when this host makes its own.
    own: Option<Own>,
    seen: Vec<Seen>,
    /// What is in force, as it was read.
    certificates: Certificates,
    newest: watch::Sender<Arc<Accepted>>,
}

/// A certificate that this host makes: where it lies, and for which domain it is.
#[derive(Debug)]
struct Own {
    folder: PathBuf,
    domain: String,
}

impl Own {
    fn files(&self) -> (PathBuf, PathBuf) {
        let file = |name| self.folder.join(name);
        (file("self-signed.crt"), file("self-signed.key"))
    }

    /// Makes one where there is none that is good for a while.
    fn renew(&self) -> Result<(), HostError> {
        let (chain, key) = self.files();
        if is_good(&chain, &key) {
            return Ok(());
        }
        make(&self.folder, &chain, &key, &self.domain)
    }
}

/// A file as it was when it was last looked at.
type Seen = (PathBuf, Option<(SystemTime, u64)>);

impl Store {
    /// Reads everything for the first time; `own` is the folder of a certificate that this host makes
    /// for `domain`. Blocking.
    ///
    /// # Errors
    ///
    /// All that is wrong with it.
    pub(crate) fn open(source: &TlsSource, own: &Path, domain: &str) -> Result<Self, HostError> {
        let (files, own) = match source {
            TlsSource::Files(files) => (files.clone(), None),
            TlsSource::SelfSigned => {
                let own = Own {
                    folder: own.to_owned(),
                    domain: domain.to_owned(),
                };
                own.renew()?;
                let (chain, key) = own.files();
                (vec![(chain, Some(key))], Some(own))
            }
        };
        let seen = look(&files);
        let (accepted, certificates) = accept(&files)?;
        warn_of_ends(&certificates);
        Ok(Self {
            files,
            own,
            seen,
            certificates,
            newest: watch::Sender::new(Arc::new(accepted)),
        })
    }

    /// What is in force.
    pub(crate) fn newest(&self) -> watch::Receiver<Arc<Accepted>> {
        self.newest.subscribe()
    }

    /// Looks at the files until `stop`, and once a day at the time that is left.
    pub(crate) async fn follow(mut self, stop: CancellationToken) {
        let mut day = Instant::now();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            let is_new_day = day.elapsed() >= DAY;
            if is_new_day {
                day = Instant::now();
            }
            let looking = tokio::task::spawn_blocking(move || {
                if is_new_day {
                    self.begin_day();
                }
                self.look_again();
                self
            });
            match looking.await {
                Ok(back) => self = back,
                Err(error) => {
                    tracing::error!(%error, "certificates are not looked at any more");
                    return;
                }
            }
        }
    }

    /// Takes up what has changed, if all of it is good.
    fn look_again(&mut self) {
        let seen = look(&self.files);
        if seen == self.seen {
            return;
        }
        // Said once for each change, not at every look.
        self.seen = seen;
        match accept(&self.files) {
            Ok((accepted, certificates)) => {
                if self.newest.borrow().pairs != accepted.pairs {
                    let news = certificates.news(&self.certificates, SystemTime::now());
                    tracing::info!("{news}");
                    warn_of_ends(&certificates);
                    self.certificates = certificates;
                    self.newest.send_replace(Arc::new(accepted));
                }
            }
            Err(error) => tracing::error!(%error, "the certificates in force stay as they were"),
        }
    }

    /// Says what ends soon, and makes the host's own anew before it does: the next look finds it.
    fn begin_day(&self) {
        match &self.own {
            None => warn_of_ends(&self.certificates),
            Some(own) => {
                if let Err(error) = own.renew() {
                    tracing::error!(%error, "no new certificate was made");
                    warn_of_ends(&self.certificates);
                }
            }
        }
    }
}

/// Reads all, if all are good now.
fn accept(files: &[(PathBuf, Option<PathBuf>)]) -> Result<(Accepted, Certificates), HostError> {
    let (pairs, as_of) = (read(files)?, SystemTime::now());
    let certificates =
        Certificates::read(&pairs, as_of).map_err(|bad| HostError::Certificates { bad })?;
    Ok((Accepted { pairs, as_of }, certificates))
}

fn warn_of_ends(certificates: &Certificates) {
    for ending in certificates.ending(SystemTime::now()) {
        tracing::warn!("{ending}");
    }
}

/// Every certificate with its key; folders are listed anew each time.
fn files_of(files: &[(PathBuf, Option<PathBuf>)]) -> Result<Vec<(PathBuf, PathBuf)>, HostError> {
    let mut found = Vec::new();
    for (path, key) in files {
        if let Some(key) = key {
            found.push((path.clone(), key.clone()));
            continue;
        }
        let unreadable = |source| HostError::CertificateFile {
            path: path.clone(),
            source,
        };
        let mut inside = Vec::new();
        for entry in std::fs::read_dir(path).map_err(unreadable)? {
            let chain = entry.map_err(unreadable)?.path();
            let kind = chain.extension().and_then(|kind| kind.to_str());
            let key = chain.with_extension("key");
            if matches!(kind, Some("crt" | "pem")) && key.exists() {
                inside.push((chain, key));
            }
        }
        if inside.is_empty() {
            return Err(HostError::Certificates {
                bad: vec![BadCertificate {
                    from: path.display().to_string(),
                    why: "there is no certificate in it".into(),
                    fix: "put NAME.crt (or NAME.pem) beside NAME.key, or give --tls-key with a file",
                }],
            });
        }
        inside.sort();
        found.extend(inside);
    }
    Ok(found)
}

/// What would show that a file has changed.
fn look(files: &[(PathBuf, Option<PathBuf>)]) -> Vec<Seen> {
    let paths = files_of(files).unwrap_or_default();
    let paths = paths.into_iter().flat_map(|(chain, key)| [chain, key]);
    paths
        .map(|path| {
            let about = std::fs::metadata(&path).ok();
            let about = about.and_then(|about| Some((about.modified().ok()?, about.len())));
            (path, about)
        })
        .collect()
}

fn read(files: &[(PathBuf, Option<PathBuf>)]) -> Result<Vec<PemPair>, HostError> {
    let one = |(chain, key): (PathBuf, PathBuf)| {
        Ok(PemPair {
            from: chain.display().to_string(),
            chain: read_file(&chain)?,
            key: read_file(&key)?,
        })
    };
    files_of(files)?.into_iter().map(one).collect()
}

fn read_file(path: &Path) -> Result<Vec<u8>, HostError> {
    let read = std::fs::metadata(path).and_then(|about| {
        if about.len() > FILE_BYTES_MAX {
            let text = format!("it has {} bytes, and a certificate has fewer", about.len());
            return Err(std::io::Error::other(text));
        }
        std::fs::read(path)
    });
    read.map_err(|source| HostError::CertificateFile {
        path: path.to_owned(),
        source,
    })
}

/// Whether the certificate of an earlier start is still good for a while.
fn is_good(chain: &Path, key: &Path) -> bool {
    let Ok(pairs) = read(&[(chain.to_owned(), Some(key.to_owned()))]) else {
        return false;
    };
    Certificates::read(&pairs, SystemTime::now() + OWN_RENEWED_BEFORE).is_ok()
}

/// Makes a certificate for the names of this host's workloads. A wildcard is one label wide, so it
/// covers the namespace `default`, and the routes directly under the domain.
fn make(folder: &Path, chain: &Path, key: &Path, domain: &str) -> Result<(), HostError> {
    let failed = |error: rcgen::Error| HostError::Certificates {
        bad: vec![BadCertificate {
            from: "--tls-self-signed".into(),
            why: error.to_string(),
            fix: "give a --domain that is a DNS name",
        }],
    };
    let names = [
        domain.to_owned(),
        format!("*.{domain}"),
        format!("*.default.{domain}"),
    ];
    let mut params = CertificateParams::new(names).map_err(failed)?;
    for address in ["127.0.0.1", "::1"]
        .iter()
        .filter_map(|text| text.parse().ok())
    {
        params.subject_alt_names.push(SanType::IpAddress(address));
    }
    params.distinguished_name = DistinguishedName::new();
    let name = "wasmorch, for development";
    params.distinguished_name.push(DnType::CommonName, name);
    let now = time::OffsetDateTime::now_utc();
    params.not_before = now - time::Duration::days(1);
    params.not_after = now + time::Duration::days(OWN_DAYS);
    let pair = KeyPair::generate().map_err(failed)?;
    let made = params.self_signed(&pair).map_err(failed)?;
    let writing = |path: &Path, text: String| {
        // Readable by this user only, as what it is made from is.
        wasmorch_runtime::write_atomic(path, text.as_bytes())
            .map_err(|source| HostError::disk("writing", path, source))
    };
    std::fs::create_dir_all(folder).map_err(|source| HostError::disk("making", folder, source))?;
    // The key first: a certificate that is there has its key.
    writing(key, pair.serialize_pem())?;
    writing(chain, made.pem())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(path: &Path, name: &str) {
        let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
        std::fs::write(path.with_extension("crt"), made.cert.pem()).unwrap();
        std::fs::write(path.with_extension("key"), made.signing_key.serialize_pem()).unwrap();
    }

    fn write_until(path: &Path, name: &str, end: time::OffsetDateTime) {
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        params.not_after = end;
        let key = KeyPair::generate().unwrap();
        let made = params.self_signed(&key).unwrap();
        std::fs::write(path.with_extension("crt"), made.pem()).unwrap();
        std::fs::write(path.with_extension("key"), key.serialize_pem()).unwrap();
    }

    fn open(source: &TlsSource, folder: &Path) -> Result<Store, HostError> {
        Store::open(source, folder, "localhost")
    }

    #[test]
    fn a_certificate_of_its_own_outlives_a_start() {
        let folder = tempfile::tempdir().unwrap();
        let own = folder.path().join("tls");
        let first = open(&TlsSource::SelfSigned, &own).unwrap().newest();
        let again = open(&TlsSource::SelfSigned, &own).unwrap().newest();
        assert_eq!(first.borrow().pairs, again.borrow().pairs);
        use std::os::unix::fs::PermissionsExt as _;
        let key = std::fs::metadata(own.join("self-signed.key")).unwrap();
        assert_eq!(key.permissions().mode() & 0o077, 0, "the key is private");
        // One that is damaged is made anew.
        std::fs::write(own.join("self-signed.crt"), "x").unwrap();
        assert!(open(&TlsSource::SelfSigned, &own).is_ok());
    }

    #[test]
    fn a_certificate_of_its_own_is_made_anew_before_it_ends() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = open(&TlsSource::SelfSigned, folder.path()).unwrap();
        let newest = store.newest();
        let pairs = || newest.borrow().pairs.clone();
        let first = pairs();
        store.begin_day();
        store.look_again();
        assert_eq!(pairs(), first, "it has time left");
        // As if it were nearly a year later.
        let at = folder.path().join("self-signed");
        write_until(
            &at,
            "a.example",
            time::OffsetDateTime::now_utc() + time::Duration::days(9),
        );
        store.look_again();
        let old = pairs();
        assert_ne!(old, first);
        let soon = SystemTime::now();
        assert_eq!(
            store.certificates.ending(soon).len(),
            1,
            "of what is in force"
        );
        store.begin_day();
        store.look_again();
        assert_ne!(pairs(), old);
        assert!(store.certificates.ending(soon).is_empty());
    }

    /// What a runner that is replaced is given, though a part of it has ended meanwhile.
    #[test]
    fn what_was_accepted_can_be_read_again_as_of_then() {
        let folder = tempfile::tempdir().unwrap();
        let now = time::OffsetDateTime::now_utc();
        write_until(
            &folder.path().join("short"),
            "a.example",
            now + time::Duration::days(1),
        );
        write(&folder.path().join("long"), "b.example");
        let source = TlsSource::Files(vec![(folder.path().to_owned(), None)]);
        let accepted = open(&source, folder.path())
            .unwrap()
            .newest()
            .borrow()
            .clone();
        let later = accepted.as_of + 2 * DAY;
        assert!(Certificates::read(&accepted.pairs, later).is_err());
        assert!(Certificates::read(&accepted.pairs, accepted.as_of).is_ok());
    }

    #[test]
    fn what_changes_well_is_taken_up_and_what_is_bad_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().join("web");
        write(&at, "a.example");
        let source = TlsSource::Files(vec![(folder.path().to_owned(), None)]);
        let mut store = open(&source, folder.path()).unwrap();
        let newest = store.newest();
        let first = newest.borrow().pairs.clone();
        assert_eq!(first.len(), 1);

        let chain = std::fs::read(at.with_extension("crt")).unwrap();
        std::fs::write(at.with_extension("crt"), "half of a certifi").unwrap();
        store.look_again();
        assert_eq!(newest.borrow().pairs, first, "a bad one changes nothing");
        std::fs::write(at.with_extension("crt"), chain).unwrap();
        store.look_again();
        assert_eq!(newest.borrow().pairs, first);

        // Another beside it: a folder is listed anew.
        write(&folder.path().join("shop"), "shop.example");
        store.look_again();
        assert_eq!(newest.borrow().pairs.len(), 2);
    }

    #[test]
    fn what_is_new_is_told_in_words() {
        let folder = tempfile::tempdir().unwrap();
        let end = time::OffsetDateTime::now_utc() + time::Duration::hours(9 * 24 + 1);
        write_until(&folder.path().join("web"), "a.example", end);
        let source = TlsSource::Files(vec![(folder.path().to_owned(), None)]);
        let first = open(&source, folder.path()).unwrap().certificates;
        write_until(&folder.path().join("shop"), "shop.example", end);
        let both = open(&source, folder.path()).unwrap().certificates;
        let now = SystemTime::now();
        let told = both.news(&first, now);
        let (all, new) = told.split_once(", new: ").unwrap();
        assert_eq!(all, "2 certificates are in force");
        let words = "shop.crt (shop.example), which ends in 9 days";
        assert!(new.ends_with(words) && !new.contains("a.example"), "{new}");
        assert_eq!(first.news(&both, now), "1 certificate is in force");
    }

    #[test]
    fn what_is_wrong_at_the_start_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let empty = TlsSource::Files(vec![(folder.path().to_owned(), None)]);
        let told = open(&empty, folder.path()).unwrap_err().to_string();
        assert!(told.contains("there is no certificate in it"), "{told}");
        let gone = folder.path().join("gone.crt");
        let missing = TlsSource::Files(vec![(gone.clone(), Some(gone))]);
        let told = open(&missing, folder.path()).unwrap_err().to_string();
        assert!(told.contains("gone.crt"), "{told}");
        // Crossed: each with the other's key.
        let (a, b) = (folder.path().join("a"), folder.path().join("b"));
        write(&a, "a.example");
        write(&b, "b.example");
        let file = |path: &Path, kind: &str| path.with_extension(kind);
        let crossed = TlsSource::Files(vec![
            (file(&a, "crt"), Some(file(&b, "key"))),
            (file(&b, "crt"), Some(file(&a, "key"))),
        ]);
        let told = open(&crossed, folder.path()).unwrap_err().to_string();
        assert_eq!(told.matches("belongs to another").count(), 2, "{told}");
    }
}
