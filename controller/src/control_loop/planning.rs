//! What the planner wants, carried out: planned, checked, stored batch by batch, and said.

use std::time::{Duration, Instant};

use wasmorch_api::EventKind;
use wasmorch_planner::{Cluster, EventDraft, Plan, Write, check};

use super::{ControlLoop, End, aside, ending};
use crate::dispatch;
use crate::store::StoreError;

impl ControlLoop {
    pub(super) async fn plan(&mut self) -> Result<(), End> {
        if self.begin.guard.frozen().is_some() || self.begin.guard.in_doubt() {
            // The end of a doubt makes it due again; a freeze lasts as long as the term.
            self.pace.begin();
            return Ok(());
        }
        let began = Instant::now();
        let now = self.begin.clock.now();
        self.pace.begin();
        let mut plan = aside(|| self.begin.cluster.plan(now));
        let (size, unplaced) = (plan.size(), plan.unplaced.len());
        let planned = began.elapsed();
        let (hosts, workloads) = (
            self.begin.cluster.hosts().len(),
            self.begin.cluster.workloads().len(),
        );
        self.begin.metrics.size(hosts, workloads);
        if let Some(at) = plan.wake_at {
            self.pace.wake(self.begin.clock.instant(at), Instant::now());
        }
        let mut refused = false;
        loop {
            let broken = aside(|| check::check_touched(&self.begin.cluster, &plan));
            if broken.is_empty() {
                break;
            }
            refused = true;
            self.refuse_plan(&broken);
            // One workload's mistake must not keep all others from going on. What was to make room
            // for it is found in the next round.
            let size = |plan: &Plan| plan.size() + plan.stale_sets.len();
            let before = size(&plan);
            plan = plan.without(&broken);
            if plan.is_empty() || size(&plan) == before {
                self.pace.hold(Instant::now());
                return Ok(());
            }
        }
        let events = std::mem::take(&mut plan.events);
        let writes: Vec<Write> = aside(|| self.begin.cluster.writes(plan));
        let decided = began.elapsed();
        self.begin.metrics.planned(decided);
        let wrote = !writes.is_empty();
        for batch in dispatch::cut(writes) {
            // An acknowledgement can show that the store went back: nothing more reaches it.
            if self.begin.guard.frozen().is_some() {
                return Ok(());
            }
            if let Err(error) = self.store(batch, Cluster::commit_planned).await {
                if let StoreError::TooLarge { key, .. } = &error {
                    self.alarm_refused(&format!(
                        "{key} is not stored, nor what came after it: {error}"
                    ));
                }
                let mut refusal = None;
                if let Some(end) = ending(error, |why| refusal = Some(why)) {
                    return Err(end);
                }
                if let Some(refusal) = refusal {
                    tracing::warn!(%refusal, "a plan was not stored");
                }
                self.pace.hold(Instant::now());
                return Ok(());
            }
        }
        if !refused {
            self.begin.cluster.carried_out();
        }
        self.say(events);
        let (took, ms) = (began.elapsed(), |took: Duration| took.as_millis());
        tracing::debug!(
            size,
            unplaced,
            planned_ms = ms(planned),
            decided_ms = ms(decided),
            stored_ms = ms(took),
            "planned"
        );
        self.pace.done(Instant::now(), took, wrote);
        if refused {
            self.pace.hold(Instant::now());
        }
        Ok(())
    }

    fn refuse_plan(&mut self, broken: &[check::BrokenRule]) {
        self.begin.metrics.plan_refused();
        let rules: Vec<String> = broken.iter().take(5).map(ToString::to_string).collect();
        self.alarm_refused(&rules.join("; "));
    }

    fn alarm_refused(&mut self, why: &str) {
        if let Some(more) = self.alarm.now() {
            tracing::error!(why, more, "a plan, or a part of it, is not carried out");
            self.say(vec![EventDraft::cluster(EventKind::AlarmPlanRefused, why)]);
        }
    }
}
