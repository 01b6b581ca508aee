//! The controller's own look at what a deploy names: the same check as the command line's.
//!
//! Owns a bounded cache of inspections by digest. Bytes are fetched once for each digest, hashed
//! before anything reads them, inspected off the async threads and dropped: only what was found is
//! kept.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OnceCell, Semaphore};
use wasmorch_api::component::{self, Inspection};
use wasmorch_api::{
    ARTIFACT_BYTES_MAX, ApiError, Digest, ErrorCode, Kind, Problem, WorkloadSpec, features,
    manifest,
};

use crate::store::{ObjectError, Store};

/// Inspections are a few kilobytes each.
const CACHED_MAX: usize = 1_024;
/// Artifacts fetched at the same time: each may be 256 MiB.
const FETCHES_MAX: usize = 2;

/// What components need that some hosts may lack, by digest.
pub(crate) type Features = BTreeMap<Digest, Vec<String>>;

/// The inspection cache, cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Artifacts {
    store: Store,
    cache: Arc<Mutex<Cache>>,
    fetching: Arc<Semaphore>,
}

type Cell = Arc<OnceCell<Arc<Inspection>>>;

#[derive(Debug, Default)]
struct Cache {
    cells: HashMap<Digest, Cell>,
    /// Oldest first.
    order: VecDeque<Digest>,
}

impl Cache {
    /// The digest's cell, made when absent: callers that come together wait for one fetch.
    fn cell(&mut self, digest: &Digest) -> Cell {
        if let Some(cell) = self.cells.get(digest) {
            return cell.clone();
        }
        if self.order.len() >= CACHED_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.cells.remove(&oldest);
        }
        let cell = Cell::default();
        self.order.push_back(digest.clone());
        self.cells.insert(digest.clone(), cell.clone());
        cell
    }
}

impl Artifacts {
    pub(crate) fn new(store: Store) -> Self {
        let fetching = Arc::new(Semaphore::new(FETCHES_MAX));
        Self {
            store,
            cache: Arc::default(),
            fetching,
        }
    }

    /// Each spec with the kind in force, and what components need that some hosts may lack; or
    /// everything that stands in the way of all of them.
    pub(crate) async fn check(
        &self,
        specs: &[WorkloadSpec],
    ) -> Result<(Vec<(WorkloadSpec, Kind)>, Features), ApiError> {
        let mut checked = Vec::with_capacity(specs.len());
        let mut features = Features::new();
        let mut refusals = Vec::new();
        for (index, spec) in specs.iter().enumerate() {
            match self.check_one(spec).await {
                Ok((kind, inspection)) => {
                    checked.push((spec.clone(), kind));
                    let needed = features::of_component(&inspection);
                    let artifact = spec.artifact.clone().filter(|_| !needed.is_empty());
                    features.extend(artifact.map(|artifact| (artifact, needed)));
                }
                Err(refusal) => refusals.push(located(refusal, index)),
            }
        }
        if refusals.is_empty() {
            Ok((checked, features))
        } else {
            Err(merged(refusals))
        }
    }

    async fn check_one(&self, spec: &WorkloadSpec) -> Result<(Kind, Arc<Inspection>), ApiError> {
        let Some(digest) = &spec.artifact else {
            let what = format!("workload {} names no component", spec.name);
            let problem = problem("artifact", "name the digest of uploaded bytes");
            return Err(ApiError::invalid(what, vec![problem]));
        };
        let inspection = self.inspect(digest, spec).await?;
        let check = component::check(&inspection, spec);
        if let Some(refusal) = check.refusal(spec) {
            return Err(refusal);
        }
        let kind = check.kind.expect("a check that refuses nothing has a kind");
        let later = manifest::not_yet(spec, kind);
        if !later.is_empty() {
            let what = format!("workload {} cannot be deployed", spec.name);
            return Err(ApiError::invalid(what, later));
        }
        Ok((kind, inspection))
    }

    async fn inspect(
        &self,
        digest: &Digest,
        spec: &WorkloadSpec,
    ) -> Result<Arc<Inspection>, ApiError> {
        let cell = {
            let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
            cache.cell(digest)
        };
        // What was refused is not kept: bytes may be uploaded again.
        cell.get_or_try_init(|| self.look(digest, spec))
            .await
            .cloned()
    }

    async fn look(
        &self,
        digest: &Digest,
        spec: &WorkloadSpec,
    ) -> Result<Arc<Inspection>, ApiError> {
        let _turn = self
            .fetching
            .acquire()
            .await
            .expect("the semaphore is never closed");
        let fetched = self.store.fetch(digest, ARTIFACT_BYTES_MAX).await;
        let bytes = fetched.map_err(|error| not_fetched(&error, digest, spec))?;
        let (expected, subject) = (digest.clone(), format!("the component of {}", spec.name));
        let work = move || {
            if Digest::of(&bytes) != expected {
                return Err(corrupt(&expected));
            }
            component::inspect(&bytes).map_err(|problem| problem.refusal(&subject))
        };
        match tokio::task::spawn_blocking(work).await {
            Ok(inspection) => inspection.map(Arc::new),
            Err(error) => Err(ApiError::new(
                ErrorCode::Internal,
                format!("the inspection of {} broke off", digest.short()),
                error.to_string(),
                "this is a mistake of wasmorch: please report it with the component",
            )),
        }
    }
}

fn not_fetched(error: &ObjectError, digest: &Digest, spec: &WorkloadSpec) -> ApiError {
    let what = format!("the component of {} cannot be read", spec.name);
    match error {
        ObjectError::Missing => ApiError::new(
            ErrorCode::NotFound,
            format!("no artifact {digest} in the cluster"),
            format!("{} names it", spec.name),
            format!(
                "upload it first: put the bytes in the object store {} under the name {digest}",
                wasmorch_api::subjects::ARTIFACT_BUCKET
            ),
        ),
        ObjectError::Corrupt => corrupt(digest),
        ObjectError::TooLarge(max) => ApiError::new(
            ErrorCode::TooLarge,
            what,
            format!("it has more than {max} bytes"),
            "strip debug information, or leave data out of the component",
        ),
        ObjectError::Failed(why) => ApiError::new(
            ErrorCode::Unavailable,
            what,
            format!("the object store failed: {why}"),
            "try again",
        ),
    }
}

fn corrupt(digest: &Digest) -> ApiError {
    ApiError::new(
        ErrorCode::Invalid,
        format!("the artifact {digest} is corrupt"),
        "its bytes in the object store have another digest",
        "delete the object and upload the bytes again",
    )
}

fn problem(at: &str, what: &str) -> Problem {
    Problem {
        at: at.to_owned(),
        line: None,
        column: None,
        what: what.to_owned(),
    }
}

/// Gives a workload's problems their place in the request.
fn located(mut refusal: ApiError, index: usize) -> ApiError {
    for problem in &mut refusal.problems {
        problem.at = if problem.at.is_empty() {
            format!("workloads[{index}]")
        } else {
            format!("workloads[{index}].{}", problem.at)
        };
    }
    refusal
}

/// Several refusals as one: every problem is told, and the kind is the first's. One alone stays.
fn merged(mut refusals: Vec<ApiError>) -> ApiError {
    if refusals.len() == 1 {
        return refusals.remove(0);
    }
    let code = refusals
        .iter()
        .map(|refusal| refusal.code)
        .find(|code| *code != ErrorCode::Denied)
        .unwrap_or(ErrorCode::Denied);
    let mut fixes: Vec<String> = Vec::new();
    let mut problems = Vec::new();
    let what = format!("{} workloads cannot be deployed", refusals.len());
    for refusal in refusals {
        if refusal.problems.is_empty() {
            // One without a document's problems: a missing artifact, say.
            let why = if refusal.why.is_empty() { "" } else { ": " };
            problems.push(problem(
                "",
                &format!("{}{why}{}", refusal.what, refusal.why),
            ));
        }
        problems.extend(refusal.problems);
        if !refusal.fix.is_empty() && !fixes.contains(&refusal.fix) {
            fixes.push(refusal.fix);
        }
    }
    let why = "nothing of a deploy is done unless all of it can be".to_owned();
    ApiError {
        code,
        what,
        why,
        fix: fixes.join("\n"),
        problems,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_of_several_workloads_are_told_together() {
        let one = ApiError {
            code: ErrorCode::Denied,
            ..ApiError::invalid("workload a", vec![problem("kind", "is wrong")])
        };
        let two = ApiError::new(
            ErrorCode::NotFound,
            "no artifact x",
            "b names it",
            "upload it",
        );
        let all = merged(vec![located(one.clone(), 0), located(two, 1)]);
        assert_eq!(all.code, ErrorCode::NotFound);
        assert_eq!(all.problems[0].at, "workloads[0].kind");
        assert_eq!(all.problems[1].what, "no artifact x: b names it");
        assert_eq!(all.fix, "upload it");
        assert_eq!(merged(vec![one.clone()]), one);
    }

    #[test]
    fn the_cache_is_bounded_and_keeps_the_newest() {
        let mut cache = Cache::default();
        let digest = |n: usize| Digest::of(&n.to_le_bytes());
        let first = cache.cell(&digest(0));
        assert!(
            Arc::ptr_eq(&first, &cache.cell(&digest(0))),
            "one fetch for each digest"
        );
        for n in 1..=CACHED_MAX {
            cache.cell(&digest(n));
        }
        assert_eq!(
            (cache.cells.len(), cache.order.len()),
            (CACHED_MAX, CACHED_MAX)
        );
        assert!(!cache.cells.contains_key(&digest(0)));
        assert!(cache.cells.contains_key(&digest(CACHED_MAX)));
    }
}
