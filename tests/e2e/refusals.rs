//! Bad input: each has its message and its exit code, and leaves everything as it was.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;
use wasmorch_tests::nats::Nats;
use wasmorch_tests::up::{Home, Up};
use wasmorch_tests::{guest, ports};

/// A component in text: imports and exports nothing that any host knows.
const NO_KNOWN_EXPORT: &[u8] = b"\0asm\x0d\0\x01\0";

#[test]
fn bad_bytes_and_names_leave_everything_as_it_was() {
    let up = Up::start(1);
    up.deploy("hello-http", "hello", &[]);
    let before = (up.ps(), up.status("hello"));
    let hello = guest("hello-http");
    let bytes = std::fs::read(&hello).expect("built");
    let hello = hello.to_str().expect("text").to_owned();
    let file = |name: &str, bytes: &[u8]| {
        up.home
            .write(name, bytes)
            .to_str()
            .expect("text")
            .to_owned()
    };
    let missing = up.home.path().join("none.wasm");

    up.run(&["deploy", missing.to_str().expect("text")])
        .refused(66, &["none.wasm"]);
    up.run(&["deploy", &file("page.wasm", b"<!doctype html>")])
        .refused(65, &["not WebAssembly"]);
    up.run(&["deploy", &file("empty.wasm", b"")])
        .refused(65, &["empty"]);
    let half = &bytes[..bytes.len() / 2];
    up.run(&["deploy", &file("half.wasm", half)])
        .refused(65, &["ends too early"]);
    up.run(&["deploy", &file("nothing.wasm", NO_KNOWN_EXPORT)])
        .refused(65, &["export"]);
    up.run(&["run", &file("nothing.wasm", NO_KNOWN_EXPORT)])
        .refused(65, &["export"]);
    up.run(&["deploy", &hello, "--name", "Not_A_Label"])
        .refused(64, &["DNS label"]);
    up.run(&["deploy", &hello, "--replicas", "-1"])
        .refused(64, &[]);
    let large = up.home.path().join("large.wasm");
    std::fs::File::create(&large)
        .and_then(|file| file.set_len(257 << 20))
        .expect("a sparse file needs no room");
    up.run(&["deploy", large.to_str().expect("text")])
        .refused(65, &["256"]);
    let fetcher = guest("fetcher-http");
    up.run(&["deploy", fetcher.to_str().expect("text")])
        .refused(77, &["wasi:http/outgoing-handler", "--grant http="]);
    up.run(&["status", "nobody"]).refused(66, &["nobody"]);
    up.run(&["scale", "nobody=2"]).refused(66, &["nobody"]);

    assert_eq!(up.ps(), before.0);
    let after = up.status("hello");
    assert_eq!(
        after["index"], before.1["index"],
        "the record was not touched"
    );
}

#[test]
fn a_manifest_shows_every_mistake_with_its_place() {
    let up = Up::start(1);
    let text = "\
[workload]
name = \"Web\"
component = \"none.wasm\"
replicsa = 2
resources = { memory = \"lots\" }
update = { max_surge = 0, max_unavailable = 0 }
";
    let file = up.home.write("bad.toml", text);
    let done = up.run(&["deploy", file.to_str().expect("text")]).refused(
        64,
        &[
            "bad.toml:2:8",
            "DNS label",
            "bad.toml:4:1",
            "replicas",
            "bad.toml:5:",
            "64MiB",
            "max_surge",
        ],
    );
    assert!(done.out.is_empty());
    assert_eq!(up.ps(), serde_json::json!([]));
}

#[test]
fn what_has_not_got_there_is_no_success_when_it_is_deployed_again() {
    let up = Up::start(1);
    let text = format!(
        "[workload]\nname = \"slow\"\ncomponent = \"{}\"\n\
         constraints = [{{ label = \"zone\", eq = \"nowhere\" }}]\n\
         update = {{ progress_deadline = \"3s\" }}\n",
        guest("hello-http").display()
    );
    let file = up.home.write("slow.toml", text);
    let file = file.to_str().expect("text");
    // The result is the last of the lines.
    let result = |out: &str| {
        let last = out.lines().last().expect("a line");
        serde_json::from_str::<Value>(last).expect("an object")
    };
    let detached = up.run(&["deploy", file, "--detach", "--json"]).ok();
    let detached = result(&detached.out);
    // Its rollout is under way: what changed nothing waits for it too.
    let done = up.run(&["deploy", file]).refused(1, &["unplaced"]);
    assert!(done.err.contains("unchanged"), "{}", done.err);
    // It has failed by now.
    let again = up.run(&["deploy", file, "--json"]);
    assert_eq!(again.code, 1, "{again:?}");
    let result = result(&again.out);
    assert_eq!(result["workloads"][0]["changed"], false);
    assert_eq!(result["workloads"][0]["succeeded"], false);
    assert!(result["index"].as_u64() >= detached["index"].as_u64());
    let status = up.run(&["rollout", "status", file]).ok();
    assert!(status.out.contains("failed"), "{}", status.out);
    assert!(up.run(&["why", file]).ok().out.contains("slow"));
}

#[test]
fn what_comes_later_says_not_yet() {
    let up = Up::start(1);
    let text = format!(
        "[workload]\nname = \"worker\"\ncomponent = \"{}\"\nscale = {{ min = 0, max = 1, target = {{ concurrency = 5 }} }}\n\
         bindings = {{ subscribe = [\"work.*\"] }}\n",
        guest("echo-messages").display()
    );
    let file = up.home.write("later.toml", text);
    let done = up.run(&["deploy", file.to_str().expect("text")]);
    assert_eq!(done.code, 64, "{done:?}");
    assert!(
        done.err.contains("not in this version") || done.err.contains("not yet"),
        "{}",
        done.err
    );
}

#[test]
fn a_port_in_use_and_a_locked_folder() {
    let up = Up::start(1);
    let taken = TcpListener::bind("127.0.0.1:0").expect("binds");
    let addr = taken.local_addr().expect("bound").to_string();
    let other = Home::new();
    other.run(&["up", "--http", &addr]).refused(73, &[&addr]);
    up.run(&["up", "--http", "127.0.0.1:0"])
        .refused(73, &["in use", "pid"]);
}

#[test]
fn a_server_that_is_not_there_too_old_or_without_jetstream() {
    let home = Home::new();
    home.run(&["ps"]).refused(69, &["wasmorch up"]);
    let nobody = format!("nats://127.0.0.1:{}", ports::free());
    home.run(&["--nats", &nobody, "ps"]).refused(69, &[&nobody]);
    home.run(&["--nats", &nobody, "controller"])
        .refused(69, &[&nobody]);

    let plain = Nats::without_jetstream(&home.path().join("plain"));
    home.run(&["--nats", &plain.url(), "controller"])
        .refused(69, &["JetStream"]);

    let old = TcpListener::bind("127.0.0.1:0").expect("binds");
    let url = format!("nats://{}", old.local_addr().expect("bound"));
    let over = AtomicBool::new(false);
    let done = std::thread::scope(|scope| {
        scope.spawn(|| answer_as_old_server(&old, &over));
        let done = home.run(&["--nats", &url, "controller"]);
        // Wakes the listener, which then sees that it is over.
        over.store(true, Ordering::SeqCst);
        drop(std::net::TcpStream::connect(
            old.local_addr().expect("bound"),
        ));
        done
    });
    done.refused(69, &["2.9.0", "2.12"]);
}

/// Greets as nats-server 2.9 does, and answers pings.
fn answer_as_old_server(listener: &TcpListener, over: &AtomicBool) {
    for stream in listener.incoming() {
        if over.load(Ordering::SeqCst) {
            return;
        }
        let Ok(mut stream) = stream else { return };
        let info = serde_json::json!({
            "server_id": "OLD", "version": "2.9.0", "go": "go1", "host": "127.0.0.1", "port": 4222,
            "headers": true, "max_payload": 1_048_576, "proto": 1, "jetstream": true, "server_name": "old",
        });
        if write!(stream, "INFO {info}\r\n").is_err() {
            continue;
        }
        let Ok(reader) = stream.try_clone() else {
            continue;
        };
        for line in BufReader::new(reader).lines() {
            match line.as_deref() {
                Ok("PING") => drop(stream.write_all(b"PONG\r\n")),
                Ok(_) => {}
                Err(_) => break,
            }
        }
    }
}

#[test]
fn usage_errors_exit_64_and_show_the_way() {
    let home = Home::new();
    home.run(&["dploy"]).refused(64, &["deploy"]);
    home.run(&["scale", "web"]).refused(64, &[]);
    home.run(&["--help"]).ok();
    for command in [
        "up",
        "host",
        "controller",
        "deploy",
        "ps",
        "status",
        "logs",
        "scale",
        "run",
        "inspect",
    ] {
        let help = home.run(&[command, "--help"]).ok().out;
        assert!(
            help.to_lowercase().contains("example"),
            "{command} --help has no example:\n{help}"
        );
    }
}

#[test]
fn json_lists_are_arrays_even_when_empty() {
    let up = Up::start(1);
    for list in [["ps", "--json"], ["events", "--json"]] {
        let done = up.run(&list).ok();
        let _: Value = serde_json::from_str(&done.out)
            .unwrap_or_else(|error| panic!("{list:?}: {error}\n{}", done.out));
    }
}
