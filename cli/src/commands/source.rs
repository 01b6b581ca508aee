//! From a file and flags to what is deployed: reading, inspecting, checking, all before anything
//! is sent.
//!
//! The leader checks the same again with the same code (`wasmorch_api`); here it is so that a
//! mistake costs no upload and has its place in the file.

use std::collections::HashSet;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use wasmorch_api::component::{self, CapabilityCheck, ComponentProblem, Inspection};
use wasmorch_api::manifest::{self, ComponentRef, Manifest, ManifestWorkload};
use wasmorch_api::messages::{DeployRequest, StatusReply, WorkloadRequest};
use wasmorch_api::spec::{Replicas, Update, UpdateOrder};
use wasmorch_api::{
    ARTIFACT_BYTES_MAX, ApiError, Digest, ErrorCode, Kind, Name, Problem, WorkloadSpec,
};

use super::{Context, request_id};
use crate::args::SpecArgs;
use crate::cluster;
use crate::error::{CliError, Exit};
use crate::link::Link;

/// A manifest is text that a person writes: 4 MiB is far beyond.
const MANIFEST_BYTES_MAX: u64 = 4 << 20;

/// A component's bytes, inspected.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    pub(crate) path: PathBuf,
    pub(crate) bytes: Bytes,
    pub(crate) digest: Digest,
    pub(crate) inspection: Inspection,
}

/// One workload to deploy.
pub(crate) struct Item {
    pub(crate) spec: WorkloadSpec,
    /// `None`: the manifest names bytes that are in the cluster.
    pub(crate) source: Option<Source>,
    located: Option<ManifestWorkload>,
}

/// Everything to deploy.
pub(crate) struct Prepared {
    pub(crate) namespace: Name,
    pub(crate) items: Vec<Item>,
    atomic: bool,
    if_index: Option<u64>,
    /// The manifest, for the places of problems.
    file: Option<PathBuf>,
}

/// Reads a file, no more of it than `limit` and a byte.
fn read_file(path: &Path, limit: u64) -> Result<Vec<u8>, CliError> {
    let wrong = |error: std::io::Error| CliError::reading(path, &error);
    let file = File::open(path).map_err(wrong)?;
    let mut bytes = Vec::new();
    file.take(limit + 1)
        .read_to_end(&mut bytes)
        .map_err(wrong)?;
    Ok(bytes)
}

/// Reads and inspects a component.
pub(crate) fn read_component(path: &Path) -> Result<Source, CliError> {
    // Not the refusal's own words: a file is run and inspected too, not only deployed.
    let refused = |problem: ComponentProblem| {
        let what = format!(
            "{} is no component or core module that runs here",
            path.display()
        );
        CliError::new(Exit::BYTES, what, problem.to_string(), problem.fix())
    };
    let size = std::fs::metadata(path)
        .map_err(|error| CliError::reading(path, &error))?
        .len();
    if size > ARTIFACT_BYTES_MAX {
        let limit = ARTIFACT_BYTES_MAX;
        return Err(refused(ComponentProblem::TooLarge { bytes: size, limit }));
    }
    let bytes = read_file(path, ARTIFACT_BYTES_MAX)?;
    let inspection = component::inspect(&bytes).map_err(refused)?;
    let digest = Digest::of(&bytes);
    Ok(Source {
        path: path.to_owned(),
        bytes: bytes.into(),
        digest,
        inspection,
    })
}

/// Reads a manifest; every mistake has its place.
pub(crate) fn read_manifest(path: &Path) -> Result<Manifest, CliError> {
    let bytes = read_file(path, MANIFEST_BYTES_MAX)?;
    if bytes.len() as u64 > MANIFEST_BYTES_MAX {
        return Err(CliError::usage(
            format!("{} is too large for a manifest", path.display()),
            "",
        ));
    }
    let text = String::from_utf8(bytes).map_err(|_| {
        CliError::usage(
            format!("{} is no manifest", path.display()),
            "write it as UTF-8 text",
        )
    })?;
    manifest::read_manifest(&text).map_err(|problems| mistakes(path, problems))
}

fn mistakes(path: &Path, problems: Vec<Problem>) -> CliError {
    let count = crate::out::human::count(problems.len() as u64, "mistake");
    let what = format!("{} has {count}", path.display());
    CliError::usage(what, "").with_problems(Some(path), problems)
}

/// Reads what a command line names. For a component the flags come on top of the workload that is
/// there, see [`Prepared::complete`].
pub(crate) fn prepare(ctx: &Context, args: &SpecArgs) -> Result<Prepared, CliError> {
    let if_index = args.if_index;
    if args
        .file
        .extension()
        .is_none_or(|extension| extension != "toml")
    {
        let source = read_component(&args.file)?;
        let name = name_of(args)?;
        let spec = WorkloadSpec {
            name,
            ..WorkloadSpec::default()
        };
        // What no spec could mend is said before anyone is asked.
        let mut flagged = spec.clone();
        apply(args, &mut flagged)?;
        let check = component::check(&source.inspection, &flagged);
        if refuses_bytes(&source, &check)
            && let Some(refusal) = check.refusal(&flagged)
        {
            return Err(CliError {
                exit: Exit::BYTES,
                ..refusal.into()
            });
        }
        let items = vec![Item {
            spec,
            source: Some(source),
            located: None,
        }];
        let namespace = ctx.global.namespace();
        return Ok(Prepared {
            namespace,
            items,
            atomic: false,
            if_index,
            file: None,
        });
    }
    let flags = args.spec_flags();
    if !flags.is_empty() {
        return Err(CliError::usage(
            format!("{} with a manifest", flags.join(", ")),
            format!(
                "a manifest is the whole spec: write it into {}",
                args.file.display()
            ),
        ));
    }
    let manifest = read_manifest(&args.file)?;
    let folder = args.file.parent().unwrap_or(Path::new(""));
    let mut items = Vec::new();
    let mut unread = Vec::new();
    for workload in manifest.workloads {
        let mut spec = workload.spec.clone();
        let source = match &workload.component {
            Some(ComponentRef::Path(path)) => match read_component(&folder.join(path)) {
                Ok(source) => {
                    spec.artifact = Some(source.digest.clone());
                    Some(source)
                }
                Err(error) => {
                    unread.push((error, workload.locate(component_problem())));
                    None
                }
            },
            Some(ComponentRef::Digest(digest)) => {
                spec.artifact = Some(digest.clone());
                None
            }
            None => None,
        };
        items.push(Item {
            spec,
            source,
            located: Some(workload),
        });
    }
    let file = Some(args.file.clone());
    let namespace = ctx.namespace_of(&args.file, manifest.namespace)?;
    let prepared = Prepared {
        namespace,
        items,
        atomic: manifest.atomic,
        if_index,
        file,
    };
    match prepared.check() {
        checked if unread.is_empty() => checked.map(|()| prepared),
        checked => Err(unreadable(&args.file, unread, checked.err())),
    }
}

fn component_problem() -> Problem {
    Problem {
        at: "component".into(),
        line: None,
        column: None,
        what: String::new(),
    }
}

/// Which of several errors weighs most: bytes that nothing can mend, files that are not there, mistakes, grants.
fn weight(exit: Exit) -> u8 {
    match exit {
        Exit::BYTES => 0,
        Exit::NOT_FOUND => 1,
        Exit::USAGE => 2,
        _ => 3,
    }
}

/// The files of a manifest that cannot be read, each at the line that names it, and what is wrong besides.
fn unreadable(file: &Path, unread: Vec<(CliError, Problem)>, other: Option<CliError>) -> CliError {
    let mut all = CliError::new(Exit::FAILED, "", "", "");
    let (mut fixes, mut problems) = (Vec::new(), Vec::new());
    let exits = unread.iter().map(|(error, _)| error.exit);
    let exits = exits.chain(other.iter().map(|error| error.exit));
    all.exit = exits
        .min_by_key(|exit| weight(*exit))
        .unwrap_or(Exit::FAILED);
    all.what = format!("{} cannot be deployed", file.display());
    for (error, place) in unread {
        let what = error.to_string();
        problems.push(Problem { what, ..place });
        fixes.push(error.fix);
    }
    if let Some(other) = other {
        problems.extend(other.problems);
        fixes.push(other.fix);
    }
    let mut said = HashSet::new();
    fixes.retain(|fix| !fix.is_empty() && said.insert(fix.clone()));
    all.fix = fixes.join("\n");
    all.with_problems(Some(file), problems)
}

/// Whether the component itself is at fault, whatever the spec says: it exports nothing that can be
/// deployed, or imports what no host provides.
fn refuses_bytes(source: &Source, check: &CapabilityCheck) -> bool {
    source.inspection.kind.is_none() || !check.unknown.is_empty()
}

fn name_of(args: &SpecArgs) -> Result<Name, CliError> {
    if let Some(name) = &args.name {
        return Ok(name.clone());
    }
    let stem = args.file.file_stem().unwrap_or_default().to_string_lossy();
    // No more than this: a name that has lost letters is not the one that anybody looks for.
    let folded = stem.to_ascii_lowercase().replace('_', "-");
    folded.parse().map_err(|error: wasmorch_api::IdError| {
        let example = match Name::nearest(&stem).filter(|_| stem.is_ascii()) {
            Some(near) => format!(", as in --name {near}"),
            None => String::new(),
        };
        CliError::new(
            Exit::USAGE,
            format!("{} makes no name for a workload", args.file.display()),
            error.to_string(),
            format!("pass --name NAME{example}"),
        )
    })
}

/// The flags on top of a spec.
fn apply(args: &SpecArgs, spec: &mut WorkloadSpec) -> Result<(), CliError> {
    if let Some(replicas) = args.replicas {
        spec.replicas = Some(Replicas::Count(replicas));
    }
    if !args.routes.is_empty() {
        spec.routes.clone_from(&args.routes);
    }
    for pair in &args.env {
        spec.environment
            .insert(pair.key.clone(), pair.value.clone());
    }
    if let Some(memory) = args.memory {
        spec.resources.memory = memory;
    }
    if args.job {
        spec.kind = Some(Kind::Job);
    }
    if !args.args.is_empty() {
        spec.args.clone_from(&args.args);
    }
    let problems: Vec<Problem> = args
        .grants
        .iter()
        .filter_map(|grant| manifest::read_grant(grant, &mut spec.bindings).err())
        .collect();
    // As in a manifest that says nothing of it: a volume is not written by two replicas of a slot, and
    // a port of a host is one replica's.
    let bindings = &spec.bindings;
    if (bindings.writes() || bindings.listens()) && spec.update == Update::default() {
        spec.update.order = UpdateOrder::StopFirst;
        (spec.update.max_surge, spec.update.max_unavailable) = (0, 1);
    }
    if problems.is_empty() {
        return Ok(());
    }
    Err(CliError::usage(
        "these grants cannot be read",
        "`wasmorch deploy --help` shows each form",
    )
    .with_problems(None, problems))
}

impl Prepared {
    /// Puts the flags of a component on top of the workload that is there, and checks the result.
    pub(crate) async fn complete(&mut self, link: &Link, args: &SpecArgs) -> Result<(), CliError> {
        let namespace = self.namespace.clone();
        for item in self.items.iter_mut().filter(|item| item.located.is_none()) {
            let Some(source) = &item.source else { continue };
            let request = WorkloadRequest {
                workload: item.spec.name.clone(),
                all: false,
            };
            match link
                .call::<_, StatusReply>(Some(&namespace), "status", &request)
                .await
            {
                Ok(status) => item.spec = status.spec,
                Err(error) if error.exit == Exit::NOT_FOUND => {}
                Err(error) => return Err(error),
            }
            item.spec.artifact = Some(source.digest.clone());
            apply(args, &mut item.spec)?;
        }
        self.check()
    }

    /// Every mistake and every missing grant, of all workloads.
    fn check(&self) -> Result<(), CliError> {
        let mut refusals: Vec<(ApiError, bool)> = Vec::new();
        for item in &self.items {
            let Some(source) = &item.source else { continue };
            let check = component::check(&source.inspection, &item.spec);
            let locate = |problem| match &item.located {
                Some(located) => located.locate(problem),
                None => problem,
            };
            if let Some(mut refusal) = check.refusal(&item.spec) {
                refusal.problems = refusal.problems.into_iter().map(locate).collect();
                refusals.push((refusal, refuses_bytes(source, &check)));
            } else if let Ok(kind) = check.kind {
                let mut later = manifest::not_yet(&item.spec, kind);
                if self.atomic && self.items.len() > 1 {
                    later.extend(manifest::not_undone(&item.spec, kind));
                }
                if !later.is_empty() {
                    let what = format!("workload {} cannot be deployed", item.spec.name);
                    let located = later.into_iter().map(locate).collect();
                    refusals.push((ApiError::invalid(what, located), false));
                }
            }
        }
        if let Some(error) = self.combine(refusals) {
            return Err(error);
        }
        self.check_values()
    }

    /// Values that came by flags pass the same reader as a manifest's.
    fn check_values(&self) -> Result<(), CliError> {
        if self.items.iter().all(|item| item.located.is_some()) {
            return Ok(());
        }
        let request = self.request();
        let body = serde_json::to_vec(&request)
            .map_err(|error| CliError::bug("the request cannot be written", error.to_string()))?;
        let problems = match manifest::read_deploy(&body) {
            Ok(_) => return Ok(()),
            Err(problems) => problems,
        };
        let bare = |problem: Problem| Problem {
            at: problem.at.trim_start_matches("workloads[0].").to_owned(),
            line: None,
            column: None,
            ..problem
        };
        let name = &self.items[0].spec.name;
        Err(
            CliError::usage(format!("workload {name} cannot be deployed"), "")
                .with_problems(None, problems.into_iter().map(bare).collect()),
        )
    }

    /// One error of all: bytes that nothing can mend weigh most, then mistakes, then grants.
    fn combine(&self, refusals: Vec<(ApiError, bool)>) -> Option<CliError> {
        let exit = refusals
            .iter()
            .map(|(refusal, bytes)| match refusal.code {
                _ if *bytes => Exit::BYTES,
                ErrorCode::Denied => Exit::DENIED,
                _ => Exit::USAGE,
            })
            .min_by_key(|exit| weight(*exit))?;
        let several = refusals.len() > 1;
        let mut combined: Option<ApiError> = None;
        for (refusal, _) in refusals {
            match &mut combined {
                None => combined = Some(refusal),
                Some(all) => {
                    all.problems.extend(refusal.problems);
                    if !refusal.fix.is_empty() && !all.fix.contains(&refusal.fix) {
                        all.fix = format!("{}\n{}", all.fix, refusal.fix).trim().to_owned();
                    }
                }
            }
        }
        let mut error = CliError {
            exit,
            ..combined?.into()
        };
        if several && let Some(file) = &self.file {
            error.what = format!("{} cannot be deployed", file.display());
        }
        error.file = self.file.as_deref().map(Into::into);
        Some(error)
    }

    /// The request, under a fresh id.
    pub(crate) fn request(&self) -> DeployRequest {
        DeployRequest {
            workloads: self.items.iter().map(|item| item.spec.clone()).collect(),
            atomic: self.atomic,
            if_index: self.if_index,
            request_id: Some(request_id()),
            by: Some(cluster::user()),
        }
    }
}

#[cfg(test)]
#[path = "source_tests.rs"]
mod tests;
