//! Manifests and deploy requests: read whole, every mistake reported with its place.
//!
//! Owns the grammar of `wasmorch.toml` and of `deploy` (docs/reference.md): which keys there are,
//! their bounds, and what contradicts what. It must not know what this version can run: that is
//! `later`'s one list, asked separately.
//!
//! Invariant: what this module accepts is legal in every field, and reading the JSON of an accepted
//! spec gives the same spec.

mod bindings;
mod circle;
pub mod grammar;
mod grant;
mod later;
mod lifecycle;
mod placing;
pub(crate) mod reader;
pub(crate) mod rules;
#[cfg(test)]
mod tests;
mod workload;

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use self::reader::{Field, Reader, echo};
use self::workload::Form;
use crate::document::{self, Node, Position, Value};
use crate::error::Problem;
use crate::ids::{Digest, Name};
use crate::messages::DeployRequest;
use crate::spec::{Kind, WorkloadSpec};
use crate::table::Route;
use crate::units::HumanDuration;

#[cfg(test)]
pub(crate) use self::bindings::backends;
pub use self::circle::circle;
pub use self::grant::{grant_flags, read_grant};
pub use self::later::not_yet;
pub use self::rules::not_undone;

/// No count is larger: beyond it a count is a slip, and sums of counts stay far from overflow.
pub const COUNT_MAX: u32 = 1_000_000;
/// Workloads of one deploy: it commits in one batch of the store (1,000 messages), each with its
/// record, its revision and room for more.
pub const WORKLOADS_MAX: usize = 300;
/// A spec as JSON: a revision has to fit one message (1 MiB) together with others in a reply.
pub const SPEC_BYTES_MAX: usize = 128 * 1024;
/// Entries of a list or map that has no bound of its own.
const LIST_MAX: usize = 1_000;
/// Longer than any run of a cluster.
const YEAR: HumanDuration = HumanDuration::secs(365 * 86_400);
/// Any length of time, none included.
const DURATIONS: RangeInclusive<HumanDuration> = HumanDuration::secs(0)..=YEAR;
/// A length of time that must not be nothing.
const SOME_TIME: RangeInclusive<HumanDuration> = HumanDuration::millis(1)..=YEAR;

/// A whole manifest.
#[derive(Debug, Clone, PartialEq)]
pub struct Manifest {
    /// The namespace, when it names one.
    pub namespace: Option<Name>,
    /// Its workloads revert together.
    pub atomic: bool,
    /// Its workloads, in order.
    pub workloads: Vec<ManifestWorkload>,
}

/// One workload of a manifest.
#[derive(Debug, Clone, PartialEq)]
pub struct ManifestWorkload {
    /// What it asks for; `artifact` is set only when the manifest names a digest.
    pub spec: WorkloadSpec,
    /// Where its bytes come from.
    pub component: Option<ComponentRef>,
    /// Line and column of its table.
    pub at: (u32, u32),
    path: String,
    places: BTreeMap<String, Position>,
}

/// What `component` names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ComponentRef {
    /// A file, from the manifest's folder.
    Path(String),
    /// Bytes that are in the cluster already.
    Digest(Digest),
}

impl ManifestWorkload {
    /// Gives a problem that was found later (`at` a key of the workload) its place in the manifest.
    #[must_use]
    pub fn locate(&self, problem: Problem) -> Problem {
        let at = if problem.at.is_empty() {
            self.path.clone()
        } else {
            format!("{}.{}", self.path, problem.at)
        };
        // What is not in the text itself (a default, an entry of a list) has its parent's place.
        let place = reader::place_of(&self.places, &at, &self.path);
        let place = place.map_or(self.at, |place| (place.line, place.column));
        Problem {
            line: Some(place.0),
            column: Some(place.1),
            at,
            what: problem.what,
        }
    }
}

/// Reads `wasmorch.toml`.
pub fn read_manifest(text: &str) -> Result<Manifest, Vec<Problem>> {
    let root = document::from_toml(text)?;
    let reader = Reader::default();
    let mut manifest = Manifest {
        namespace: None,
        atomic: false,
        workloads: Vec::new(),
    };
    let mut named = Vec::new();
    if let Some(mut table) = Field::root(&reader, &root).table() {
        manifest.namespace = table.take("namespace").and_then(|field| field.parsed());
        table.flag("atomic", &mut manifest.atomic);
        match table.take("workload") {
            Some(field) => {
                (manifest.workloads, named) =
                    manifest_workloads(&reader, &field).into_iter().unzip();
            }
            None => {
                table.wrong("has no workload: write [[workload]] with a `name` and a `component`")
            }
        }
        table.finish_with(&[("workloads", "workload"), ("name", "workload.name")]);
    }
    let written = manifest.workloads.iter().zip(named);
    let written = written.map(|(workload, named)| Located {
        spec: &workload.spec,
        path: &workload.path,
        named,
        written: Some(workload),
    });
    together(&reader, written.collect());
    refuse_or(reader, manifest)
}

fn refuse_or<T>(reader: Reader, value: T) -> Result<T, Vec<Problem>> {
    let problems = reader.finish();
    if problems.is_empty() {
        Ok(value)
    } else {
        Err(problems)
    }
}

/// `[workload]` alone, or each `[[workload]]`; and whether it has a legal name.
fn manifest_workloads(reader: &Reader, field: &Field<'_>) -> Vec<(ManifestWorkload, bool)> {
    let one = |field: &Field<'_>| {
        reader.take_places();
        let workload::Read {
            spec,
            component,
            named,
        } = workload::read(field, Form::Manifest);
        let at = field.node.at.unwrap_or(Position { line: 1, column: 1 });
        let workload = ManifestWorkload {
            spec,
            component,
            at: (at.line, at.column),
            path: field.path.clone(),
            places: reader.take_places(),
        };
        (workload, named)
    };
    match &field.node.value {
        Value::Table(_) => vec![one(field)],
        Value::Array(items) if items.is_empty() => {
            field.wrong("is empty: write [[workload]] with a `name` and a `component`");
            Vec::new()
        }
        Value::Array(_) => field
            .list(WORKLOADS_MAX, |field| Some(one(&field)))
            .unwrap_or_default(),
        _ => {
            field.wrong("must be a table: write [[workload]]");
            Vec::new()
        }
    }
}

/// Reads the body of `deploy` and `plan`.
pub fn read_deploy(body: &[u8]) -> Result<DeployRequest, Vec<Problem>> {
    let root: Node = document::from_json(body)?;
    let reader = Reader::default();
    let mut request = DeployRequest::default();
    let mut named = Vec::new();
    if let Some(mut table) = Field::root(&reader, &root).table() {
        match table.take("workloads") {
            Some(field) => {
                let one = |field: Field<'_>| {
                    let read = workload::read(&field, Form::Api);
                    Some((read.spec, read.named))
                };
                let read = field.list(WORKLOADS_MAX, one).unwrap_or_default();
                (request.workloads, named) = read.into_iter().unzip();
                if matches!(&field.node.value, Value::Array(items) if items.is_empty()) {
                    field.wrong("is empty");
                }
            }
            None => table.wrong("has no `workloads`"),
        }
        table.flag("atomic", &mut request.atomic);
        request.if_index = table
            .take("if_index")
            .and_then(|field| field.integer(0..=u64::MAX));
        request.request_id = table.take("request_id").and_then(|field| field.parsed());
        request.by = table.take("by").and_then(|field| {
            let text = field.text()?;
            grammar::free_text(text)
                .map_err(|what| field.wrong(what))
                .ok()?;
            Some(text.to_owned())
        });
        table.finish_with(&[("workload", "workloads"), ("spec", "workloads")]);
    }
    let paths: Vec<String> = (0..request.workloads.len())
        .map(|index| format!("workloads[{index}]"))
        .collect();
    let asked = request.workloads.iter().zip(&paths).zip(named);
    let asked = asked.map(|((spec, path), named)| Located {
        spec,
        path,
        named,
        written: None,
    });
    together(&reader, asked.collect());
    refuse_or(reader, request)
}

/// One of several workloads.
struct Located<'a> {
    spec: &'a WorkloadSpec,
    path: &'a str,
    /// Whether its name is legal; else the spec holds the default.
    named: bool,
    written: Option<&'a ManifestWorkload>,
}

impl Located<'_> {
    fn wrong(&self, reader: &Reader, key: &str, what: String) {
        let at = reader::join(self.path, key);
        let place = self.written.map(|workload| {
            let (line, column) = workload.at;
            workload
                .places
                .get(&at)
                .copied()
                .unwrap_or(Position { line, column })
        });
        reader.problem(&at, place, what);
    }
}

/// What workloads of one deploy must not have in common: names, routes, circles of dependencies.
fn together(reader: &Reader, workloads: Vec<Located<'_>>) {
    let mut names: BTreeMap<&Name, &str> = BTreeMap::new();
    let mut routes: BTreeMap<Route, &str> = BTreeMap::new();
    for workload in &workloads {
        let name = &workload.spec.name;
        if workload.named
            && let Some(other) = names.insert(name, workload.path)
        {
            let what = format!("{} is the name of {other} already", echo(name.as_str()));
            workload.wrong(reader, "name", what);
        }
        for text in &workload.spec.routes {
            let Ok(route) = Route::parse(text) else {
                continue;
            };
            match routes.insert(route, workload.path) {
                Some(other) if other != workload.path => {
                    workload.wrong(
                        reader,
                        "routes",
                        format!("{} is a route of {other} already", echo(text)),
                    );
                }
                _ => {}
            }
        }
    }
    let all = { workloads.iter() }.map(|workload| (&workload.spec.name, workload));
    let all: BTreeMap<&Name, &Located<'_>> = all.collect();
    let waits_for =
        |name: &Name| { all.get(name) }.map_or_else(Vec::new, |one| one.spec.depends_on.clone());
    let names = workloads.iter().map(|workload| &workload.spec.name);
    if let Some((names, what)) = circle(names, waits_for)
        && let Some(workload) = all.get(&names[0])
    {
        workload.wrong(reader, "depends_on", what);
    }
}

/// What of this spec contradicts the kind that its component turned out to have.
pub fn check_kind(spec: &WorkloadSpec, kind: Kind) -> Vec<Problem> {
    let problem = |(key, what): (&str, String)| Problem {
        at: key.to_owned(),
        line: None,
        column: None,
        what,
    };
    rules::of_kind(spec, kind)
        .into_iter()
        .map(problem)
        .collect()
}
