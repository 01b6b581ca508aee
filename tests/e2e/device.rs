//! A host without a compiler: it runs what its operator compiled elsewhere and gave to it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use wasmorch_tests::daemons::{Daemons, says_hello};
use wasmorch_tests::process::Process;
use wasmorch_tests::up::Home;
use wasmorch_tests::{guest, wait_for, wasmorch_device};

#[test]
fn a_host_without_a_compiler_runs_what_it_was_given() {
    let mut daemons = Daemons::start(1, 0);
    daemons.host_program = wasmorch_device();
    let given = daemons.home.path().join("given");
    let given = given.to_str().expect("text");
    fs::create_dir(given).expect("a folder");
    fs::set_permissions(given, fs::Permissions::from_mode(0o755)).expect("its mode");
    daemons.start_host_with(0, &["--compiled", given]);
    daemons.wait_for_hosts(1);
    let hello = guest("hello-http");
    let hello = hello.to_str().expect("text");

    daemons
        .run(&["deploy", hello, "--name", "hello", "--detach"])
        .ok();
    wait_for("what is missing to be said, and what makes it", || {
        let why = daemons.run(&["why", "hello"]).out;
        (why.contains("no compiler") && why.contains("wasmorch compile --target")).then_some(())
    });

    let made = daemons
        .run(&["compile", "--out", given, hello, "--json"])
        .ok()
        .json();
    assert_eq!(made[0]["file"], hello, "{made}");
    let gateways = daemons.gateways();
    wait_for("the replica to be tried again, with what it lacked", || {
        says_hello(&gateways[0], "hello").then_some(())
    });

    // What was taken is the host's own now.
    fs::remove_dir_all(given).expect("the folder goes");
    fs::create_dir(given).expect("a folder");
    fs::set_permissions(given, fs::Permissions::from_mode(0o755)).expect("its mode");
    daemons.hosts[0].take().expect("it runs").kill();
    daemons.start_host_with(0, &["--compiled", given]);
    wait_for("the host to serve again", || {
        says_hello(daemons.gateways().first()?, "hello").then_some(())
    });
}

#[test]
fn a_folder_of_compiled_code_that_others_may_write_is_refused() {
    let home = Home::new();
    let given = home.path().join("given");
    fs::create_dir(&given).expect("a folder");
    fs::set_permissions(&given, fs::Permissions::from_mode(0o777)).expect("its mode");
    let given = given.to_str().expect("text");
    let host = |folder: &str| {
        let args = ["--nats", "nats://127.0.0.1:1", "host", "--compiled", folder];
        let mut host = Process::start(home.command(&args), home.path(), "host");
        (host.wait().code(), host.stderr())
    };
    let (code, said) = host(given);
    assert_eq!(code, Some(64), "{said}");
    assert!(said.contains("chmod go-w"), "{said}");
    let (code, said) = host(&format!("{given}/nothing"));
    assert_eq!(code, Some(64), "{said}");
    assert!(said.contains("cannot be read"), "{said}");
}
