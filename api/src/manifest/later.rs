//! "Not yet": what the grammar accepts and this version does not run, in one list.
//!
//! Owns that list. A part that learns to run one of them deletes its line here, and nothing else has
//! to change.

use crate::error::Problem;
use crate::spec::{Kind, Scale, WorkloadSpec};

/// What this spec asks for that this version does not run. `at` is the key within the workload.
pub fn not_yet(spec: &WorkloadSpec, kind: Kind) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut later = |asked: bool, at: &str, what: &str, instead: &str| {
        if asked {
            let what = format!("{what} not in this version yet: {instead}");
            problems.push(Problem {
                at: at.to_owned(),
                line: None,
                column: None,
                what,
            });
        }
    };
    let alone = |scale: &Scale| scale.min == 0 && scale.max == 1;
    later(
        kind == Kind::Messages
            && spec.scale.as_ref().is_some_and(alone)
            && spec.bindings.hears_plain_subjects(),
        "scale.max",
        "going to zero alone with a subject that no stream keeps (what comes while it lies down would be lost) is",
        "use max = 2 or more, so that one listens while the other lies down, or name a stream in bindings.subscribe",
    );
    later(
        spec.instance.reuse != 1 && kind != Kind::Http,
        "instance.reuse",
        "reusing instances of anything but http workloads is",
        "use reuse = 1",
    );
    problems
}
