//! Reads one workload: `[[workload]]` of a manifest, or a SPEC of the API.
//!
//! Owns the keys of a workload and the rules that span several of them.

use super::reader::{Field, Fields, echo};
use super::{COUNT_MAX, ComponentRef, DURATIONS, LIST_MAX, SOME_TIME, SPEC_BYTES_MAX};
use super::{bindings, grammar, lifecycle, placing, rules};
use crate::ids::{Digest, Name};
use crate::spec::{InstanceReuse, Kind, PerHost, Replicas, Reserve, Resources, WorkloadSpec};
use crate::table::Route;
use crate::units::{ByteSize, Cpu};

/// Who wrote the workload: what names its bytes differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// `component`: a path, or a digest.
    Manifest,
    /// `artifact`: a digest.
    Api,
}

/// What people write for a key that has another name or place here.
const ELSEWHERE: [(&str, &str); 15] = [
    ("env", "environment"),
    ("memory", "resources.memory"),
    ("cpu", "resources.cpu"),
    ("timeout", "resources.timeout"),
    ("concurrency", "resources.concurrency"),
    ("limits", "resources"),
    ("grant", "bindings"),
    ("grants", "bindings"),
    ("subscribe", "bindings.subscribe"),
    ("publish", "bindings.publish"),
    ("volume", "bindings.volume"),
    ("http", "bindings.http"),
    ("canary", "update.canary"),
    ("command", "args"),
    ("namespace", "namespace, at the top of the file"),
];

/// No host has more: what is larger is a slip of the unit.
const MEMORY_MAX: ByteSize = ByteSize(1 << 44);
/// One page of WebAssembly memory.
const MEMORY_MIN: ByteSize = ByteSize(64 << 10);
const CPU_MAX: Cpu = Cpu(1_024_000);

/// A workload as read; what was refused holds its default.
pub(super) struct Read {
    pub(super) spec: WorkloadSpec,
    pub(super) component: Option<ComponentRef>,
    /// Whether it has a legal name.
    pub(super) named: bool,
}

pub(super) fn read(field: &Field<'_>, form: Form) -> Read {
    let mut spec = WorkloadSpec::default();
    let Some(mut table) = field.table() else {
        return Read {
            spec,
            component: None,
            named: false,
        };
    };
    if !table.has("name") {
        table.wrong("has no `name`");
    }
    let name: Option<Name> = table.take("name").and_then(|field| field.parsed());
    let named = name.is_some();
    spec.name = name.unwrap_or_default();
    let component = component(&mut table, form, &mut spec);
    spec.kind = table
        .take("kind")
        .and_then(|field| field.choice(&Kind::ALL.map(|kind| (kind.as_str(), kind))));
    values(&mut table, &mut spec);
    depends_on(&mut table, &mut spec);
    routes(&mut table, &mut spec);
    counts(&mut table, &mut spec);
    if let Some(field) = table.take("resources") {
        spec.resources = resources(&field);
    }
    if let Some(field) = table.take("instance") {
        spec.instance = instance(&field);
    }
    if let Some(field) = table.take("restart") {
        spec.restart = lifecycle::restart(&field);
    }
    placing::read(&mut table, &mut spec);
    placing::check_per_host(&table, &spec);
    if let Some(field) = table.take("health") {
        spec.health = lifecycle::health(&field);
    }
    if let Some(field) = table.take("bindings") {
        spec.bindings = bindings::read(&field);
    }
    placing::check_volumes(&table, &spec);
    spec.update = lifecycle::update(table.take("update").as_ref(), &spec);
    lifecycle::cron(&mut table, &mut spec);
    if let Some(field) = table.take("job") {
        spec.job = lifecycle::job(&field);
    }
    if let Some(kind) = spec.kind {
        for (key, what) in rules::of_kind(&spec, kind) {
            table.wrong_at(key, what);
        }
    } else if spec.schedule.is_some() {
        table.wrong_at("schedule", "needs kind = \"cron\"");
    }
    size(&table, &spec);
    let bytes = match form {
        Form::Manifest => [("artifact", "component"), ("image", "component")],
        Form::Api => [("component", "artifact"), ("image", "artifact")],
    };
    table.finish_with(&[&ELSEWHERE[..], &bytes].concat());
    Read {
        spec,
        component,
        named,
    }
}

fn component(table: &mut Fields<'_>, form: Form, spec: &mut WorkloadSpec) -> Option<ComponentRef> {
    if form == Form::Api {
        match table.take("artifact") {
            Some(field) => spec.artifact = field.parsed(),
            None => table.wrong("has no `artifact`: the digest of the uploaded component"),
        }
        return None;
    }
    let Some(field) = table.take("component") else {
        table.wrong("has no `component`: a path from this file, or a digest");
        return None;
    };
    let text = field.text()?;
    if text.starts_with("sha256:") {
        let digest: Digest = field.parsed()?;
        spec.artifact = Some(digest.clone());
        return Some(ComponentRef::Digest(digest));
    }
    if text.trim().is_empty() || text.contains('\0') || text.contains("://") {
        field.wrong(format!(
            "{} is not a path: write one from this file, as in \"web.wasm\"",
            echo(text)
        ));
        return None;
    }
    Some(ComponentRef::Path(text.to_owned()))
}

/// `args`, `environment`, `config`.
fn values(table: &mut Fields<'_>, spec: &mut WorkloadSpec) {
    let value = |field: &Field<'_>| {
        let text = field.text()?;
        grammar::variable_value(text)
            .map_err(|what| field.wrong(what))
            .ok()?;
        Some(text.to_owned())
    };
    if let Some(field) = table.take("args") {
        spec.args = field
            .list(LIST_MAX, |field| value(&field))
            .unwrap_or_default();
    }
    let variable = |name: &str, field: Field<'_>| {
        if let Err(what) = grammar::variable_name(name) {
            field.wrong(what);
        }
        value(&field)
    };
    if let Some(field) = table.take("environment") {
        spec.environment = field.map(LIST_MAX, variable).unwrap_or_default();
    }
    if let Some(field) = table.take("config") {
        spec.config = field.map(LIST_MAX, variable).unwrap_or_default();
    }
}

fn depends_on(table: &mut Fields<'_>, spec: &mut WorkloadSpec) {
    let Some(field) = table.take("depends_on") else {
        return;
    };
    spec.depends_on = field
        .list(LIST_MAX, |field| field.parsed::<Name>())
        .unwrap_or_default();
    for (index, name) in spec.depends_on.iter().enumerate() {
        if *name == spec.name {
            field.wrong(format!("{} depends on itself", echo(name.as_str())));
        } else if spec.depends_on[..index].contains(name) {
            field.wrong(format!("names {} twice", echo(name.as_str())));
        }
    }
}

fn routes(table: &mut Fields<'_>, spec: &mut WorkloadSpec) {
    let Some(field) = table.take("routes") else {
        return;
    };
    let route = |field: Field<'_>| {
        let text = field.text()?;
        if text.len() > 1_024 {
            field.wrong("is longer than 1024 bytes");
            return None;
        }
        let route = Route::parse(text).map_err(|what| field.wrong(what)).ok()?;
        if route.is_internal() {
            field.wrong(format!(
                "{} can be no route: under `.internal` workloads call each other (`bindings.workloads`)",
                echo(text)
            ));
            return None;
        }
        Some((route, text.to_owned()))
    };
    let routes = field.list(LIST_MAX, route).unwrap_or_default();
    for (index, (route, text)) in routes.iter().enumerate() {
        if routes[..index].iter().any(|(other, _)| other == route) {
            field.wrong(format!("names {} twice", echo(text)));
            break;
        }
    }
    spec.routes = routes.into_iter().map(|(_, text)| text).collect();
}

/// `replicas`, `scale`, `priority`, `min_available`.
fn counts(table: &mut Fields<'_>, spec: &mut WorkloadSpec) {
    use crate::document::Value;
    spec.replicas = table
        .take("replicas")
        .and_then(|field| match &field.node.value {
            Value::String(text) if text == "per-host" => Some(Replicas::PerHost(PerHost::PerHost)),
            Value::Integer(_) => field.integer(0..=COUNT_MAX).map(Replicas::Count),
            _ => {
                field.wrong(format!(
                    "must be 0 to {COUNT_MAX} or \"per-host\", not {}",
                    field.node.value.kind()
                ));
                None
            }
        });
    spec.scale = table
        .take("scale")
        .and_then(|field| lifecycle::scale(&field));
    if table.has("replicas") && table.has("scale") {
        table.wrong_at("scale", "stands beside `replicas`: write one of them");
    }
    table.count("priority", 0..=1_000, &mut spec.priority);
    table.count("min_available", 0..=COUNT_MAX, &mut spec.min_available);
    let most = match (&spec.replicas, &spec.scale) {
        (Some(Replicas::Count(count)), _) => Some(*count),
        (None, Some(scale)) => Some(scale.max),
        _ => None,
    };
    if let Some(most) = most.filter(|most| spec.min_available > *most) {
        let what = format!(
            "must be at most the {most} replicas, not {}: no host could be drained",
            spec.min_available
        );
        table.wrong_at("min_available", what);
    }
}

fn resources(field: &Field<'_>) -> Resources {
    let mut resources = Resources::default();
    let Some(mut table) = field.table() else {
        return resources;
    };
    table.unit("memory", MEMORY_MIN..=MEMORY_MAX, &mut resources.memory);
    table.unit("cpu", Cpu(1)..=CPU_MAX, &mut resources.cpu);
    table.count("concurrency", 1..=COUNT_MAX, &mut resources.concurrency);
    table.count("queue", 0..=COUNT_MAX, &mut resources.queue);
    table.unit("timeout", SOME_TIME, &mut resources.timeout);
    table.unit("body", ByteSize(0)..=MEMORY_MAX, &mut resources.body);
    // The default reservation is no reason to refuse a small limit.
    resources.reserve.memory = resources.reserve.memory.min(resources.memory);
    if let Some(field) = table.take("reserve") {
        resources.reserve = reserve(&field, &resources);
    }
    table.finish_with(&[("mem", "memory"), ("ram", "memory")]);
    resources
}

fn reserve(field: &Field<'_>, resources: &Resources) -> Reserve {
    let mut reserve = resources.reserve.clone();
    let Some(mut table) = field.table() else {
        return reserve;
    };
    table.unit("memory", ByteSize(0)..=MEMORY_MAX, &mut reserve.memory);
    table.unit("cpu", Cpu(0)..=CPU_MAX, &mut reserve.cpu);
    if reserve.memory > resources.memory {
        let what = format!(
            "must be at most the limit ({}), not {}",
            resources.memory, reserve.memory
        );
        table.wrong_at("memory", what);
    }
    if reserve.cpu > resources.cpu {
        let what = format!(
            "must be at most the limit ({}), not {}",
            resources.cpu, reserve.cpu
        );
        table.wrong_at("cpu", what);
    }
    table.finish();
    reserve
}

/// More would only wait for each other: an instance runs on one thread.
const INSTANCE_CONCURRENCY_MAX: u32 = 1_000;

fn instance(field: &Field<'_>) -> InstanceReuse {
    let mut instance = InstanceReuse::default();
    let Some(mut table) = field.table() else {
        return instance;
    };
    table.count("reuse", 1..=COUNT_MAX, &mut instance.reuse);
    table.count(
        "concurrency",
        1..=INSTANCE_CONCURRENCY_MAX,
        &mut instance.concurrency,
    );
    table.unit("idle", DURATIONS, &mut instance.idle);
    if instance.concurrency > instance.reuse {
        let what = format!(
            "must be at most `reuse` ({}), not {}: so many requests an instance may serve at all",
            instance.reuse, instance.concurrency
        );
        table.wrong_at("concurrency", what);
    }
    table.finish();
    instance
}

/// A revision is one message of the store, beside what else it carries.
fn size(table: &Fields<'_>, spec: &WorkloadSpec) {
    let bytes = serde_json::to_vec(spec).map_or(usize::MAX, |json| json.len());
    if bytes > SPEC_BYTES_MAX {
        table.wrong(format!("is {bytes} bytes as JSON; at most {SPEC_BYTES_MAX} are accepted: keep data out of the spec"));
    }
}
