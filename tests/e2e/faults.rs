//! Faults: killed, corrupted, interrupted, full.

use std::process::Command;

use rustix::process::Signal;
use wasmorch_tests::nats_client::Client;
use wasmorch_tests::process::{Done, Process, children};
use wasmorch_tests::up::Up;
use wasmorch_tests::{guest, wait_for};

/// The nats-server of this `up`, from the process table.
fn nats_of(up: &Up) -> Option<i32> {
    let mut children = children(up.process.as_ref()?.id()).into_iter();
    children.find(|id| {
        std::fs::read_to_string(format!("/proc/{id}/comm"))
            .is_ok_and(|name| name.contains("nats-server"))
    })
}

#[test]
fn a_killed_up_leaves_no_orphan_and_comes_back_with_everything() {
    let mut up = Up::start(2);
    up.deploy("hello-http", "hello", &["--replicas", "2"]);
    let nats = nats_of(&up).expect("up owns a nats-server");
    up.kill();
    wait_for("the nats-server to die with its parent", || {
        let state = std::fs::read_to_string(format!("/proc/{nats}/stat")).unwrap_or_default();
        (state.is_empty() || state.contains(") Z")).then_some(())
    });
    up.start_again();
    wait_for("the workload again", || {
        (up.ps()[0]["ready"] == 2 && up.get("hello", "/").status == 200).then_some(())
    });
}

#[test]
fn an_up_whose_last_ports_somebody_has_takes_others() {
    let mut up = Up::start(2);
    let ports = |up: &Up| -> (u16, u16) {
        let noted = std::fs::read(up.home.path().join("data/wasmorch/up/up.json"))
            .expect("`up` notes its ports");
        let noted: serde_json::Value = serde_json::from_slice(&noted).expect("they are JSON");
        let port = |value: &serde_json::Value| {
            u16::try_from(value.as_u64().expect("a number")).expect("a port")
        };
        (port(&noted["nats_port"]), port(&noted["http_ports"]["h2"]))
    };
    let first = ports(&up);
    let mut process = up.process.take().expect("it runs");
    process.signal(Signal::TERM);
    assert!(process.wait().success());
    // A test beside this one may have been faster: then it is somebody's too.
    let _taken =
        [first.0, first.1].map(|port| std::net::TcpListener::bind(("127.0.0.1", port)).ok());
    up.start_again();
    let second = ports(&up);
    assert_ne!(second.0, first.0);
    assert_ne!(second.1, first.1);
    up.deploy("hello-http", "hello", &["--replicas", "2"]);
    assert_eq!(up.get("hello", "/").status, 200);
}

#[test]
fn a_nats_server_that_dies_is_started_again() {
    let up = Up::start(1);
    up.deploy("hello-http", "hello", &[]);
    let nats = nats_of(&up).expect("up owns a nats-server");
    Done::run({
        let mut kill = Command::new("kill");
        kill.args(["-9", &nats.to_string()]);
        kill
    })
    .ok();
    wait_for("the cluster to answer again", || {
        let hello = guest("hello-http-v2");
        let done = up.run(&["deploy", hello.to_str().expect("text"), "--name", "second"]);
        (done.code == 0).then_some(())
    });
    assert_eq!(up.get("hello", "/").status, 200);
    assert_eq!(up.get("second", "/").body, "Hello from wasmorch, v2\n");
}

/// The files of a host's artifact cache.
fn cached(up: &Up) -> Vec<std::path::PathBuf> {
    let folder = up.home.path().join("data/wasmorch/up/h1/artifacts");
    std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|e| Some(e.ok()?.path()))
        .collect()
}

#[test]
fn corrupted_bytes_on_the_host_are_fetched_again() {
    let mut up = Up::start(1);
    up.deploy("hello-http", "hello", &[]);
    let files = cached(&up);
    assert_eq!(files.len(), 1, "{files:?}");
    let good = std::fs::read(&files[0]).expect("cached");
    let mut process = up.process.take().expect("runs");
    process.signal(Signal::TERM);
    process.wait();
    std::fs::write(&files[0], b"rubbish").expect("writable");
    up.start_again();
    wait_for("the workload again", || {
        (up.get("hello", "/").status == 200).then_some(())
    });
    assert_eq!(
        std::fs::read(&files[0]).expect("cached"),
        good,
        "fetched again"
    );
}

#[test]
fn corrupted_bytes_in_the_store_never_run() {
    let up = Up::start(1);
    up.deploy("hello-http", "hello", &[]);
    // As many bytes under the second version's digest, one of them wrong.
    let mut bytes = std::fs::read(guest("hello-http-v2")).expect("built");
    let digest = wasmorch_api::Digest::of(&bytes);
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    let nats = Client::connect(&up.nats_url());
    nats.put_object("wasmorch_artifacts", digest.as_str(), &bytes);
    let asked = serde_json::json!({"workloads": [{"name": "hello", "artifact": digest}]});
    let refused = nats.json("wasmorch.v1.api.default.deploy", &asked);
    assert!(refused["error"].to_string().contains("digest"), "{refused}");
    assert_eq!(
        up.get("hello", "/").body,
        "Hello from wasmorch, v1\n",
        "the old one serves"
    );
    assert_eq!(up.status("hello")["revision"], 1);
    // The command line sees that the object is not what its name says, and uploads it again.
    up.deploy("hello-http-v2", "hello", &[]);
    assert_eq!(up.get("hello", "/").body, "Hello from wasmorch, v2\n");
}

#[test]
fn a_deploy_interrupted_before_the_answer_leaves_nothing() {
    let up = Up::start(1);
    let nats = nats_of(&up).expect("up owns a nats-server");
    let signal = |name: &str| {
        let mut kill = Command::new("kill");
        kill.args([name, &nats.to_string()]);
        Done::run(kill).ok();
    };
    // While the server stands still, nothing can be acknowledged.
    let hello = guest("hello-http");
    signal("-STOP");
    let command = up.home.command(&["deploy", hello.to_str().expect("text")]);
    let mut deploy = Process::start(command, up.home.path(), "deploy");
    wait_for("the deploy to have begun", || {
        let sockets = std::fs::read_dir(format!("/proc/{}/fd", deploy.id())).ok()?;
        let connected = sockets.filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok());
        connected
            .into_iter()
            .any(|to| to.to_string_lossy().starts_with("socket:"))
            .then_some(())
    });
    deploy.signal(Signal::INT);
    assert_eq!(deploy.wait().code(), Some(130), "{}", deploy.stderr());
    signal("-CONT");
    wait_for("the cluster to answer", || {
        (up.run(&["ps"]).code == 0).then_some(())
    });
    assert_eq!(up.ps(), serde_json::json!([]));
}

#[test]
fn a_deploy_interrupted_after_the_answer_goes_on_and_says_how_to_abort() {
    let up = Up::start(1);
    // `crasher` is never ready: the rollout waits.
    let crasher = guest("crasher");
    let command = up
        .home
        .command(&["deploy", crasher.to_str().expect("text")]);
    let mut deploy = Process::start(command, up.home.path(), "deploy");
    wait_for("the revision to be stored", || {
        (up.ps()[0]["name"] == "crasher").then_some(())
    });
    wait_for("the deploy to say so", || {
        deploy.stderr().contains("revision").then_some(())
    });
    deploy.signal(Signal::INT);
    assert_eq!(deploy.wait().code(), Some(130), "{}", deploy.stderr());
    let said = deploy.stderr() + &deploy.stdout();
    assert!(said.contains("goes on") || said.contains("abort"), "{said}");
    assert_eq!(up.ps()[0]["name"], "crasher");
}

/// A host whose disk is full says so, runs nothing half fetched, and recovers.
#[test]
fn a_full_disk_is_named_and_survived() {
    let up = Up::start(1);
    up.run(&["cordon", "h1"]).ok();
    let data = up.home.path().join("small");
    std::fs::create_dir_all(&data).expect("writable");
    // A mount namespace of the test's own, with a disk too small for a component.
    let script = "mount -t tmpfs -o size=128k tmpfs \"$1\" && shift && exec \"$@\"";
    let mut command = Command::new("unshare");
    command
        .args([
            "--user",
            "--map-root-user",
            "--mount",
            "--kill-child",
            "sh",
            "-c",
            script,
            "sh",
        ])
        .arg(&data)
        .arg(wasmorch_tests::wasmorch())
        .args([
            "--nats",
            &up.nats_url(),
            "host",
            "--name",
            "small",
            "--http",
            "127.0.0.1:0",
            "--data",
        ])
        .arg(&data);
    let mut host = Process::start(command, up.home.path(), "small");
    wait_for("the small host to join", || {
        if let Some(status) = host.ended() {
            panic!("the host ended with {status}: {}", host.stderr());
        }
        up.run(&["hosts", "--json"])
            .ok()
            .out
            .contains("small")
            .then_some(())
    });
    // Larger than the disk: a valid component with a custom section of zeros at its end.
    let mut large = std::fs::read(guest("hello-http")).expect("built");
    let padding = 400 * 1024;
    large.push(0);
    large.extend(leb128(padding + 2));
    large.extend([1, b'x']);
    large.resize(large.len() + padding, 0);
    let large = up.home.write("large.wasm", large);
    let command = up.home.command(&["deploy", large.to_str().expect("text")]);
    let mut deploy = Process::start(command, up.home.path(), "deploy");
    wait_for("the reason", || {
        up.status_if_any("large")?
            .contains("disk full")
            .then_some(())
    });
    // Another host takes it.
    up.run(&["uncordon", "h1"]).ok();
    deploy.signal(Signal::INT);
    deploy.wait();
    host.kill();
    wait_for("the workload on the other host", || {
        (up.ps()[0]["ready"] == 1 && up.get("large", "/").status == 200).then_some(())
    });
}

pub(super) fn leb128(mut value: usize) -> Vec<u8> {
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
