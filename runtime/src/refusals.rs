//! What no grant allows and a guest tries all the same, told to who runs it: a warning in the replica's log, with
//! what grants it.
//!
//! A guest hears an error code at most, and what it makes of that is its own business. One line for each kind of
//! target within [`AGAIN_AFTER`], whatever a guest tries; the next one says how many had none.

use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::logs::{LogLevel, LogLine, LogSink, LogStream};
use crate::outbound::DEFAULT_PORTS;

/// Between two lines of a kind: who looks at a log now finds it, and no log is filled by it.
const AGAIN_AFTER: Duration = Duration::from_secs(60);
/// Of a name that a guest gave.
const NAME_CHARS_MAX: usize = 128;
/// Of the words of who refused a subject.
const WORDS_CHARS_MAX: usize = 2048;
/// How many kinds there are.
const KINDS: usize = 10;

/// What was refused.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Refused<'a> {
    /// A request to a host that no pattern matches.
    Http {
        host: &'a str,
        port: u16,
    },
    /// The same where a pattern matches, and the name leads to an address that is not public.
    Private {
        host: &'a str,
        port: u16,
    },
    /// A request to another workload.
    Workload(&'a str),
    /// A connection or a datagram; `None`: before it is known where it is to lead.
    Connect(Option<SocketAddr>),
    /// Taking a port.
    Listen(u16),
    /// Looking up a name.
    Lookup(&'a str),
    KeyValue(&'a str),
    Blobstore(&'a str),
    /// Publishing, in the words of who refused it.
    Publish(&'a str),
    Secret(&'a str),
}

impl Refused<'_> {
    fn kind(self) -> usize {
        match self {
            Self::Http { .. } => 0,
            Self::Private { .. } => 1,
            Self::Workload(_) => 2,
            Self::Connect(_) => 3,
            Self::Listen(_) => 4,
            Self::Lookup(_) => 5,
            Self::KeyValue(_) => 6,
            Self::Blobstore(_) => 7,
            Self::Publish(_) => 8,
            Self::Secret(_) => 9,
        }
    }
}

/// A name of a guest's, as a log may have it.
struct Name<'a>(&'a str);

impl fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0.chars();
        for letter in rest.by_ref().take(NAME_CHARS_MAX) {
            write!(f, "{}", letter.escape_debug())?;
        }
        f.write_str(if rest.next().is_some() { ".." } else { "" })
    }
}

/// A host as patterns have it.
struct Host<'a>(&'a str, u16);

impl fmt::Display for Host<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(host, port) = self;
        match host.contains(':') {
            true => write!(f, "[{}]", Name(host))?,
            false => write!(f, "{}", Name(host))?,
        }
        match DEFAULT_PORTS.contains(port) {
            true => Ok(()),
            false => write!(f, ":{port}"),
        }
    }
}

impl fmt::Display for Refused<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Http { host, port } => {
                let host = Host(host, port);
                write!(
                    f,
                    "not granted: http to {host}; `--grant http={host}` grants it (`run`: `--allow-http {host}`)"
                )
            }
            Self::Private { host, port } => write!(
                f,
                "not granted: http to {}, whose address is not public; call the address itself, and \
                 grant that: `--grant http=ADDRESS:{port}` (`run`: `--allow-http ADDRESS:{port}`)",
                Host(host, port)
            ),
            Self::Workload(host) => {
                let host = Name(host);
                write!(
                    f,
                    "not granted: http to {host}; `--grant workloads=NAME.NAMESPACE` grants it"
                )
            }
            Self::Connect(Some(address)) => write!(
                f,
                "not granted: a socket to {address}; `--grant sockets=connect:{address}` grants it \
                 (`run`: `--allow-network={address}`)"
            ),
            Self::Connect(None) => f.write_str(
                "not granted: sockets; `--grant sockets=connect:ADDRESS:PORT` grants one (`run`: \
                 `--allow-network=ADDRESS:PORT`)",
            ),
            Self::Listen(port) => write!(
                f,
                "not granted: port {port} of the host; `--grant sockets=listen:{port}` grants it (`run`: \
                 `--allow-network`)"
            ),
            Self::Lookup(name) => {
                let name = Name(name);
                write!(
                    f,
                    "not granted: looking up {name}; `--grant sockets=connect:{name}:PORT` grants it \
                     (`run`: `--allow-network={name}:PORT`)"
                )
            }
            Self::KeyValue(name) => {
                let name = Name(name);
                write!(
                    f,
                    "not granted: keyvalue store `{name}`; `--grant keyvalue={name}` grants it"
                )
            }
            Self::Blobstore(name) => {
                let name = Name(name);
                write!(
                    f,
                    "not granted: blobstore container `{name}`; `--grant blobstore={name}` grants it"
                )
            }
            // With its subject, and what grants it.
            Self::Publish(why) => {
                let mut words = why.chars().take(WORDS_CHARS_MAX);
                words.try_for_each(|letter| match letter.is_control() {
                    true => Ok(()),
                    false => write!(f, "{letter}"),
                })
            }
            Self::Secret(name) => write!(f, "not granted: secret `{}`", Name(name)),
        }
    }
}

/// The lines of one kind.
#[derive(Debug, Default)]
struct Told {
    at: Option<Instant>,
    /// Refused since then, and not told.
    since: u64,
}

impl Told {
    /// How many were refused without a line before this one, if it is to have one.
    fn refused(&mut self, now: Instant) -> Option<u64> {
        let told = |at| now.saturating_duration_since(at) < AGAIN_AFTER;
        if self.at.is_some_and(told) {
            self.since = self.since.saturating_add(1);
            return None;
        }
        self.at = Some(now);
        Some(std::mem::take(&mut self.since))
    }
}

/// Those of one replica, in one runner.
pub(crate) struct Refusals {
    logs: Arc<dyn LogSink>,
    told: Mutex<[Told; KINDS]>,
}

impl fmt::Debug for Refusals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Refusals").finish_non_exhaustive()
    }
}

impl Refusals {
    pub(crate) fn new(logs: Arc<dyn LogSink>) -> Arc<Self> {
        Arc::new(Self {
            logs,
            told: Mutex::default(),
        })
    }

    /// Tells of one, unless one like it was told a moment ago.
    pub(crate) fn tell(&self, refused: Refused<'_>) {
        self.tell_at(refused, Instant::now());
    }

    fn tell_at(&self, refused: Refused<'_>, now: Instant) {
        let untold = {
            // A panic while it was held leaves counters, which are usable.
            let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
            told[refused.kind()].refused(now)
        };
        let Some(untold) = untold else { return };
        let text = match untold {
            0 => refused.to_string(),
            more => format!("{refused}; {more} more like it were refused since the last such line"),
        };
        self.logs.line(LogLine {
            stream: LogStream::Wasi(LogLevel::Warn),
            request_id: None,
            text,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Kept(Mutex<Vec<String>>);

    impl LogSink for Kept {
        fn line(&self, line: LogLine) {
            assert_eq!(line.stream, LogStream::Wasi(LogLevel::Warn));
            self.0.lock().unwrap().push(line.text);
        }
    }

    #[test]
    fn one_line_a_minute_for_each_kind_and_none_is_forgotten() {
        let kept = Arc::new(Kept::default());
        let refusals = Refusals::new(kept.clone());
        let start = Instant::now();
        let host = |host| Refused::Http { host, port: 443 };
        for _ in 0..1000 {
            refusals.tell_at(host("a.example"), start);
            refusals.tell_at(host("b.example"), start + AGAIN_AFTER / 2);
            refusals.tell_at(Refused::KeyValue("cart"), start);
        }
        refusals.tell_at(host("c.example"), start + AGAIN_AFTER);
        let told = kept.0.lock().unwrap().clone();
        assert_eq!(told.len(), 3, "{told:?}");
        assert!(told[0].contains("`--grant http=a.example`"), "{told:?}");
        assert!(told[1].contains("`--grant keyvalue=cart`"), "{told:?}");
        assert!(told[2].contains("c.example"), "{told:?}");
        assert!(told[2].contains("; 1999 more like it"), "{told:?}");
    }

    #[test]
    fn what_is_said_to_grant_it_can_be_granted() {
        for (host, port) in [
            ("a.example", 80),
            ("10.0.0.1", 8080),
            ("::1", 80),
            ("::1", 81),
        ] {
            let pattern = Host(host, port).to_string();
            let read: crate::HostPattern = pattern.parse().unwrap();
            assert!(read.matches(host, port), "{pattern}");
        }
    }

    #[test]
    fn a_guests_name_is_harmless_and_short() {
        let long = format!("\u{1b}[2J\n{}", "x".repeat(10_000));
        let text = Refused::Blobstore(&long).to_string();
        assert!(!text.chars().any(char::is_control), "{text}");
        assert!(text.len() < 500, "{text}");
    }
}
