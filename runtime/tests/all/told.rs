//! `wasi:config` and `wasi:logging`: what a guest is told, and what it says.

use std::sync::Arc;

use wasmorch_runtime::{LogLevel, LogStream, ReplicaConfig, RequestId};

use crate::support::{Lines, fetch, get, http};

#[tokio::test]
async fn a_guest_is_told_its_own_configuration_and_nothing_else() {
    let config = [("colour", "blue"), ("empty", "")];
    let config = config.map(|(key, value)| (key.to_owned(), value.to_owned()));
    let env = vec![("SECRET".to_owned(), "not in the configuration".to_owned())];
    let told = ReplicaConfig {
        config: config.to_vec(),
        env,
        ..ReplicaConfig::new("test")
    };
    let replica = http("keeper-http", told).await;
    let ask = async |path| fetch(&replica, path).await.unwrap();
    assert_eq!(ask("/config?/colour").await, (200, "blue".into()));
    assert_eq!(ask("/config?/empty").await, (200, String::new()));
    for absent in ["/config?/SECRET", "/config?/Colour"] {
        assert_eq!(ask(absent).await.0, 404, "{absent}");
    }
    let all = ask("/config").await.1;
    let mut all: Vec<&str> = all.lines().collect();
    all.sort_unstable();
    assert_eq!(all, ["colour=blue", "empty="]);

    let untold = http("keeper-http", ReplicaConfig::new("test")).await;
    assert_eq!(fetch(&untold, "/config").await.unwrap(), (200, "".into()));
}

#[tokio::test]
async fn what_a_guest_says_has_its_level_and_the_name_of_its_request() {
    let lines = Arc::new(Lines::default());
    let config = ReplicaConfig {
        logs: lines.clone(),
        ..ReplicaConfig::new("test")
    };
    let replica = http("keeper-http", config).await;
    let levels = [
        ("trace", LogLevel::Trace),
        ("debug", LogLevel::Debug),
        ("info", LogLevel::Info),
        ("warn", LogLevel::Warn),
        ("error", LogLevel::Error),
        ("critical", LogLevel::Critical),
    ];
    for (word, _) in levels {
        let mut request = get(&format!("/log?{word}/it%20is%20{word}"));
        request.extensions_mut().insert(RequestId(word.into()));
        assert_eq!(replica.handle(request).await.unwrap().status(), 200);
    }
    let said = lines.all();
    assert_eq!(said.len(), levels.len());
    for (line, (word, level)) in said.iter().zip(levels) {
        assert_eq!(line.stream, LogStream::Wasi(level));
        assert_eq!(line.request_id.as_deref(), Some(word));
        assert!(line.text.contains(&format!("it is {word}")), "{line:?}");
        assert!(line.text.contains("keeper"), "its context: {line:?}");
    }
    let asked = fetch(&replica, "/warn?/unversioned").await.unwrap();
    assert_eq!(asked.0, 200);
    let last = lines.all().pop().unwrap();
    assert_eq!(last.stream, LogStream::Wasi(LogLevel::Warn));
    assert_eq!(last.text, "keeper: unversioned");
    // Without a name each has one of its own.
    for _ in 0..2 {
        fetch(&replica, "/log?info/again").await.unwrap();
    }
    let said = lines.all();
    let names: Vec<_> = said[levels.len() + 1..]
        .iter()
        .map(|line| line.request_id.clone())
        .collect();
    assert!(
        names.iter().all(Option::is_some) && names[0] != names[1],
        "{names:?}"
    );
}
