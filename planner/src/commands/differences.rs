//! What is different between two specs, value by value.

use serde_json::Value;
use wasmorch_api::WorkloadSpec;

/// What is different between two specs, a line for each value: `resources.memory: 64MiB -> 128MiB`.
pub(crate) fn differences(before: &WorkloadSpec, after: &WorkloadSpec) -> Vec<String> {
    changes(before, after)
        .into_iter()
        .map(|change| {
            format!(
                "{}: {} -> {}",
                change.path,
                short(&change.from),
                short(&change.to)
            )
        })
        .collect()
}

/// One value that is different.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Difference {
    pub(crate) path: String,
    pub(crate) from: Value,
    pub(crate) to: Value,
}

pub(crate) fn changes(before: &WorkloadSpec, after: &WorkloadSpec) -> Vec<Difference> {
    let json =
        |spec: &WorkloadSpec| serde_json::to_value(spec.without_desired()).unwrap_or_default();
    let mut found = Vec::new();
    compare("", &json(before), &json(after), &mut found);
    found
}

fn compare(path: &str, before: &Value, after: &Value, found: &mut Vec<Difference>) {
    if before == after {
        return;
    }
    if let (Value::Object(before), Value::Object(after)) = (before, after) {
        let mut names: Vec<&String> = before.keys().chain(after.keys()).collect();
        names.sort();
        names.dedup();
        for name in names {
            let path = if path.is_empty() {
                name.clone()
            } else {
                format!("{path}.{name}")
            };
            let get = |side: &serde_json::Map<String, Value>| {
                side.get(name).cloned().unwrap_or(Value::Null)
            };
            compare(&path, &get(before), &get(after), found);
        }
        return;
    }
    found.push(Difference {
        path: path.to_owned(),
        from: before.clone(),
        to: after.clone(),
    });
}

fn short(value: &Value) -> String {
    let text = match value {
        Value::Null => "nothing".to_owned(),
        Value::String(text) => match text.parse::<wasmorch_api::Digest>() {
            Ok(digest) => digest.short().to_owned(),
            Err(_) => text.clone(),
        },
        other => other.to_string(),
    };
    if text.chars().count() > 60 {
        text.chars().take(57).chain("...".chars()).collect()
    } else {
        text
    }
}
