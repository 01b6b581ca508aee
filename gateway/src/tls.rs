//! Certificates of the public port: which one a client is shown, and which ones are refused.
//!
//! Owns the check of what files hold: a certificate that does not fit its key, is not valid now, or
//! names no host is refused with everything that is wrong, before a client could meet it. Where
//! certificates come from, and when they are read again, is the host's.
//!
//! Invariant: what is in use was accepted whole; a refused set changes nothing.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{InconsistentKeys, ServerConfig};
use serde::{Deserialize, Serialize};
use x509_cert::der::Decode as _;
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;

/// Certificates of one gateway; more are a mistake, or an attack on memory.
const CERTIFICATES_MAX: usize = 1000;
/// So many that are new are named in one line.
const NEWS_MAX: usize = 10;
/// From here on a certificate's end is worth a warning.
const EXPIRES_SOON: Duration = Duration::from_secs(14 * 24 * 3600);

/// A certificate chain and its key, as they lie in files.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PemPair {
    /// Where they come from, for people.
    pub from: String,
    /// The chain in PEM, the host's own certificate first.
    pub chain: Vec<u8>,
    /// The private key in PEM.
    pub key: Vec<u8>,
}

impl std::fmt::Debug for PemPair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Never the key.
        f.debug_tuple("PemPair").field(&self.from).finish()
    }
}

/// What is wrong with a certificate, and what would make it pass.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{from}: {why}: {fix}")]
pub struct BadCertificate {
    /// Where it comes from.
    pub from: String,
    /// What is wrong.
    pub why: String,
    /// What to do.
    pub fix: &'static str,
}

/// A set of certificates that was accepted.
#[derive(Clone)]
pub struct Certificates {
    pub(crate) config: Arc<ServerConfig>,
    /// Each certificate's names and when it ends, for people.
    about: Vec<(String, String, SystemTime)>,
}

impl std::fmt::Debug for Certificates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Certificates").field(&self.about).finish()
    }
}

impl Certificates {
    /// Accepts all of them, or none.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with any of them.
    pub fn read(pairs: &[PemPair], now: SystemTime) -> Result<Self, Vec<BadCertificate>> {
        let mut by_name = ByName::default();
        let mut bad = Vec::new();
        let mut about = Vec::new();
        for pair in pairs {
            match one(pair, now) {
                Ok(one) => {
                    about.push((pair.from.clone(), one.names.join(", "), one.ends));
                    by_name.add(&one);
                }
                Err((why, fix)) => bad.push(BadCertificate {
                    from: pair.from.clone(),
                    why,
                    fix,
                }),
            }
        }
        if pairs.is_empty() || pairs.len() > CERTIFICATES_MAX {
            bad.push(BadCertificate {
                from: "--tls-cert".into(),
                why: format!("{} certificates", pairs.len()),
                fix: "give from 1 to 1000, each with its key",
            });
        }
        if !bad.is_empty() {
            return Err(bad);
        }
        Ok(Self {
            config: Arc::new(server_config(by_name)),
            about,
        })
    }

    /// In words: how many there are, and those that others did not have, with when they end.
    pub fn news(&self, others: &Self, now: SystemTime) -> String {
        let fresh = self.about.iter().filter(|one| !others.about.contains(one));
        let mut words: Vec<String> = fresh
            .map(|(from, names, ends)| {
                let days = ends.duration_since(now).unwrap_or_default().as_secs() / 86_400;
                format!("{from} ({names}), which ends in {days} days")
            })
            .collect();
        let more = words.len().saturating_sub(NEWS_MAX);
        words.truncate(NEWS_MAX);
        if more > 0 {
            words.push(format!("{more} more"));
        }
        let all = match self.about.len() {
            1 => "1 certificate is in force".to_owned(),
            count => format!("{count} certificates are in force"),
        };
        match words.is_empty() {
            true => all,
            false => format!("{all}, new: {}", words.join("; ")),
        }
    }

    /// Those that end soon, in words.
    pub fn ending(&self, now: SystemTime) -> Vec<String> {
        let soon = now + EXPIRES_SOON;
        let ending = self.about.iter().filter(|(_, _, ends)| *ends < soon);
        ending
            .map(|(from, names, ends)| {
                let days = ends.duration_since(now).unwrap_or_default().as_secs() / 86_400;
                format!("{from} ({names}) ends in {days} days: renew it")
            })
            .collect()
    }
}

fn server_config(by_name: ByName) -> ServerConfig {
    let provider = Arc::new(ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring has what the default versions need")
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(by_name));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config
}

/// A certificate that fits its key and is valid.
struct One {
    key: Arc<CertifiedKey>,
    names: Vec<String>,
    ends: SystemTime,
}

fn one(pair: &PemPair, now: SystemTime) -> Result<One, (String, &'static str)> {
    const PEM: &str = "give PEM: -----BEGIN CERTIFICATE----- and -----BEGIN PRIVATE KEY-----";
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pair.chain).collect();
    let chain =
        chain.map_err(|error| (format!("the certificate cannot be read ({error})"), PEM))?;
    let Some(first) = chain.first() else {
        return Err(("there is no certificate in it".into(), PEM));
    };
    let (names, begins, ends) = read_certificate(first)?;
    let key = PrivateKeyDer::from_pem_slice(&pair.key)
        .map_err(|error| (format!("the key cannot be read ({error})"), PEM))?;
    let certified = CertifiedKey::from_der(chain.clone(), key, &ring::default_provider());
    let key = certified.map_err(|error| match error {
        rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => (
            "the key belongs to another certificate".to_owned(),
            "give the key that the certificate was made for",
        ),
        error => (
            format!("it cannot be used ({error})"),
            "give an RSA, ECDSA or Ed25519 key in PEM",
        ),
    })?;
    if ends <= now {
        let why = format!("it expired {}", ago(ends, now));
        return Err((why, "renew it"));
    }
    if begins > now {
        let why = format!("it is not valid before {} from now", long(begins, now));
        return Err((why, "wait, or set this machine's clock"));
    }
    if names.is_empty() {
        return Err((
            "it names no host".into(),
            "give one with subject alternative names (DNS)",
        ));
    }
    Ok(One {
        key: Arc::new(key),
        names,
        ends,
    })
}

/// The DNS names of a certificate, lower case, and when it is valid.
type About = (Vec<String>, SystemTime, SystemTime);

fn read_certificate(der: &[u8]) -> Result<About, (String, &'static str)> {
    let broken = |error: x509_cert::der::Error| {
        let why = format!("the certificate is damaged ({error})");
        (why, "give the file as it was issued")
    };
    let certificate = x509_cert::Certificate::from_der(der).map_err(broken)?;
    let certificate = certificate.tbs_certificate;
    let at = |time: x509_cert::time::Time| UNIX_EPOCH + time.to_unix_duration();
    let alternatives = certificate.get::<SubjectAltName>().map_err(broken)?;
    let names = alternatives.into_iter().flat_map(|(_, names)| names.0);
    let names = names.filter_map(|name| match name {
        GeneralName::DnsName(name) => Some(name.as_str().to_ascii_lowercase()),
        _ => None,
    });
    let validity = certificate.validity;
    Ok((
        names.collect(),
        at(validity.not_before),
        at(validity.not_after),
    ))
}

fn ago(then: SystemTime, now: SystemTime) -> String {
    format!("{} ago", long(now, then))
}

/// The time between two moments, roughly.
fn long(later: SystemTime, earlier: SystemTime) -> String {
    let seconds = later.duration_since(earlier).unwrap_or_default().as_secs();
    match seconds {
        0..120 => format!("{seconds} seconds"),
        120..7200 => format!("{} minutes", seconds / 60),
        7200..172_800 => format!("{} hours", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// Which certificate a client is shown: by the exact name that it asks for, then by a wildcard one
/// label wide, else the first.
#[derive(Debug, Default)]
struct ByName {
    exact: HashMap<String, Arc<CertifiedKey>>,
    /// By what follows the `*`, dot included.
    wildcard: HashMap<String, Arc<CertifiedKey>>,
    first: Option<Arc<CertifiedKey>>,
}

impl ByName {
    fn add(&mut self, one: &One) {
        for name in &one.names {
            let (map, name) = match name.strip_prefix('*') {
                Some(suffix) => (&mut self.wildcard, suffix),
                None => (&mut self.exact, name.as_str()),
            };
            // The first that names it.
            map.entry(name.to_owned())
                .or_insert_with(|| one.key.clone());
        }
        self.first.get_or_insert_with(|| one.key.clone());
    }

    fn find(&self, name: &str) -> Option<&Arc<CertifiedKey>> {
        let name = name.to_ascii_lowercase();
        let wide = || self.wildcard.get(&name[name.find('.')?..]);
        self.exact.get(&name).or_else(wide)
    }
}

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let named = hello.server_name().and_then(|name| self.find(name));
        named.or(self.first.as_ref()).cloned()
    }
}

#[cfg(test)]
mod tests;
