//! Programs: 0.2, 0.3 and preview 1; arguments, environment, input, files, exit codes, stopping.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio_util::sync::CancellationToken;
use wasmorch_runtime::{
    Capture, CommandReplica, Ended, Limits, Preopen, ReplicaConfig, Shape, Stdio,
};

use crate::support::{Lines, artifact, eventually, runtime};

const TEXT: &str = "one two\nthree\n";
const COUNTED: &str = "2 lines, 3 words, 14 bytes\n";

struct Done {
    code: i32,
    stdout: String,
    stderr: String,
}

async fn command(name: &str, args: &[&str], config: ReplicaConfig) -> CommandReplica {
    let args = std::iter::once(name)
        .chain(args.iter().copied())
        .map(str::to_owned)
        .collect();
    let config = ReplicaConfig { args, ..config };
    CommandReplica::prepare(&runtime(), &artifact(name).await, config).unwrap()
}

async fn run(name: &str, args: &[&str], config: ReplicaConfig, stdin: &str) -> Result<Done, Ended> {
    let replica = command(name, args, config).await;
    let output = Capture::new();
    let stdin = Bytes::from(stdin.to_owned());
    let stdio = Stdio::Captured {
        stdin,
        output: output.clone(),
    };
    let code = replica.run(stdio, CancellationToken::new()).await?;
    let text = |bytes: Bytes| String::from_utf8(bytes.to_vec()).unwrap();
    Ok(Done {
        code,
        stdout: text(output.stdout()),
        stderr: text(output.stderr()),
    })
}

fn config() -> ReplicaConfig {
    ReplicaConfig::new("test")
}

#[tokio::test]
async fn a_component_and_a_core_module_read_their_input() {
    assert_eq!(artifact("wordcount-p1").await.shape(), Shape::CoreModule);
    for name in ["wordcount", "wordcount-p1"] {
        let done = run(name, &[], config(), TEXT).await.unwrap();
        assert_eq!((done.code, done.stdout.as_str()), (0, COUNTED), "{name}");
    }
}

#[tokio::test]
async fn files_are_seen_only_where_they_are_given() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("text"), TEXT).unwrap();
    let preopen = Preopen {
        host: dir.path().to_owned(),
        guest: "/data".to_owned(),
        read_only: true,
        limit_bytes: None,
    };
    for name in ["wordcount", "wordcount-p1"] {
        let given = ReplicaConfig {
            preopens: vec![preopen.clone()],
            ..config()
        };
        let done = run(name, &["/data/text"], given.clone(), "").await.unwrap();
        assert_eq!((done.code, done.stdout.as_str()), (0, COUNTED), "{name}");
        let done = run(name, &["/data/../text"], given, "").await.unwrap();
        assert_eq!(done.code, 1, "{name}");
        let done = run(name, &["/data/text"], config(), "").await.unwrap();
        assert_eq!(done.code, 1, "{name}");
        assert!(done.stderr.contains("/data/text"), "{}", done.stderr);
    }
}

#[tokio::test]
async fn a_p3_command_has_arguments_environment_input_and_exit_code() {
    let env = vec![("GREETING".to_owned(), "hi".to_owned())];
    let config = ReplicaConfig { env, ..config() };
    let done = run("command-p3", &["a", "b"], config.clone(), "")
        .await
        .unwrap();
    assert_eq!(
        (done.code, done.stdout.as_str()),
        (0, "args: a b\nGREETING: hi\n")
    );
    let done = run("command-p3", &["cat"], config.clone(), TEXT)
        .await
        .unwrap();
    assert_eq!((done.code, done.stdout.as_str()), (0, TEXT));
    let done = run("command-p3", &["fail"], config, "").await.unwrap();
    assert_eq!(done.code, 1);
}

#[tokio::test]
async fn a_crash_at_the_start_keeps_what_was_said() {
    let lines = Arc::new(Lines::default());
    let replica = command(
        "crasher-start",
        &[],
        ReplicaConfig {
            logs: lines.clone(),
            ..config()
        },
    )
    .await;
    let stdio = Stdio::Logs {
        stdin: Bytes::new(),
    };
    let ended = replica
        .run(stdio, CancellationToken::new())
        .await
        .unwrap_err();
    assert!(matches!(ended, Ended::Trap { .. }), "{ended:?}");
    assert_eq!(lines.texts(), ["about to crash"]);
    assert_eq!(replica.usage().failed_total, 1);
}

#[tokio::test]
async fn a_service_runs_until_it_is_stopped() {
    let lines = Arc::new(Lines::default());
    // For its start alone.
    let limits = Limits {
        timeout: Some(Duration::from_millis(300)),
        ..Limits::default()
    };
    let config = ReplicaConfig {
        logs: lines.clone(),
        limits,
        ..config()
    };
    let replica = Arc::new(command("ticker", &["10"], config).await);
    let stop = CancellationToken::new();
    let up = Arc::new(AtomicBool::new(false));
    let running = tokio::spawn({
        let (replica, stop, up) = (replica.clone(), stop.clone(), up.clone());
        let stdin = Bytes::new();
        async move {
            let told = || up.store(true, SeqCst);
            replica.serve(Stdio::Logs { stdin }, stop, told).await
        }
    });
    let began = Instant::now();
    eventually("it ticks", || lines.all().len() >= 3).await;
    assert!(up.load(SeqCst));
    eventually("its start is long ago", || {
        began.elapsed() > Duration::from_millis(600)
    })
    .await;
    assert_eq!(lines.texts()[..2], ["tick 1", "tick 2"]);
    assert_eq!(replica.usage().in_flight, 1);
    stop.cancel();
    assert_eq!(running.await.unwrap(), Err(Ended::Stopped));
    assert_eq!(
        (replica.usage().memory_bytes, replica.usage().in_flight),
        (0, 0)
    );
}

#[tokio::test]
async fn a_run_has_a_time_limit() {
    let limit = Duration::from_millis(50);
    let limits = Limits {
        timeout: Some(limit),
        ..Limits::default()
    };
    let ended = run("ticker", &[], ReplicaConfig { limits, ..config() }, "")
        .await
        .err()
        .unwrap();
    assert_eq!(
        ended,
        Ended::Timeout {
            limit,
            throttled: Duration::ZERO
        }
    );
}
