//! Attacks by modules that no compiler would make, and by compiled code.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use tokio_util::sync::CancellationToken;
use wasmorch_api::Digest;
use wasmorch_runtime::{
    Artifact, Capture, CommandReplica, LoadError, Preopen, PrepareError, Runtime, RuntimeConfig,
    Stdio,
};

use super::handles::open_below;
use super::*;
use crate::support::runtime;

async fn load(text: &str) -> Result<Arc<Artifact>, LoadError> {
    let bytes = wat::parse_str(text).unwrap();
    runtime().load(&Digest::of(&bytes), bytes.into()).await
}

async fn corpus(name: &str) -> Arc<Artifact> {
    // Cargo runs tests in their package's folder.
    let path = format!("../workloads/hostile/wat/{name}.wat");
    load(&std::fs::read_to_string(path).unwrap()).await.unwrap()
}

fn with_memory(memory_bytes: u64, config: ReplicaConfig) -> ReplicaConfig {
    let limits = Limits {
        memory_bytes,
        ..config.limits
    };
    ReplicaConfig { limits, ..config }
}

async fn run(replica: Arc<CommandReplica>) -> Result<i32, Ended> {
    let output = Capture::new();
    let stdin = bytes::Bytes::new();
    let stdio = Stdio::Captured { stdin, output };
    replica.run(stdio, CancellationToken::new()).await
}

/// Runs a module of the corpus beside a neighbour, and looks that nothing is left.
async fn attack(name: &str, config: ReplicaConfig) -> Result<i32, Ended> {
    let account = config.account.clone();
    let artifact = corpus(name).await;
    let replica = CommandReplica::prepare(&runtime(), &artifact, config).unwrap();
    let ended = beside(run(Arc::new(replica))).await;
    for field in [Field::Memory, Field::Handles, Field::InFlight] {
        assert_eq!(account.own(field), 0, "{field:?}");
    }
    ended
}

#[tokio::test]
async fn a_start_function_that_never_returns_is_timed_out() {
    for name in ["start-spins", "start-spins-p1"] {
        assert_eq!(attack(name, config()).await, Err(timeout()), "{name}");
    }
}

/// What is meant to go on for ever has a limit for its start, and is not up before.
#[tokio::test]
async fn a_service_that_never_starts_is_timed_out() {
    for name in ["start-spins", "start-spins-p1"] {
        let artifact = corpus(name).await;
        let replica = CommandReplica::prepare(&runtime(), &artifact, config()).unwrap();
        let up = Arc::new(AtomicBool::new(false));
        let told = up.clone();
        let serving = async move {
            let stdin = bytes::Bytes::new();
            let told = || told.store(true, SeqCst);
            let stop = CancellationToken::new();
            replica.serve(Stdio::Logs { stdin }, stop, told).await
        };
        assert_eq!(beside(serving).await, Err(timeout()), "{name}");
        assert!(!up.load(SeqCst), "{name}");
    }
}

#[tokio::test]
async fn a_table_that_is_too_large_is_named() {
    let text = "(module (table $t 1 funcref) (func (export \"_start\")
        (if (i32.eq (table.grow $t (ref.null func) (i32.const 70000)) (i32.const -1))
            (then unreachable))))";
    let artifact = load(text).await.unwrap();
    let replica = CommandReplica::prepare(&runtime(), &artifact, config()).unwrap();
    let ended = run(Arc::new(replica)).await;
    let limit = Ended::TableLimit {
        limit: 65536,
        wanted: 70001,
    };
    assert_eq!(ended, Err(limit));
}

#[tokio::test]
async fn huge_tables_count_as_memory() {
    assert_memory(&attack("tables", with_memory(32 << 20, patient())).await);
}

#[tokio::test]
async fn resources_of_its_own_have_an_end() {
    assert_handles(&attack("resources", patient()).await);
}

#[tokio::test]
async fn what_is_collected_counts_as_memory() {
    assert_memory(&attack("garbage", with_memory(16 << 20, patient())).await);
}

#[tokio::test]
async fn files_of_a_core_module_have_an_end() {
    let folder = tempfile::tempdir().unwrap();
    let preopens = vec![Preopen {
        host: folder.path().to_owned(),
        guest: "/data".into(),
        read_only: false,
        limit_bytes: None,
    }];
    let config = ReplicaConfig {
        preopens,
        ..patient()
    };
    assert_open(&attack("files-p1", config).await);
    eventually("files are closed", || open_below(folder.path()) == 0).await;
}

/// Empty memories cost nothing and are places in the pool: the half of it stays for others.
#[tokio::test]
async fn nobody_takes_the_whole_pool() {
    let artifact = corpus("memories").await;
    let replica = CommandReplica::prepare(&runtime(), &artifact, config()).unwrap();
    let replica = Arc::new(replica);
    let all: Vec<_> = (0..10)
        .map(|_| tokio::spawn(run(replica.clone())))
        .collect();
    let started = replica.clone();
    eventually("they run", || started.usage().in_flight > 0).await;
    beside(async move {
        for one in all {
            let ended = one.await.unwrap();
            let is_waiting = matches!(ended, Err(Ended::Busy { .. }));
            assert!(is_waiting || ended == Err(timeout()), "{ended:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn more_memory_from_the_start_than_it_may_have_is_refused() {
    let artifact =
        load("(component (core module $m (memory 60000)) (core instance (instantiate $m)))");
    let artifact = artifact.await.unwrap();
    let refused = CommandReplica::prepare(&runtime(), &artifact, config()).err();
    assert!(
        matches!(refused, Some(PrepareError::Memory { .. })),
        "{refused:?}"
    );
}

/// One function that takes the compiler long: it does so beside those that answer.
#[tokio::test]
async fn a_function_that_takes_long_to_compile_holds_up_nobody() {
    let mut body = String::new();
    for number in 0..40_000_u32 {
        let _ = write!(
            body,
            "(local.set {} (i32.mul (i32.add (local.get {}) (local.get {})) (i32.const {number})))",
            number % 97,
            (number * 7) % 97,
            (number * 13) % 97,
        );
    }
    let locals = "i32 ".repeat(97);
    let text = format!(
        "(module (memory (export \"memory\") 1) (func (export \"_start\") (local {locals}) {body}))"
    );
    beside(async move { load(&text).await.map(drop) })
        .await
        .unwrap();
}

#[tokio::test]
async fn deep_nesting_is_refused_or_run_and_no_crash() {
    for depth in [1_000, 100_000] {
        // As bytes: the parser of the text would give up first.
        let mut body = vec![0];
        body.extend([0x02, 0x40].repeat(depth));
        body.extend([0x0b].repeat(depth + 1));
        let bytes = module_with(&body);
        let loaded = runtime().load(&Digest::of(&bytes), bytes.into()).await;
        assert!(matches!(loaded, Ok(_) | Err(LoadError::Invalid(_))));
    }
}

/// A module of one function with this body.
fn module_with(body: &[u8]) -> Vec<u8> {
    fn section(id: u8, content: &[u8]) -> Vec<u8> {
        [&[id][..], &leb(content.len()), content].concat()
    }
    fn leb(mut value: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        loop {
            let low = (value & 0x7f) as u8;
            value >>= 7;
            if value == 0 {
                bytes.push(low);
                return bytes;
            }
            bytes.push(low | 0x80);
        }
    }
    let code = [&[1][..], &leb(body.len()), body].concat();
    let sections = [
        section(1, &[1, 0x60, 0, 0]),
        section(3, &[1, 0]),
        section(10, &code),
    ];
    [b"\0asm\x01\0\0\0".to_vec(), sections.concat()].concat()
}

/// Whoever can write into the folder of compiled code has no key: it is never mapped.
#[tokio::test]
async fn compiled_code_that_somebody_else_has_made_is_not_run() {
    let folder = tempfile::tempdir().unwrap();
    let caching = || {
        let compiled_dir = Some(folder.path().to_owned());
        Runtime::new(RuntimeConfig {
            compiled_dir,
            pooling: false,
            ..RuntimeConfig::default()
        })
        .unwrap()
    };
    let text = "(module (memory (export \"memory\") 1) (func (export \"_start\")))";
    let bytes: bytes::Bytes = wat::parse_str(text).unwrap().into();
    let digest = Digest::of(&bytes);
    caching().load(&digest, bytes.clone()).await.unwrap();
    let mut folders = vec![folder.path().to_owned()];
    let mut planted = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.extension().and_then(|extension| extension.to_str()) {
                _ if path.is_dir() => folders.push(path),
                Some("cwasm") => {
                    let forged = [b"\x7fELF".to_vec(), vec![0xcc; 100_000]].concat();
                    std::fs::write(path, forged).unwrap();
                    planted += 1;
                }
                Some("mac") => std::fs::write(path, [0; 32]).unwrap(),
                _ => {}
            }
        }
    }
    assert_eq!(planted, 1);
    let runtime = caching();
    assert!(runtime.load_cached(&digest).await.unwrap().is_none());
    assert!(!runtime.load(&digest, bytes).await.unwrap().from_cache());
}
