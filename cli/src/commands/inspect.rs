//! `inspect`: what a file is, and what it would need granted. Asks no cluster.

use std::path::Path;

use serde_json::json;
use wasmorch_api::component::{self, CapabilityCheck};
use wasmorch_api::{ByteSize, WorkloadSpec};

use super::Context;
use super::source::{Source, read_component};
use crate::error::{CliError, Exit};
use crate::out::table::{Tone, pairs};

/// `inspect APP.wasm`.
pub(crate) fn run(ctx: &Context, file: &Path) -> Result<Exit, CliError> {
    let source = read_component(file)?;
    let check = component::check(&source.inspection, &WorkloadSpec::default());
    if ctx.out.is_json() {
        let inspection = &source.inspection;
        let needs = check.missing.iter().map(|missing| {
            json!({
                "import": missing.import, "binding": missing.binding,
                "flag": missing.remedy.as_ref().map(|remedy| &remedy.flag),
                "toml": missing.remedy.as_ref().map(|remedy| &remedy.toml),
            })
        });
        ctx.out.json(&json!({
            "kind": inspection.kind,
            "shape": inspection.shape.as_str(),
            "size_bytes": inspection.size_bytes,
            "digest": source.digest,
            "exports": inspection.exports,
            "imports": inspection.imports,
            "needs": needs.collect::<Vec<_>>(),
            "unknown": check.unknown,
            "deployable": check.kind.is_ok() && check.unknown.is_empty() && can_be_granted(&check),
        }))?;
    } else {
        ctx.out.text(&render(&source, &check))?;
    }
    Ok(Exit::OK)
}

/// Whether some spec gives it all that it needs.
fn can_be_granted(check: &CapabilityCheck) -> bool {
    check.missing.iter().all(|missing| missing.remedy.is_some())
}

fn render(source: &Source, check: &CapabilityCheck) -> String {
    let inspection = &source.inspection;
    let kind = match (&check.kind, inspection.kind) {
        (Ok(kind), _) => Tone::Good.paint(kind.as_str()),
        (Err(_), Some(kind)) => kind.to_string(),
        (Err(problem), None) => Tone::Bad.paint(&format!("none: {}", problem.what)),
    };
    let list = |items: &[String]| {
        if items.is_empty() {
            "nothing".to_owned()
        } else {
            items.join("\n")
        }
    };
    let mut lines = vec![
        ("file", source.path.display().to_string()),
        ("kind", kind),
        ("shape", inspection.shape.as_str().to_owned()),
        ("size", ByteSize(inspection.size_bytes).approximate()),
        ("digest", source.digest.to_string()),
        ("exports", list(&inspection.exports)),
        ("imports", list(&inspection.imports)),
    ];
    let mut needs: Vec<String> = Vec::new();
    for missing in &check.missing {
        needs.push(match &missing.remedy {
            Some(remedy) => format!("{}  for {}", remedy.flag, missing.import),
            None => format!("{}: {}", missing.import, missing.flag()),
        });
    }
    if needs.is_empty() {
        needs.push("no grant".into());
    }
    lines.push(("needs", needs.join("\n")));
    if !check.unknown.is_empty() {
        lines.push((
            "unknown",
            format!("{}\nno host provides this", check.unknown.join("\n")),
        ));
    }
    pairs(&lines)
}

#[cfg(test)]
mod tests {
    use wasmorch_api::Digest;
    use wasmorch_api::component::{Inspection, Shape};

    use super::*;

    #[test]
    fn an_inspection_lists_what_would_have_to_be_granted() {
        let inspection = Inspection {
            shape: Shape::Component,
            exports: vec!["wasi:http/incoming-handler@0.2.4".into()],
            imports: vec![
                "acme:strange/thing@1.0.0".into(),
                "wasi:cli/environment@0.2.4".into(),
                "wasi:http/outgoing-handler@0.2.4".into(),
                "wasmcloud:secrets/store@0.1.0-draft".into(),
            ],
            kind: Some(wasmorch_api::Kind::Http),
            size_bytes: 51_200,
        };
        let check = component::check(&inspection, &WorkloadSpec::default());
        let source = Source {
            path: "app.wasm".into(),
            bytes: bytes::Bytes::new(),
            digest: Digest::of(b""),
            inspection,
        };
        assert!(!can_be_granted(&check), "nobody grants secrets yet");
        insta::assert_snapshot!(anstream::adapter::strip_str(&render(&source, &check)).to_string());
    }
}
