//! Questions to the store that an observation raises, asked off the loop, and what follows.

use std::time::Instant;

use wasmorch_api::subjects::key;
use wasmorch_api::{ApiError, Term};

use super::{ControlLoop, End};
use crate::guard::Question;
use crate::recover::Sources;
use crate::store::{Store, StoreError};

/// What a question to the store has found.
#[derive(Debug)]
pub(crate) enum Finding {
    /// A host has seen more than this leader knows of; this is what the store says.
    Sequence {
        question: Question,
        stored: Result<u64, StoreError>,
    },
    /// A host has seen the term `seen`; the store holds `stored`.
    Term {
        seen: Term,
        stored: Result<Term, StoreError>,
    },
    /// What the state can be rebuilt from.
    Gathered(Result<Box<Sources>, ApiError>),
}

impl ControlLoop {
    /// Asks the store again while a doubt lasts, and not for ever.
    pub(super) fn settle_doubt(&mut self) -> Result<(), End> {
        if let Some(question) = self.begin.guard.question() {
            self.verify_sequence(question);
        }
        if self.begin.guard.doubts_too_long(self.begin.clock.now()) {
            let why = "it did not say whether it is what hosts have seen".to_owned();
            return Err(End::Unsure(StoreError::Unavailable(why)));
        }
        Ok(())
    }

    /// Asks the store; the answer comes as a finding.
    pub(super) fn verify_sequence(&mut self, question: Question) {
        self.find(move |store| async move {
            let stored = match &question {
                Question::Last(_) => store.last_sequence().await,
                Question::Set(host, _) => store.sequence_of(&key::placements(host)).await,
            };
            Finding::Sequence { question, stored }
        });
    }

    pub(super) fn verify_term(&mut self, seen: Term) {
        self.find(move |store| async move {
            let stored = store.read_term().await;
            let stored = stored.map(|(term, _)| term.map_or(Term(0), |record| record.term));
            Finding::Term { seen, stored }
        });
    }

    fn find<F>(&mut self, question: impl FnOnce(Store) -> F)
    where
        F: Future<Output = Finding> + Send + 'static,
    {
        if self.finding {
            return;
        }
        let (answer, findings) = (
            question(self.begin.store.clone()),
            self.begin.findings.clone(),
        );
        self.finding = self.begin.asker.run(async move {
            // The loop may be gone.
            let _ = findings.send(answer.await).await;
        });
    }

    pub(super) fn found(&mut self, finding: Finding) -> Result<(), End> {
        self.finding &= matches!(finding, Finding::Gathered(_));
        match finding {
            Finding::Gathered(sources) => return self.gathered(sources),
            Finding::Sequence {
                question,
                stored: Ok(stored),
            } => {
                self.begin.guard.answered(&question, stored);
                self.pace.changed(Instant::now());
                if let Some(next) = self.begin.guard.question() {
                    self.verify_sequence(next);
                }
            }
            Finding::Term {
                seen,
                stored: Ok(stored),
            } => {
                let own = self.begin.cluster.term;
                if stored > own {
                    return Err(End::Deposed(format!("term {stored} has begun")));
                }
                // The store does not know the term that a host has seen: it went back.
                return Err(End::Behind(seen));
            }
            // It is asked again with the next heartbeat.
            Finding::Sequence {
                stored: Err(error), ..
            }
            | Finding::Term {
                stored: Err(error), ..
            } => {
                tracing::debug!(%error, "the store was not asked");
            }
        }
        Ok(())
    }
}
