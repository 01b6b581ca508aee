//! Every kind that must run, and the limits that hold beside them.

use std::time::{Duration, Instant};

use wasmorch_tests::nats_client::Client;
use wasmorch_tests::up::Up;
use wasmorch_tests::{guest, http, wait_for};

#[test]
fn a_wasi_03_component_answers() {
    let up = Up::start(1);
    up.deploy("hello-http-p3", "p3", &[]);
    assert_eq!(up.get("p3", "/").body, "Hello from wasmorch, p3\n");
    let gateway = up.gateways().remove(0);
    let echoed = http::request(
        &gateway,
        "POST",
        "p3.default.localhost",
        "/echo",
        b"to and fro",
    );
    assert_eq!(echoed.expect("answers").body, "to and fro");
}

#[test]
fn an_instance_serves_again_when_the_manifest_says_so() {
    let up = Up::start(1);
    let manifest = format!(
        "[workload]\nname = \"again\"\ncomponent = \"{}\"\n\
         instance = {{ reuse = 1000, concurrency = 16, idle = \"1m\" }}\n\
         [workload.bindings]\nhttp = [\"nowhere.example\"]\n\
         [workload.health]\nready = {{ path = \"/ok\" }}\n",
        guest("hostile-p3").display()
    );
    let file = up.home.write("again.toml", manifest);
    up.run(&["deploy", file.to_str().expect("text")]).ok();
    // Each runner has instances of its own, and each probe is a request.
    wait_for("one instance has served five requests", || {
        let seen: u64 = up.get("again", "/count").body.parse().expect("a number");
        (seen >= 5).then_some(())
    });
    wait_for("the memory of what waits is shown", || {
        let held = &up.status("again")["replicas"][0]["memory_bytes"];
        held.as_u64().filter(|held| *held > 0)
    });
}

#[test]
fn a_messages_component_answers_a_subject() {
    let up = Up::start(1);
    up.deploy(
        "echo-messages",
        "echo",
        &["--grant", "subscribe=ask.*", "--replicas", "2"],
    );
    let nats = Client::connect(&up.nats_url());
    assert_eq!(nats.request("ask.one", b"hello"), b"echo: hello");
    // A guest that traps loses its message, not its replica.
    nats.publish("ask.one", b"trap");
    for _ in 0..5 {
        assert_eq!(nats.request("ask.two", b"again"), b"echo: again");
    }
}

#[test]
fn a_service_runs_and_its_lines_can_be_followed() {
    let up = Up::start(1);
    up.deploy("ticker", "tick", &["--", "50"]);
    assert_eq!(up.ps()[0]["kind"], "service");
    wait_for("ticks in the log", || {
        up.run(&["logs", "tick"])
            .ok()
            .out
            .contains("tick 3")
            .then_some(())
    });
}

#[test]
fn jobs_of_every_shape_complete_or_fail_with_a_reason() {
    let up = Up::start(1);
    for sample in ["command-p3", "wordcount", "wordcount-p1"] {
        up.deploy(sample, sample, &["--job"]);
        assert_eq!(up.status(sample)["state"], "completed", "{sample}");
    }
    let path = guest("command-p3");
    let path = path.to_str().expect("text");
    up.run(&["deploy", path, "--name", "fails", "--job", "--", "fail"])
        .refused(1, &["exit"]);
    assert_eq!(up.status("fails")["state"], "failed");
    // The same again is no success: it is not run once more by a deploy.
    up.run(&["deploy", path, "--name", "fails", "--job", "--", "fail"])
        .refused(1, &["unchanged", "exit code", "wasmorch start fails"]);
    // A job runs once more when it is started.
    up.run(&["start", "wordcount"]).ok();
    wait_for("the second run", || {
        (up.status("wordcount")["state"] == "completed").then_some(())
    });
}

#[test]
fn a_service_that_traps_fails_with_its_reason() {
    let up = Up::start(1);
    let path = guest("crasher-start");
    let done = up.run(&["deploy", path.to_str().expect("text"), "--name", "crasher"]);
    done.refused(1, &["unreachable"]);
    assert_eq!(up.status("crasher")["state"], "failed");
    let logs = up.run(&["logs", "crasher"]).ok().out;
    assert!(!logs.is_empty(), "what it printed before is kept");
}

/// Components that another toolchain built (tests/data/README.md) deploy unchanged.
#[test]
fn components_of_another_toolchain_run() {
    let up = Up::start(1);
    for name in ["foreign-c-module", "foreign-c-command"] {
        // Cargo runs tests in their package's folder.
        let path = std::path::absolute(format!("data/{name}.wasm")).expect("a folder to be in");
        let path = path.to_str().expect("the checkout's path is text");
        up.run(&["deploy", path, "--job", "--", "--text", "hello"])
            .ok();
        assert_eq!(up.status(name)["state"], "completed", "{name}");
        wait_for("its line in the log", || {
            up.run(&["logs", name])
                .ok()
                .out
                .contains("3610a686")
                .then_some(())
        });
    }
}

/// The middle of several timings of `/`.
fn median_ms(up: &Up, gateway: &str, count: usize) -> Duration {
    let mut times: Vec<Duration> = (0..count)
        .map(|_| {
            let began = Instant::now();
            let answer = http::get(gateway, "hello.default.localhost", "/").expect("answers");
            assert_eq!(answer.status, 200, "{answer:?} {}", up.process.is_some());
            began.elapsed()
        })
        .collect();
    times.sort();
    times[count / 2]
}

#[test]
fn hungry_and_spinner_end_and_their_neighbour_keeps_answering() {
    let up = Up::start(1);
    up.deploy("hello-http", "hello", &[]);
    let ok =
        "[workload.health]\nready = { path = \"/ok\" }\n[workload.resources]\ntimeout = \"1s\"\n";
    for sample in ["hungry", "spinner", "crasher"] {
        let component = guest(sample);
        let text = format!(
            "[workload]\nname = \"{sample}\"\ncomponent = \"{}\"\n{ok}",
            component.display()
        );
        let file = up.home.write(&format!("{sample}.toml"), text);
        up.run(&["deploy", file.to_str().expect("text")]).ok();
    }
    let gateway = up.gateways().remove(0);
    let spins = std::thread::scope(|scope| {
        let spinners: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| http::get(&gateway, "spinner.default.localhost", "/")))
            .collect();
        let answered = median_ms(&up, &gateway, 20);
        // Not a measurement: a neighbour that waits for a spinner waits for its whole second.
        assert!(answered < Duration::from_millis(900), "{answered:?}");
        spinners
            .into_iter()
            .map(|one| one.join().expect("joins"))
            .collect::<Vec<_>>()
    });
    for answer in spins {
        let answer = answer.expect("answers");
        assert_eq!(answer.status, 504, "{answer:?}");
        assert!(answer.body.contains("1s"), "says which limit: {answer:?}");
    }
    let hungry = up.get("hungry", "/");
    assert_eq!(hungry.status, 502, "{hungry:?}");
    assert!(
        hungry.body.contains("memory") && hungry.body.contains("64"),
        "{hungry:?}"
    );
    let crasher = up.get("crasher", "/");
    assert_eq!(crasher.status, 502, "{crasher:?}");
    assert_eq!(up.get("hello", "/").status, 200);
}
