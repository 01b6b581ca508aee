//! `wasmorch run` and `inspect`: one component, here and now, no cluster.

use std::io::Write;
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
