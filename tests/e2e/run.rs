//! `wasmorch run` and `inspect`: one component, here and now, no cluster.

use std::fs::Metadata;
use std::io::{Read as _, Write};
use std::net::TcpStream;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Stdio;

use rustix::process::Signal;
use wasmorch_tests::process::Process;
use wasmorch_tests::up::Home;
use wasmorch_tests::{guest, http, wait_for};

fn text(path: std::path::PathBuf) -> String {
    path.to_str().expect("text").to_owned()
}

#[test]
fn arguments_environment_and_exit_code_reach_the_guest_and_back() {
    let home = Home::new();
    let p3 = text(guest("command-p3"));
    let done = home
        .run(&["run", "--env", "GREETING=hi", &p3, "--", "one", "two"])
        .ok();
    assert!(
        done.out.contains("one") && done.out.contains("two"),
        "{}",
        done.out
    );
    let failed = home.run(&["run", &p3, "--", "fail"]);
    assert!(failed.code != 0 && failed.code < 64, "{failed:?}");
}

/// The files of compiled code below a folder.
fn code_below(folder: &Path) -> Vec<Metadata> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let found = entries.map(|entry| match entry.path() {
        path if path.is_dir() => code_below(&path),
        path if path.extension().is_some_and(|kind| kind == "cwasm") => {
            vec![entry.metadata().expect("it is there")]
        }
        _ => Vec::new(),
    });
    found.flatten().collect()
}

#[test]
fn compiled_code_is_kept_for_the_next_time() {
    let home = Home::new();
    let (p3, cache) = (text(guest("command-p3")), home.path().join("cache"));
    home.run(&["run", "--no-cache", &p3, "--", "one"]).ok();
    assert!(code_below(&cache).is_empty(), "it was told not to");
    home.run(&["run", &p3, "--", "one"]).ok();
    let [first] = &code_below(&cache)[..] else {
        panic!("one file with code")
    };
    home.run(&["run", &p3, "--", "one"]).ok();
    let [again] = &code_below(&cache)[..] else {
        panic!("the same file")
    };
    assert_eq!(again.ino(), first.ino(), "not written again");
    let used = |code: &Metadata| code.modified().expect("a time");
    assert!(used(again) > used(first), "but used");
}

#[test]
fn directories_are_seen_only_when_given() {
    let home = Home::new();
    home.write("poem.txt", "one two\nthree\n");
    let folder = format!("{}::/d", home.path().display());
    for sample in ["wordcount", "wordcount-p1"] {
        let wasm = text(guest(sample));
        let done = home
            .run(&["run", "--dir", &folder, &wasm, "--", "/d/poem.txt"])
            .ok();
        assert!(
            done.out.contains('2') && done.out.contains('3') && done.out.contains("14"),
            "{}",
            done.out
        );
        let blind = home.run(&["run", &wasm, "--", "/d/poem.txt"]);
        assert_ne!(blind.code, 0, "{blind:?}");
    }
}

#[test]
fn standard_input_is_read() {
    let home = Home::new();
    let mut child = home
        .command(&["run", &text(guest("wordcount"))])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("starts");
    child
        .stdin
        .take()
        .expect("piped")
        .write_all(b"a b c\n")
        .expect("writes");
    let done = child.wait_with_output().expect("ends");
    assert!(done.status.success());
    let out = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(out.contains('3') && out.contains('6'), "{out}");
}

#[test]
fn time_out_trap_and_memory_limit_have_codes_of_their_own() {
    let home = Home::new();
    let ticker = text(guest("ticker"));
    home.run(&["run", "--timeout", "300ms", &ticker])
        .refused(124, &["300ms"]);
    home.run(&["run", &text(guest("crasher-start"))])
        .refused(134, &["unreachable"]);
    home.run(&["run", "--memory", "64KiB", &text(guest("wordcount"))])
        .refused(137, &["64KiB", "--memory"]);
}

#[test]
fn an_http_component_is_served() {
    let home = Home::new();
    let command = home.command(&["run", "--http", "127.0.0.1:0", &text(guest("hello-http"))]);
    let mut process = Process::start(command, home.path(), "run");
    let url = wait_for("the URL on the first line", || {
        let out = process.stdout();
        out.contains('\n')
            .then(|| out.lines().next().unwrap_or_default().to_owned())
    });
    let addr = url
        .trim_start_matches("http://")
        .trim_end_matches('/')
        .to_owned();
    let answer = http::get(&addr, "anything", "/").expect("answers");
    assert_eq!(answer.body, "Hello from wasmorch, v1\n");
    // A guest of 0.2 cannot be called without a host.
    let mut client = TcpStream::connect(&addr).expect("it listens");
    client.write_all(b"GET / HTTP/1.0\r\n\r\n").expect("sent");
    let mut answer = String::new();
    client.read_to_string(&mut answer).expect("answered");
    assert!(answer.starts_with("HTTP/1.0 400 "), "{answer}");
    process.signal(Signal::INT);
    assert_eq!(process.wait().code(), Some(0));
}

#[test]
fn inspect_tells_kind_imports_exports_and_grants() {
    let home = Home::new();
    let told = home
        .run(&["inspect", &text(guest("fetcher-http")), "--json"])
        .ok()
        .json();
    assert_eq!(told["kind"], "http");
    let all = told.to_string();
    assert!(
        all.contains("wasi:http/outgoing-handler") && all.contains("http="),
        "{all}"
    );
    let plain = home.run(&["inspect", &text(guest("hello-http"))]).ok().out;
    assert!(plain.contains("wasi:http/incoming-handler"), "{plain}");
    assert!(
        plain.lines().all(|line| line.chars().count() <= 80),
        "fits 80 columns:\n{plain}"
    );
}
