//! Values with a grammar of their own: `K=V`, `WORKLOAD=N`, `HOST::GUEST[:ro]`, `WORKLOAD[/REPLICA]`.

use std::path::PathBuf;
use std::str::FromStr;

use wasmorch_api::manifest::COUNT_MAX;
use wasmorch_api::{HumanDuration, Name, ReplicaId};

/// How many replicas.
pub(super) fn replicas(text: &str) -> Result<u32, String> {
    let count = text.parse().ok().filter(|count| *count <= COUNT_MAX);
    count.ok_or_else(|| format!("a number from 0 to {COUNT_MAX}"))
}

/// A number of something.
pub(super) fn number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| "a whole number, 0 or more".into())
}

/// The same, not as many.
pub(super) fn small_number(text: &str) -> Result<u32, String> {
    text.parse()
        .map_err(|_| format!("a whole number from 0 to {}", u32::MAX))
}

/// A length of time in which something can happen.
pub(super) fn some_time(text: &str) -> Result<HumanDuration, String> {
    let asked: HumanDuration = text.parse().map_err(|error| format!("{error}"))?;
    if asked.0.is_zero() {
        return Err("more than 0s: in no time nobody answers".into());
    }
    Ok(asked)
}

/// `K=V`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KeyValue {
    pub(crate) key: String,
    pub(crate) value: String,
}

impl FromStr for KeyValue {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok(Self {
                key: key.to_owned(),
                value: value.to_owned(),
            }),
            _ => Err("write it like KEY=VALUE".into()),
        }
    }
}

/// A workload, or a manifest that names several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    /// One workload.
    Workload(Name),
    /// All workloads of this file.
    Manifest(PathBuf),
}

impl FromStr for Target {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        // No name has a dot, so the two cannot be mixed up.
        if text.ends_with(".toml") {
            return Ok(Self::Manifest(text.into()));
        }
        text.parse()
            .map(Self::Workload)
            .map_err(|error: wasmorch_api::IdError| error.to_string())
    }
}

/// `WORKLOAD`, `WORKLOAD/REPLICA` or a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LogTarget {
    pub(crate) target: Target,
    pub(crate) replica: Option<ReplicaId>,
}

impl FromStr for LogTarget {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (target, replica) = match text.split_once('/') {
            Some((target, replica)) if !text.ends_with(".toml") => {
                let replica = replica
                    .parse()
                    .map_err(|e: wasmorch_api::IdError| e.to_string())?;
                (target, Some(replica))
            }
            _ => (text, None),
        };
        Ok(Self {
            target: target.parse()?,
            replica,
        })
    }
}

/// `WORKLOAD=N`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ScaleTo {
    pub(crate) name: Name,
    pub(crate) desired: u32,
}

impl FromStr for ScaleTo {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (name, count) = text.split_once('=').ok_or("write it like web=3")?;
        Ok(Self {
            name: name
                .parse()
                .map_err(|error: wasmorch_api::IdError| error.to_string())?,
            desired: replicas(count)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_read() {
        let pair: KeyValue = "A=b=c".parse().unwrap();
        assert_eq!((pair.key.as_str(), pair.value.as_str()), ("A", "b=c"));
        assert!("=b".parse::<KeyValue>().is_err());
        assert!("A".parse::<KeyValue>().is_err());

        assert_eq!("web=3".parse::<ScaleTo>().unwrap().desired, 3);
        assert!("web=three".parse::<ScaleTo>().is_err());
    }

    #[test]
    fn numbers_and_times_say_what_is_allowed() {
        assert_eq!(replicas("7"), Ok(7));
        for text in ["x", "", "1000001", "1.5"] {
            let error = replicas(text).unwrap_err();
            assert_eq!(error, "a number from 0 to 1000000", "{text}");
        }
        assert!(number("x").unwrap_err().contains("whole number"));
        assert!(small_number("4294967296").is_err());
        assert_eq!(some_time("1ms"), Ok(HumanDuration::millis(1)));
        assert!(some_time("0s").unwrap_err().contains("more than 0s"));
    }

    #[test]
    fn targets_are_names_or_manifests() {
        assert_eq!(
            "a/b.toml".parse::<Target>().unwrap(),
            Target::Manifest("a/b.toml".into())
        );
        assert!("a/b".parse::<Target>().is_err());
        let log: LogTarget = "web/2-7-1".parse().unwrap();
        assert_eq!(log.replica.unwrap().to_string(), "2-7-1");
        assert!("web/x".parse::<LogTarget>().is_err());
        assert_eq!("x/y.toml".parse::<LogTarget>().unwrap().replica, None);
    }
}
