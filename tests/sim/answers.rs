//! Traffic, how replicas answer it, and what may follow from that.
//!
//! A second reading of `judge`: by what artifacts do, by what the leader holds of its hosts, and by
//! nothing of how it decides.

use std::collections::{BTreeMap, BTreeSet};

use wasmorch_api::{Answers, Digest, RolloutState, Timestamp, WorkloadKey};
use wasmorch_host::agent::Event as AgentEvent;
use wasmorch_host::runner::protocol::{FromRunner, ReplicaKey, ReplicaUsage, Usage};
use wasmorch_planner::{Cluster, Plan};

use super::wire::Step;
use super::world::{Fate, World};

/// Every replica is asked for so long; each of these is a second.
const ROUNDS: u32 = 20;
/// In a round it is asked so often, at least and at most.
const REQUESTS: (u64, u64) = (5, 40);
/// With so few requests asked for, a calm world judges every revision before it is done.
const SOON_JUDGED: u32 = 5;

/// How one replica has answered.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Asked {
    pub(super) answers: Answers,
    rounds: u32,
}

/// Rollouts that a person has stopped for a while: what they go on in spite of is theirs to know.
pub(crate) type Paused = BTreeSet<(WorkloadKey, Timestamp)>;

impl World {
    /// A second's requests reach a ready replica.
    pub(crate) fn runner_answers(&mut self, at: usize, replica: ReplicaKey) {
        let requests = self.rng.between(REQUESTS.0, REQUESTS.1);
        let run = self.hosts[at].up.as_mut();
        let Some(run) = run.and_then(|up| up.runner.get_mut(&replica)) else {
            return;
        };
        if !run.ready {
            return;
        }
        let bad = run.fate == Fate::Errs;
        run.asked.rounds += 1;
        run.asked.answers = run.asked.answers.plus(Answers {
            requests,
            errors: if bad {
                requests.div_ceil(2)
            } else {
                requests / 20
            },
            slow: 0,
        });
        let (answers, again) = (run.asked.answers, run.asked.rounds < ROUNDS);
        if again {
            self.runner_later(at, &replica, 1_000, Step::Answers);
        }
        let usage = ReplicaUsage {
            replica,
            memory_bytes: 0,
            cpu_millis: 0,
            in_flight: 0,
            request_millis: 0,
            pending: 0,
            answers,
        };
        let usage = Usage {
            replicas: vec![usage],
            ..Usage::default()
        };
        self.agent_event(at, AgentEvent::Runner(FromRunner::Usage(usage)));
    }
}

/// What a plan makes of a revision, and must not by how that answers.
pub(crate) fn wrong(
    cluster: &Cluster,
    plan: &Plan,
    fates: &BTreeMap<Digest, Fate>,
    (paused, calm): (&Paused, bool),
) -> Option<String> {
    plan.update.iter().find_map(|record| {
        let key = record.key();
        let workload = cluster.workload(&key)?;
        let before = workload.record.rollout.as_ref()?;
        let after = record.rollout.as_ref()?;
        let revision = workload.revisions.get(&after.revision)?;
        let bad = fates.get(&revision.artifact) == Some(&Fate::Errs);
        let why = after.reason.as_deref().unwrap_or_default();
        // What goes back with another, or has waited for it in vain, says what was the other's.
        let own =
            !why.ends_with("deployed together (atomic)") && !why.contains("did not become ready");
        if own && why.contains("fail_when") && before.reason != after.reason && !bad {
            return Some(format!(
                "{key} answers well, and its rollout is {}: {why}",
                after.state
            ));
        }
        let when = revision.spec.update.fail_when.as_ref()?;
        let completes = after.state == RolloutState::Completed && before.state != after.state;
        let own_risk = paused.contains(&(key.clone(), after.started));
        let proves = record.wanted() > 0 && !revision.spec.per_host();
        if !completes || !bad || own_risk || !proves {
            return None;
        }
        let reports = workload.reports.values().map(|known| &known.status);
        let of_it = reports.filter(|status| {
            status.revision == after.revision && status.replica.placement >= record.fresh_from
        });
        let heard = of_it.fold(Answers::default(), |sum, one| sum.plus(one.answers));
        let known = heard.requests >= u64::from(when.min_requests)
            && heard.errors * 100_000 > heard.requests * u64::from(when.errors.0);
        let soon = calm && when.min_requests <= SOON_JUDGED;
        (known || soon).then(|| {
            format!(
                "{key} completes revision {}, which fails {} of {} requests",
                after.revision, heard.errors, heard.requests
            )
        })
    })
}
