//! Whether a spec gives a component what it needs, and how the refusal reads.

use super::{Inspection, Shape, interfaces};
use crate::error::{ApiError, ErrorCode, Problem};
use crate::manifest::{check_kind, grant_flags};
use crate::spec::{Bindings, Kind, WorkloadSpec};

/// An import (or an export) that needs a grant which the spec does not give.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MissingGrant {
    /// What needs it: `wasi:http/outgoing-handler@0.2.4`.
    pub import: String,
    /// The binding.
    pub binding: &'static str,
    /// How to give it; `None`: no spec can in this version.
    pub remedy: Option<Remedy>,
}

/// What gives a grant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remedy {
    /// The flag: `--grant http=HOST`.
    pub flag: String,
    /// The line of `[workload.bindings]`: `http = ["HOST"]`.
    pub toml: String,
}

impl MissingGrant {
    /// The flag, or why there is none.
    pub fn flag(&self) -> &str {
        self.remedy
            .as_ref()
            .map_or(NO_SECRETS, |remedy| &remedy.flag)
    }
}

/// Why no spec grants secrets.
const NO_SECRETS: &str = "not in this version yet: hosts have no store of secrets";

/// What stands between a component and running as its spec says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CapabilityCheck {
    /// The kind in force, or why there is none.
    pub kind: Result<Kind, Problem>,
    /// What is not granted.
    pub missing: Vec<MissingGrant>,
    /// Imports that no host provides.
    pub unknown: Vec<String>,
    /// What of the spec contradicts the kind.
    pub problems: Vec<Problem>,
    /// Whether the component itself is at fault, whatever the spec says: no known export, or imports
    /// that no host provides.
    pub bytes_refused: bool,
}

/// The flag's placeholder and the TOML of each binding.
fn grant(import: &str, binding: &'static str) -> MissingGrant {
    let (value, toml) = match binding {
        interfaces::SECRETS => {
            return MissingGrant {
                import: import.to_owned(),
                binding,
                remedy: None,
            };
        }
        "http" => ("HOST", "http = [\"HOST\"]"),
        "publish" => ("SUBJECT", "publish = [\"SUBJECT\"]"),
        "subscribe" => ("SUBJECT", "subscribe = [\"SUBJECT\"]"),
        "keyvalue" => ("NAME", "keyvalue.NAME = { backend = \"jetstream\" }"),
        _ => ("NAME", "blobstore.NAME = { backend = \"jetstream\" }"),
    };
    MissingGrant {
        import: import.to_owned(),
        binding,
        remedy: Some(Remedy {
            flag: format!("--grant {binding}={value}"),
            toml: toml.to_owned(),
        }),
    }
}

fn granted(bindings: &Bindings, binding: &str) -> bool {
    match binding {
        // Calls to other workloads go the same way.
        "http" => !bindings.http.is_empty() || !bindings.workloads.is_empty(),
        "publish" => !bindings.publish.is_empty(),
        "subscribe" => !bindings.subscribe.is_empty(),
        "keyvalue" => !bindings.keyvalue.is_empty(),
        "blobstore" => !bindings.blobstore.is_empty(),
        _ => false,
    }
}

/// Holds a component against a spec.
pub fn check(inspection: &Inspection, spec: &WorkloadSpec) -> CapabilityCheck {
    let kind = kind(inspection, spec);
    let mut missing = Vec::new();
    let mut unknown = Vec::new();
    if kind == Ok(Kind::Messages) && !granted(&spec.bindings, "subscribe") {
        let export = inspection
            .exports
            .iter()
            .find(|name| interfaces::makes(name) == Some(Kind::Messages));
        missing.push(grant(export.map_or("", |name| name), "subscribe"));
    }
    for import in &inspection.imports {
        if inspection.shape == Shape::CoreModule || interfaces::provided(import) {
            continue;
        }
        match interfaces::granted_by(import) {
            // The reply to a message in hand goes through the same interface, and is always allowed.
            Some("publish") if kind == Ok(Kind::Messages) => {}
            Some(binding) if granted(&spec.bindings, binding) => {}
            Some(binding) => missing.push(grant(import, binding)),
            None => unknown.push(import.clone()),
        }
    }
    let mut problems = kind
        .as_ref()
        .map_or_else(|_| Vec::new(), |kind| check_kind(spec, *kind));
    problems.extend(uncounted(inspection, &spec.bindings));
    let bytes_refused = inspection.kind.is_none() || !unknown.is_empty();
    CapabilityCheck {
        kind,
        missing,
        unknown,
        problems,
        bytes_refused,
    }
}

/// Sizes of volumes that nothing would hold: hosts count what is written by `wasi:filesystem`.
fn uncounted(inspection: &Inspection, bindings: &Bindings) -> Vec<Problem> {
    if inspection.shape != Shape::CoreModule {
        return Vec::new();
    }
    let limited = bindings
        .volume
        .iter()
        .filter(|(_, volume)| volume.size.is_some() && volume.mode != "ro");
    limited
        .map(|(name, _)| Problem {
            at: format!("bindings.volume.{name}.size"),
            line: None,
            column: None,
            what: "is not held for core modules in this version yet: leave it out".to_owned(),
        })
        .collect()
}

fn kind(inspection: &Inspection, spec: &WorkloadSpec) -> Result<Kind, Problem> {
    let problem = |what: String| Problem {
        at: "kind".into(),
        line: None,
        column: None,
        what,
    };
    let Some(found) = inspection.kind else {
        let mut what = String::from("exports nothing that can be deployed");
        let other = inspection
            .exports
            .iter()
            .find(|name| !interfaces::export_versions(name).is_empty());
        if let Some(other) = other {
            what.push_str(&format!(
                " (`{other}` is of another version than {})",
                interfaces::export_versions(other).join(", ")
            ));
        }
        what.push_str(&format!(
            ": one of {} is needed",
            interfaces::kind_exports()
        ));
        return Err(problem(what));
    };
    match spec.kind {
        None => Ok(found),
        Some(kind) if inspection.runs_as(kind) => Ok(kind),
        Some(kind) => {
            let kinds: Vec<&str> = inspection
                .kinds()
                .map(|kind| {
                    if kind == Kind::Service {
                        "service or job"
                    } else {
                        kind.as_str()
                    }
                })
                .collect();
            Err(problem(format!(
                "is {kind}, but the component's exports make it {}: build it for {kind}, or change `kind`",
                kinds.join(" or ")
            )))
        }
    }
}

impl CapabilityCheck {
    /// Whether nothing stands in the way.
    pub fn passes(&self) -> bool {
        self.kind.is_ok()
            && self.missing.is_empty()
            && self.unknown.is_empty()
            && self.problems.is_empty()
    }

    /// The refusal, when something stands in the way: `denied` when only grants are missing, else
    /// `invalid`. Its text shows the flags and the TOML that would pass.
    pub fn refusal(&self, spec: &WorkloadSpec) -> Option<ApiError> {
        if self.passes() {
            return None;
        }
        let mut problems: Vec<Problem> = self.kind.as_ref().err().cloned().into_iter().collect();
        problems.extend(self.unknown.iter().map(|import| unknown(import)));
        problems.extend(self.problems.iter().cloned());
        let invalid = !problems.is_empty();
        problems.extend(self.missing.iter().map(missing));
        let (code, why) = if invalid {
            (ErrorCode::Invalid, "the component and the spec do not fit")
        } else {
            (
                ErrorCode::Denied,
                "the component needs what the spec does not grant",
            )
        };
        Some(ApiError {
            code,
            what: format!("workload {} cannot be deployed", spec.name),
            why: why.to_owned(),
            fix: self.fix(&spec.bindings),
            problems,
        })
    }

    fn fix(&self, bindings: &Bindings) -> String {
        let missing: Vec<&MissingGrant> = distinct(&self.missing).collect();
        let mut fix = Vec::new();
        let add: Vec<&Remedy> = missing
            .iter()
            .filter_map(|missing| missing.remedy.as_ref())
            .collect();
        if !add.is_empty() {
            let mut flags = grant_flags(bindings);
            flags.extend(add.iter().map(|remedy| remedy.flag.clone()));
            let toml: Vec<String> = add
                .iter()
                .map(|remedy| format!("  {}", remedy.toml))
                .collect();
            fix.push(format!(
                "Grant it with {}\nor in wasmorch.toml:\n  [workload.bindings]\n{}",
                flags.join(" "),
                toml.join("\n")
            ));
        }
        if add.len() < missing.len() {
            fix.push(
                "Build it without wasmcloud:secrets: a workload is told values by `environment` and \
                 `config` only, which whoever may read its spec can read"
                    .to_owned(),
            );
        }
        fix.join("\n")
    }
}

/// One per binding.
fn distinct(missing: &[MissingGrant]) -> impl Iterator<Item = &MissingGrant> {
    missing.iter().enumerate().filter_map(|(index, one)| {
        (!missing[..index]
            .iter()
            .any(|other| other.binding == one.binding))
        .then_some(one)
    })
}

fn unknown(import: &str) -> Problem {
    let versions = interfaces::import_versions(import);
    let short: String = import
        .chars()
        .take(200)
        .flat_map(char::escape_debug)
        .collect();
    let what = if versions.is_empty() {
        format!("imports `{short}`, which no wasmorch host provides")
    } else {
        format!(
            "imports `{short}`; hosts provide it in version {}",
            versions.join(", ")
        )
    };
    Problem {
        at: "component".into(),
        line: None,
        column: None,
        what,
    }
}

fn missing(missing: &MissingGrant) -> Problem {
    let MissingGrant {
        import, binding, ..
    } = missing;
    let what = format!("`{import}` needs the grant {binding}: {}", missing.flag());
    Problem {
        at: format!("bindings.{binding}"),
        line: None,
        column: None,
        what,
    }
}
