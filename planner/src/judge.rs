//! Whether a revision answers badly: `update.fail_when`, held against what hosts tell of its replicas.
//!
//! Owns the tally of a rollout and the verdict. What follows from one is the rollout's to decide
//! (`rollout`): exactly what follows from a replica that is given up.
//!
//! The rule: the answers of all replicas of the new revision that this leader has heard of since the
//! rollout began are added up, those of ended and lost ones too, so that none takes its errors along.
//! From `min_requests` on there is a verdict when more than `errors` of them failed, or when the 99th
//! percentile is beyond `p99`. That is: more than one in a hundred, and no single one, was slower,
//! which the host counts exactly, so that adding up is exact too.
//!
//! With fewer requests there is none, and the rollout goes on as if nobody had asked: `min_ready` is
//! how long a replica is to be seen answering. Where the spec names `fail_when` itself, a new replica
//! counts as available only [`HEARD_WITHIN`] later, when what it answered until then has been heard
//! of: the old one serves so long, and the rollout does not complete before.
//!
//! Known limits: a new leader starts from what hosts tell it, so it has no figures of hosts that are
//! gone, and a rollout that a person resumed in spite of its verdict is judged anew from the start.

use std::collections::BTreeMap;
use std::time::Duration;

use wasmorch_api::record::Record;
use wasmorch_api::spec::FailWhen;
use wasmorch_api::{
    Answers, ReplicaId, ReplicaStatus, RevisionNumber, RolloutState, Share, Timestamp,
};

use crate::planted::{self, Bug};
use crate::slots::Pass;

/// Hosts ask their runners every second and tell at once what has grown; as much again for the way.
pub(crate) const HEARD_WITHIN: Duration = Duration::from_millis(2_000);
/// Starts that are told apart. What more of them answered is not needed for a verdict.
const HEARD_MOST: usize = 10_000;

/// What has been heard of the answers of a rollout's new revision.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tally {
    /// Which rollout: its revision, and when it began.
    rollout: Option<(RevisionNumber, Timestamp)>,
    heard: BTreeMap<ReplicaId, Answers>,
    /// It waits for a person.
    paused: bool,
    /// What a person has seen and gone on in spite of.
    forgiven: Answers,
}

impl Tally {
    /// The record has changed, and its rollout with it, perhaps: `true` when another one has begun.
    pub(crate) fn follow(&mut self, record: &Record) -> bool {
        let rollout = record.rollout.as_ref();
        let named = rollout.map(|rollout| (rollout.revision, rollout.started));
        let begins = named != self.rollout;
        if begins {
            *self = Self {
                rollout: named,
                ..Self::default()
            };
        }
        if !rollout.is_some_and(|rollout| is_open(rollout.state, rollout.from)) {
            self.heard.clear();
        }
        let paused = rollout.is_some_and(|rollout| rollout.state == RolloutState::Paused);
        if self.paused && !paused {
            self.forgiven = self.all();
        }
        self.paused = paused;
        begins
    }

    /// A host tells of a replica. Its counts only grow, so an old word changes nothing.
    pub(crate) fn hear(&mut self, record: &Record, status: &ReplicaStatus) {
        let rollout = record.rollout.as_ref();
        let concerns = rollout.is_some_and(|rollout| {
            rollout.revision == status.revision && is_open(rollout.state, rollout.from)
        });
        if !concerns || status.answers.is_empty() || status.replica.placement < record.fresh_from {
            return;
        }
        if let Some(heard) = self.heard.get_mut(&status.replica) {
            if status.answers.requests >= heard.requests {
                *heard = status.answers;
            }
        } else if self.heard.len() < HEARD_MOST {
            self.heard.insert(status.replica, status.answers);
        }
    }

    fn all(&self) -> Answers {
        let all = self.heard.values();
        all.fold(Answers::default(), |sum, one| sum.plus(*one))
    }

    fn counts(&self) -> Answers {
        self.all().since(self.forgiven)
    }
}

/// Whether anything still follows from how the new revision answers. A first revision that failed
/// completes when it comes to life yet, and that takes good answers.
fn is_open(state: RolloutState, from: Option<RevisionNumber>) -> bool {
    is_judged(state)
        || state == RolloutState::Paused
        || state == RolloutState::Failed && from.is_none()
}

/// States in which a verdict ends the rollout. Going back is never judged: if the old revision is no
/// better, going forth again would not help.
fn is_judged(state: RolloutState) -> bool {
    matches!(
        state,
        RolloutState::Rolling | RolloutState::Canary | RolloutState::Baking
    )
}

/// Why the revision that is being rolled out is given up for its answers, in words.
pub(crate) fn verdict(pass: &Pass<'_>) -> Option<String> {
    let when = pass.target.spec.update.judged_by(pass.target.kind)?;
    let rollout = pass.record.rollout.as_ref()?;
    let open = is_judged(rollout.state) || rollout.state == RolloutState::Failed;
    if planted::is(Bug::VerdictIgnored) {
        return None;
    }
    let tally = &pass.workload.tally;
    let same = tally.rollout == Some((rollout.revision, rollout.started));
    let of_target = rollout.revision == pass.target.number;
    let begun = rollout.hold.is_none();
    (open && same && of_target && begun).then(|| words(&when, tally.counts()))?
}

/// The rule itself.
fn words(when: &FailWhen, answers: Answers) -> Option<String> {
    let Answers {
        requests,
        errors,
        slow,
    } = answers;
    if requests < u64::from(when.min_requests.max(1)) {
        return None;
    }
    if is_more(errors, requests, when.errors) {
        let share = share_of(errors, requests);
        return Some(format!(
            "{errors} of {requests} requests failed since ready ({share}), fail_when allows {}",
            when.errors
        ));
    }
    let p99 = when.p99?;
    (slow > 1 && is_more(slow, requests, ONE_IN_A_HUNDRED)).then(|| {
        let share = share_of(slow, requests);
        format!(
            "{slow} of {requests} requests took longer than {p99} since ready ({share}), \
             fail_when.p99 allows {ONE_IN_A_HUNDRED}"
        )
    })
}

/// What lies beyond a 99th percentile.
const ONE_IN_A_HUNDRED: Share = Share(1_000);
/// A share of all.
const ALL: u128 = 100_000;

fn is_more(part: u64, whole: u64, share: Share) -> bool {
    u128::from(part) * ALL > u128::from(whole) * u128::from(share.0)
}

/// Rounded to a tenth of a percent, for people.
fn share_of(part: u64, whole: u64) -> Share {
    let tenths = (u128::from(part) * 1_000 + u128::from(whole) / 2) / u128::from(whole.max(1));
    Share(u32::try_from(tenths * 100).unwrap_or(u32::MAX))
}

/// How long a replica of a new revision has to be ready before it counts. Never so long that it could
/// not be in time.
pub(crate) fn ready_for(pass: &Pass<'_>) -> Duration {
    let update = &pass.target.spec.update;
    let rollout = pass.record.rollout.as_ref();
    let judged = update.fail_when.is_some()
        && rollout.is_some_and(|one| is_judged(one.state) && one.revision == pass.target.number);
    if !judged || planted::is(Bug::AnswersNotAwaited) {
        return update.min_ready.0;
    }
    let room = update
        .progress_deadline
        .0
        .saturating_sub(update.min_ready.0);
    update.min_ready.0 + HEARD_WITHIN.min(room / 2)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use wasmorch_api::HumanDuration;

    use super::*;

    fn when(errors: u32, min_requests: u32, p99: Option<u64>) -> FailWhen {
        FailWhen {
            errors: Share(errors * 1_000),
            min_requests,
            p99: p99.map(HumanDuration::millis),
        }
    }

    fn answers(requests: u64, errors: u64, slow: u64) -> Answers {
        Answers {
            requests,
            errors,
            slow,
        }
    }

    #[test]
    fn more_errors_than_allowed_are_told_in_words() {
        let when = when(10, 20, None);
        assert_eq!(words(&when, answers(19, 19, 0)), None, "too few to tell");
        assert_eq!(
            words(&when, answers(60, 6, 0)),
            None,
            "just what is allowed"
        );
        insta::assert_snapshot!(
            words(&when, answers(60, 12, 0)).unwrap_or_default(),
            @"12 of 60 requests failed since ready (20%), fail_when allows 10%"
        );
        insta::assert_snapshot!(
            words(&when, answers(61, 7, 0)).unwrap_or_default(),
            @"7 of 61 requests failed since ready (11.5%), fail_when allows 10%"
        );
    }

    #[test]
    fn the_99th_percentile_is_the_one_in_a_hundred_and_never_a_single_one() {
        let when = when(10, 20, Some(800));
        assert_eq!(words(&when, answers(20, 0, 1)), None, "one is no measure");
        assert_eq!(words(&when, answers(200, 0, 2)), None, "one in a hundred");
        insta::assert_snapshot!(
            words(&when, answers(200, 0, 3)).unwrap_or_default(),
            @"3 of 200 requests took longer than 800ms since ready (1.5%), fail_when.p99 allows 1%"
        );
        assert!(words(&when, answers(20, 3, 20)).is_some_and(|why| why.contains("failed")));
        assert_eq!(
            words(&FailWhen { p99: None, ..when }, answers(20, 0, 20)),
            None
        );
    }

    proptest! {
        /// More failures never turn a verdict, and no share that is allowed is one.
        #[test]
        fn a_verdict_is_monotone(
            requests in 1u64..10_000, part in 0u64..10_000, percent in 0u32..=100, few in 1u32..100
        ) {
            let part = part.min(requests);
            let when = when(percent, few, Some(100));
            let bad = words(&when, answers(requests, part, 0)).is_some();
            let beyond = part * 100 > requests * u64::from(percent);
            prop_assert_eq!(bad, beyond && requests >= u64::from(few));
            if bad && part < requests {
                prop_assert!(words(&when, answers(requests, part + 1, 0)).is_some());
            }
        }
    }
}
