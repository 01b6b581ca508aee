//! Which NATS subjects a guest may reach: the allow-lists of its bindings, and what no list opens.
//!
//! Pure. Owns the wildcard rules (`*` is one token, `>` one or more at the end) and the subjects
//! that belong to the cluster and the server: `wasmorch.>`, `$*` and inboxes.
//!
//! Invariant: a list never opens a reserved subject, however wide its pattern is. The reply
//! subject of a message in hand opens an inbox, and nothing else that is reserved: whoever asks
//! chooses that subject, and could otherwise make a guest write for him.

use std::fmt;

/// The first token of the cluster's own subjects.
const CLUSTER_TOKEN: &str = "wasmorch";
/// What is republished, asked and reported goes on below this.
const CLUSTER_SUBJECTS: &str = "wasmorch.v1.>";
/// The longest subject. A server ends a connection that sends a longer line than it takes (4 KiB,
/// reply subject included), and the connection is that of every workload here.
const SUBJECT_BYTES_MAX: usize = 1024;
/// How the first token of an inbox begins: the default prefix, and those made per user.
const INBOX_PREFIX: &str = "_INBOX";

/// A subject, possibly with wildcards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pattern(String);

/// Why a text is no subject that can be listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PatternError {
    text: String,
    why: &'static str,
}

impl fmt::Display for PatternError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` {}", self.text.escape_debug(), self.why)
    }
}

/// Tokens are separated by dots and never empty; no blanks or control characters.
fn is_subject(text: &str) -> bool {
    (1..=SUBJECT_BYTES_MAX).contains(&text.len())
        && text.split('.').all(|token| {
            !token.is_empty() && !token.chars().any(|c| c.is_whitespace() || c.is_control())
        })
}

impl std::str::FromStr for Pattern {
    type Err = PatternError;
    fn from_str(text: &str) -> Result<Self, PatternError> {
        let wrong = |why| {
            Err(PatternError {
                text: text.to_owned(),
                why,
            })
        };
        if !is_subject(text) {
            return wrong(
                "is no subject: write tokens with dots between them, as in shop.orders.*, 1 KiB at most",
            );
        }
        let last = text.split('.').count() - 1;
        if text
            .split('.')
            .enumerate()
            .any(|(at, token)| token == ">" && at != last)
        {
            return wrong("has a `>` before its end");
        }
        Ok(Self(text.to_owned()))
    }
}

impl Pattern {
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this subject (one without wildcards) is in the pattern.
    pub(super) fn matches(&self, subject: &str) -> bool {
        let mut tokens = subject.split('.');
        for wanted in self.0.split('.') {
            match (wanted, tokens.next()) {
                (">", Some(_)) => return true,
                ("*", Some(_)) => {}
                (wanted, Some(token)) if wanted == token => {}
                _ => return false,
            }
        }
        tokens.next().is_none()
    }

    /// Whether some subject is in both.
    pub(super) fn overlaps(&self, other: &str) -> bool {
        let (mut ours, mut theirs) = (self.0.split('.'), other.split('.'));
        loop {
            match (ours.next(), theirs.next()) {
                (None, None) | (Some(">"), Some(_)) | (Some(_), Some(">")) => return true,
                (Some("*"), Some(_)) | (Some(_), Some("*")) => {}
                (Some(a), Some(b)) if a == b => {}
                _ => return false,
            }
        }
    }

    /// Why a workload may not subscribe to this, if it may not.
    pub(super) fn subscribing_refused(&self) -> Option<String> {
        let own = is_reserved(&self.0) || is_inbox(&self.0);
        (own || self.overlaps(CLUSTER_SUBJECTS)).then(|| {
            format!(
                "`{}` takes in subjects of the cluster or the server ({CLUSTER_TOKEN}.>, $*, {INBOX_PREFIX}*): \
                 write a first token that is your own, as in shop.>",
                self.0
            )
        })
    }
}

/// The cluster's and the server's own: no guest reaches these by any way.
pub(super) fn is_reserved(subject: &str) -> bool {
    let first = subject.split('.').next().unwrap_or_default();
    first == CLUSTER_TOKEN || first.starts_with('$')
}

/// Where someone waits for an answer: reachable only while his message is in hand.
pub(super) fn is_inbox(subject: &str) -> bool {
    subject.starts_with(INBOX_PREFIX)
}

/// Whether a delivered message may be shown to a guest: a pattern that begins with a wildcard
/// matches more than its workload may see.
pub(super) fn may_see(subject: &str) -> bool {
    !is_reserved(subject) && !is_inbox(subject)
}

/// Whether an answer may be sent there.
pub(super) fn may_answer(reply: &str) -> bool {
    is_concrete(reply) && !is_reserved(reply)
}

/// A subject that can be published to: without wildcards.
pub(super) fn is_concrete(subject: &str) -> bool {
    is_subject(subject) && !subject.split('.').any(|token| token == "*" || token == ">")
}

/// What one workload may send to.
#[derive(Debug, Clone, Default)]
pub(super) struct AllowList {
    publish: Vec<Pattern>,
    /// Subjects that it handles itself: it may have answers sent there.
    subscribe: Vec<Pattern>,
}

impl AllowList {
    pub(super) fn new(publish: Vec<Pattern>, subscribe: Vec<Pattern>) -> Self {
        Self { publish, subscribe }
    }

    /// Whether it may publish there, or ask there.
    pub(super) fn may_publish(&self, subject: &str) -> Result<(), String> {
        if !is_concrete(subject) {
            let beginning: String = subject.chars().take(100).collect();
            return Err(format!(
                "`{}` is no subject to publish to: tokens with dots between them, without \
                 wildcards, at most {SUBJECT_BYTES_MAX} bytes",
                beginning.escape_debug()
            ));
        }
        if !may_see(subject) {
            return Err(format!(
                "denied: `{subject}` belongs to the cluster or to a caller that is not in hand"
            ));
        }
        if self.publish.iter().any(|pattern| pattern.matches(subject)) {
            return Ok(());
        }
        Err(format!(
            "not granted: subject `{subject}`; grant it with `--grant publish={subject}` or \
             bindings.publish = [\"{subject}\"]"
        ))
    }

    /// Whether it may have an answer sent there. Answers are written by others, with their rights,
    /// so this is as narrow as publishing.
    pub(super) fn may_be_answered_at(&self, reply: &str) -> Result<(), String> {
        let own = is_concrete(reply)
            && may_see(reply)
            && self.subscribe.iter().any(|pattern| pattern.matches(reply));
        if own { Ok(()) } else { self.may_publish(reply) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> Pattern {
        text.parse().unwrap()
    }

    fn list(publish: &[&str], subscribe: &[&str]) -> AllowList {
        let patterns = |list: &[&str]| list.iter().map(|text| pattern(text)).collect();
        AllowList::new(patterns(publish), patterns(subscribe))
    }

    #[test]
    fn wildcards_match_whole_tokens() {
        for (wanted, subject, matches) in [
            ("a.b", "a.b", true),
            ("a.b", "a.b.c", false),
            ("a.b", "a", false),
            ("a.*", "a.b", true),
            ("a.*", "a", false),
            ("a.*", "a.b.c", false),
            ("a.>", "a.b", true),
            ("a.>", "a.b.c", true),
            ("a.>", "a", false),
            ("*.b", "a.b", true),
            (">", "a", true),
            ("a*", "ab", false),
        ] {
            assert_eq!(
                pattern(wanted).matches(subject),
                matches,
                "{wanted} {subject}"
            );
        }
    }

    #[test]
    fn what_is_no_pattern_is_refused() {
        for bad in ["", ".", "a..b", "a.", "a b", "a.>.b", ">.a", "a\r\nPUB x"] {
            assert!(bad.parse::<Pattern>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_clusters_subjects_are_never_reachable() {
        let all = list(&[">", "*.>", "wasmorch.>", "$JS.>", "_INBOX.>"], &[]);
        assert!(all.may_publish("shop.orders").is_ok());
        for subject in [
            "wasmorch.v1.api.default.rm",
            "wasmorch",
            "$JS.API.STREAM.DELETE.KV_wasmorch_state",
            "$KV.wasmorch_state.term",
            "_INBOX.abc.1",
            "_INBOX_host.abc",
            "shop.*",
            "shop.>",
            "",
            "a\r\nPUB wasmorch.v1.x 0\r\n\r\n",
        ] {
            assert!(all.may_publish(subject).is_err(), "{subject:?}");
        }
    }

    #[test]
    fn subjects_are_no_longer_than_every_server_takes() {
        let list = list(&["shop.>"], &["ask.>"]);
        let long = |bytes: usize| format!("shop.{}", "x".repeat(bytes - 5));
        assert!(list.may_publish(&long(SUBJECT_BYTES_MAX)).is_ok());
        let why = list.may_publish(&long(SUBJECT_BYTES_MAX + 1)).unwrap_err();
        assert!(why.contains("at most") && why.len() < 300, "{why}");
        let reply = format!("ask.{}", "x".repeat(SUBJECT_BYTES_MAX));
        assert!(list.may_be_answered_at(&reply).is_err());
        assert!(!may_answer(&reply));
    }

    #[test]
    fn nothing_is_granted_by_default() {
        let none = AllowList::default();
        let why = none.may_publish("shop.orders").unwrap_err();
        assert!(why.contains("--grant publish=shop.orders"), "{why}");
    }

    #[test]
    fn answers_go_to_inboxes_and_never_to_the_cluster() {
        assert!(may_answer("_INBOX.abc.1"));
        assert!(may_answer("shop.answers"));
        for reply in [
            "wasmorch.v1.placements.h1",
            "$KV.wasmorch_state.term",
            "a.*",
            "",
            "$JS.ACK.x",
        ] {
            assert!(!may_answer(reply), "{reply}");
        }
    }

    #[test]
    fn answers_are_asked_for_only_where_it_listens_or_may_write() {
        let list = list(&["shop.placed"], &["shop.ask.*"]);
        assert!(list.may_be_answered_at("shop.ask.1").is_ok());
        assert!(list.may_be_answered_at("shop.placed").is_ok());
        assert!(list.may_be_answered_at("shop.other").is_err());
        assert!(
            list.may_be_answered_at("wasmorch.v1.api.default.rm")
                .is_err()
        );
    }

    #[test]
    fn subscriptions_stay_out_of_the_cluster() {
        for bad in [
            ">",
            "*.>",
            "*.v1.>",
            "*.*.*",
            "wasmorch.v1.heartbeat.*",
            "$SYS.>",
            "_INBOX.>",
        ] {
            assert!(pattern(bad).subscribing_refused().is_some(), "{bad}");
        }
        for good in ["shop.>", "shop.*", "*.orders", "*", "wasmorchid.>"] {
            assert_eq!(pattern(good).subscribing_refused(), None, "{good}");
        }
    }
}
