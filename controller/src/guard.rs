//! Freezing: whether the store is the one the hosts know (law 5).
//!
//! Pure. A leader whose store was wiped, or went back to an older state, would take everything that
//! runs for leftovers and stop it. So what hosts say is compared with what the store holds, and on
//! a contradiction the leader freezes: it answers questions and changes nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use wasmorch_api::{ClusterId, Heartbeat, HostId, Timestamp};

/// A doubt that the store does not settle within this ends the term: the next one reads everything
/// anew. Longer than a stream's change of leader takes.
const DOUBT_MAX: Duration = Duration::from_secs(10);

/// A new leader changes nothing before a host has spoken, or for so long: a heartbeat, and a little.
/// Over a store that went back it would answer writes that are void with the first heartbeat.
const LISTEN: Duration = Duration::from_millis(1_500);

/// What a heartbeat means for the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Concern {
    /// None.
    Fine,
    /// A host of another cluster on the same NATS account: ignored.
    Foreign,
    /// The host has seen more than this leader knows of: ask the store.
    Ask(Question),
}

/// What the store is asked, from its leader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Question {
    /// Its last sequence: a host has seen this one.
    Last(u64),
    /// The sequence of a host's set, that of what deleted it included, 0 when there is neither: the host
    /// holds a set of this one. The last sequence alone tells little: leases go on counting over what was
    /// lost.
    Set(HostId, u64),
}

#[derive(Debug, Clone, Copy)]
struct Doubt {
    /// The highest sequence that a host has seen.
    seen: u64,
    since: Timestamp,
}

impl Doubt {
    fn of(before: Option<Self>, seen: u64, now: Timestamp) -> Self {
        Self {
            seen: before.map_or(seen, |doubt| doubt.seen.max(seen)),
            since: before.map_or(now, |doubt| doubt.since),
        }
    }
}

/// Watches for contradictions within one term.
#[derive(Debug)]
pub struct Guard {
    cluster: ClusterId,
    /// The store knew no host when the term began, and none of this cluster has been heard since.
    hostless: bool,
    /// The highest sequence this leader knows the store to have.
    known: u64,
    /// A host has seen a later one, and the store has not answered yet.
    doubt: Option<Doubt>,
    /// Hosts that hold a later set than this leader knows of, and the store has not answered yet.
    sets: BTreeMap<HostId, Doubt>,
    /// Sets that another leader has written meanwhile, by what the store said.
    others: BTreeMap<HostId, u64>,
    /// No host of this cluster has been heard; it is waited for until then.
    listens: Option<Timestamp>,
    frozen: Option<String>,
}

impl Guard {
    /// `unreadable` are keys whose values this version cannot read.
    pub fn new(
        cluster: ClusterId,
        hostless: bool,
        known: u64,
        unreadable: &[String],
        now: Timestamp,
    ) -> Self {
        let frozen = unreadable.first().map(|key| {
            let more = unreadable.len() - 1;
            let others = if more == 0 {
                String::new()
            } else {
                format!(" and {more} others")
            };
            format!("the stored value of {key}{others} cannot be read by this version")
        });
        Self {
            cluster,
            hostless,
            known,
            doubt: None,
            sets: BTreeMap::new(),
            others: BTreeMap::new(),
            listens: Some(now.after(LISTEN)),
            frozen,
        }
    }

    /// Nobody could be heard until now.
    pub fn listen_from(&mut self, now: Timestamp) {
        self.listens = self.listens.map(|_| now.after(LISTEN));
    }

    /// Why nothing is changed; `None`: all is well.
    pub fn frozen(&self) -> Option<&str> {
        self.frozen.as_deref()
    }

    /// Stays as it first was.
    pub fn freeze(&mut self, why: String) {
        self.frozen.get_or_insert(why);
        self.sets.clear();
    }

    /// The store has acknowledged up to this sequence.
    pub fn stored(&mut self, sequence: u64) {
        if sequence <= self.known {
            let known = self.known;
            self.freeze(format!(
                "the store acknowledged sequence {sequence} after {known}: it lost what it had acknowledged"
            ));
        }
        self.known = self.known.max(sequence);
    }

    /// Looks at one heartbeat. `stored` is the sequence of the host's set as this leader knows it, 0 for
    /// none; `None`: of a host that the store does not know.
    pub fn heard(&mut self, beat: &Heartbeat, stored: Option<u64>, now: Timestamp) -> Concern {
        if beat.cluster != self.cluster {
            if self.hostless {
                self.freeze(format!(
                    "host {} belongs to cluster {}, and the store of this one ({}) knows no host: it was wiped, or this is another NATS account",
                    beat.info.name, beat.cluster, self.cluster
                ));
            }
            return Concern::Foreign;
        }
        self.hostless = false;
        self.listens = None;
        let seen = beat.sequence.max(beat.table_seq);
        if seen > self.known {
            let doubt = Doubt::of(self.doubt, seen, now);
            self.doubt = Some(doubt);
        }
        let other = self.others.get(&beat.host).copied();
        let later = stored.is_some_and(|stored| beat.sequence > stored.max(other.unwrap_or(0)));
        if later && self.frozen.is_none() {
            let before = self.sets.get(&beat.host).copied();
            let doubt = Doubt::of(before, beat.sequence, now);
            self.sets.insert(beat.host.clone(), doubt);
        }
        match self.question() {
            Some(question) if seen > self.known || later => Concern::Ask(question),
            _ => Concern::Fine,
        }
    }

    /// Whether a contradiction is being looked into, or none can have shown yet: nothing is changed.
    pub fn in_doubt(&self) -> bool {
        self.compares() || self.listens.is_some()
    }

    /// Whether a contradiction is being looked into: what follows must not reach hosts before.
    pub fn compares(&self) -> bool {
        self.doubt.is_some() || !self.sets.is_empty()
    }

    /// Time passes; `true`: no host has spoken, and none is waited for any longer.
    pub fn listened(&mut self, now: Timestamp) -> bool {
        let over = self.listens.is_some_and(|until| now >= until);
        if over {
            self.listens = None;
        }
        over
    }

    /// What the store is still to be asked about: the host that raised the doubt may be silent by now.
    pub fn question(&self) -> Option<Question> {
        let set = self.sets.first_key_value();
        let set = set.map(|(host, doubt)| Question::Set(host.clone(), doubt.seen));
        self.doubt.map(|doubt| Question::Last(doubt.seen)).or(set)
    }

    /// The store has not settled a doubt in time.
    pub fn doubts_too_long(&self, now: Timestamp) -> bool {
        let mut doubts = self.doubt.iter().chain(self.sets.values());
        doubts.any(|doubt| now.since(doubt.since) >= DOUBT_MAX)
    }

    /// The store's answer to a question.
    pub fn answered(&mut self, question: &Question, sequence: u64) {
        // What was seen later than the question was asked is a question of its own.
        match question {
            Question::Last(seen) => {
                self.known = self.known.max(sequence);
                let settled = self.known.max(*seen);
                self.doubt = self.doubt.filter(|doubt| doubt.seen > settled);
                if *seen > sequence {
                    self.freeze(format!(
                        "a host has seen sequence {seen} and the store is at {sequence}: the store lost what it had acknowledged"
                    ));
                }
            }
            Question::Set(host, seen) => {
                let settled = sequence.max(*seen);
                self.sets
                    .retain(|one, doubt| one != host || doubt.seen > settled);
                if *seen > sequence {
                    self.freeze(format!(
                        "host {host} holds a placement set of sequence {seen} and the store's is of {sequence}: the store lost what it had acknowledged"
                    ));
                } else {
                    self.others.insert(host.clone(), sequence);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use wasmorch_api::Term;

    use super::*;

    fn beat(cluster: &str, sequence: u64) -> Heartbeat {
        Heartbeat {
            sequence,
            ..Heartbeat::new(
                cluster.parse().unwrap(),
                "h1".parse().unwrap(),
                "b1".parse().unwrap(),
                Term(1),
            )
        }
    }

    fn guard(hostless: bool) -> Guard {
        Guard::new("c1".parse().unwrap(), hostless, 10, &[], Timestamp(0))
    }

    #[test]
    fn a_wiped_store_freezes() {
        let mut guard = guard(true);
        assert_eq!(
            guard.heard(&beat("c0", 3), None, Timestamp(0)),
            Concern::Foreign
        );
        assert!(guard.frozen().is_some_and(|why| why.contains("wiped")));
    }

    #[test]
    fn a_first_host_makes_an_empty_store_a_cluster() {
        let mut guard = guard(true);
        guard.stored(12);
        assert_eq!(
            guard.heard(&beat("c1", 11), None, Timestamp(0)),
            Concern::Fine
        );
        assert_eq!(
            guard.heard(&beat("c0", 3), None, Timestamp(0)),
            Concern::Foreign
        );
        assert_eq!(guard.frozen(), None);
    }

    #[test]
    fn a_stray_host_does_not_freeze_a_living_cluster() {
        let mut guard = guard(false);
        assert_eq!(
            guard.heard(&beat("c0", 3), None, Timestamp(0)),
            Concern::Foreign
        );
        assert_eq!(guard.frozen(), None);
    }

    #[test]
    fn a_store_that_went_back_freezes() {
        let mut guard = guard(false);
        assert_eq!(
            guard.heard(&beat("c1", 10), None, Timestamp(0)),
            Concern::Fine
        );
        assert_eq!(
            guard.heard(&beat("c1", 12), None, Timestamp(0)),
            Concern::Ask(Question::Last(12))
        );
        assert!(guard.in_doubt());
        guard.answered(&Question::Last(12), 14);
        assert!(!guard.in_doubt() && guard.frozen().is_none());
        assert_eq!(
            guard.heard(&beat("c1", 14), None, Timestamp(0)),
            Concern::Fine
        );
        assert_eq!(
            guard.heard(&beat("c1", 20), None, Timestamp(0)),
            Concern::Ask(Question::Last(20))
        );
        guard.answered(&Question::Last(20), 15);
        assert!(
            guard
                .frozen()
                .is_some_and(|why| why.contains("sequence 20"))
        );
    }

    #[test]
    fn nothing_is_changed_before_a_host_has_spoken() {
        let mut guard = guard(false);
        assert!(guard.in_doubt() && !guard.compares());
        assert!(!guard.listened(Timestamp(1_499)));
        assert_eq!(
            guard.heard(&beat("c1", 10), None, Timestamp(1_499)),
            Concern::Fine
        );
        assert!(!guard.in_doubt());
        assert!(!guard.listened(Timestamp(1_500)), "it has been heard");

        let mut guard = self::guard(false);
        guard.listen_from(Timestamp(9_000));
        assert!(
            !guard.listened(Timestamp(10_499)),
            "reading took nine seconds"
        );
        assert!(guard.listened(Timestamp(10_500)));

        let mut guard = self::guard(false);
        guard.heard(&beat("c0", 3), None, Timestamp(5));
        assert!(
            guard.in_doubt(),
            "another cluster's host says nothing of this one"
        );
        assert!(
            guard.listened(Timestamp(1_500)),
            "there may be no host at all"
        );
        assert!(!guard.in_doubt() && !guard.listened(Timestamp(1_501)));

        let mut guard = self::guard(false);
        assert_eq!(
            guard.heard(&beat("c1", 12), None, Timestamp(5)),
            Concern::Ask(Question::Last(12))
        );
        assert!(guard.in_doubt(), "the first word contradicts the store");
    }

    #[test]
    fn a_doubt_ends() {
        let mut guard = guard(false);
        guard.heard(&beat("c1", 12), None, Timestamp(1_000));
        guard.heard(&beat("c1", 15), None, Timestamp(5_000));
        assert_eq!(
            guard.question(),
            Some(Question::Last(15)),
            "asked even if the host is silent now"
        );
        guard.answered(&Question::Last(12), 13);
        assert!(guard.in_doubt(), "nobody has asked about 15");
        assert!(!guard.doubts_too_long(Timestamp(10_999)));
        assert!(guard.doubts_too_long(Timestamp(11_000)));
        guard.answered(&Question::Last(15), 15);
        assert!(!guard.in_doubt() && guard.frozen().is_none());
        assert!(!guard.doubts_too_long(Timestamp(60_000)));
    }

    #[test]
    fn what_cannot_be_read_freezes() {
        let unreadable = ["workload.a.b".to_owned(), "host.x".to_owned()];
        let guard = Guard::new("c1".parse().unwrap(), false, 1, &unreadable, Timestamp(0));
        assert!(
            guard
                .frozen()
                .is_some_and(|why| why.contains("workload.a.b and 1 others"))
        );
    }

    #[test]
    fn a_store_that_counts_backwards_freezes() {
        let mut guard = guard(false);
        guard.stored(12);
        assert_eq!(guard.frozen(), None);
        guard.stored(12);
        assert!(guard.frozen().is_some_and(|why| why.contains("lost")));
    }

    /// The store is at 40; of `h1` it has a set of 20, and then some messages were lost that nobody misses:
    /// leases have been written over them.
    #[test]
    fn a_lost_set_freezes_however_few_messages_were_lost() {
        for lost in 1..=6 {
            let mut guard = Guard::new("c1".parse().unwrap(), false, 40, &[], Timestamp(0));
            let held = 20 + lost;
            let concern = guard.heard(&beat("c1", held), Some(20), Timestamp(5));
            let question = Question::Set("h1".parse().unwrap(), held);
            assert_eq!(concern, Concern::Ask(question.clone()), "{lost} lost");
            assert!(guard.in_doubt() && guard.compares());
            guard.answered(&question, 20);
            let why = guard.frozen().unwrap();
            assert!(why.contains(&format!("of sequence {held}")), "{why}");
            assert!(!guard.compares(), "nothing is left to ask");
            let again = guard.heard(&beat("c1", held), Some(20), Timestamp(9));
            assert_eq!(again, Concern::Fine);
        }
    }

    #[test]
    fn a_lost_first_set_freezes_and_what_was_removed_does_not() {
        let mut guard = guard(false);
        let question = Question::Set("h1".parse().unwrap(), 7);
        let concern = guard.heard(&beat("c1", 7), Some(0), Timestamp(5));
        assert_eq!(concern, Concern::Ask(question.clone()));
        guard.answered(&question, 0);
        assert!(guard.frozen().is_some());

        let mut guard = self::guard(false);
        // The store does not know the host any more.
        let concern = guard.heard(&beat("c1", 7), None, Timestamp(5));
        assert_eq!((concern, guard.frozen()), (Concern::Fine, None));
    }

    #[test]
    fn what_another_leader_has_written_is_asked_about_once() {
        let mut guard = guard(false);
        let question = Question::Set("h1".parse().unwrap(), 9);
        let concern = guard.heard(&beat("c1", 9), Some(3), Timestamp(5));
        assert_eq!(concern, Concern::Ask(question.clone()));
        // It speaks again before the store has.
        let later = Question::Set("h1".parse().unwrap(), 10);
        let concern = guard.heard(&beat("c1", 10), Some(3), Timestamp(7));
        assert_eq!(concern, Concern::Ask(later.clone()));
        guard.answered(&question, 9);
        assert_eq!(guard.question(), Some(later.clone()));
        guard.answered(&later, 10);
        assert!(!guard.in_doubt() && guard.frozen().is_none());
        let concern = guard.heard(&beat("c1", 10), Some(3), Timestamp(8));
        assert_eq!(concern, Concern::Fine);
    }
}
