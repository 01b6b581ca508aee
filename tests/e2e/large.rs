//! A component of tens of megabytes, as those that bring an interpreter along.

use rustix::process::Signal;
use wasmorch_tests::process::Process;
use wasmorch_tests::up::Up;
use wasmorch_tests::{guest, http, wait_for};

use super::faults::leb128;

/// What its memory begins with: more than `16MiB`, less than the default limit.
const DATA_BYTES: usize = 24 << 20;
/// A page of memory.
const PAGE_BYTES: usize = 64 << 10;
const FUNCTIONS: usize = 2000;
/// Operations of each function, times three.
const ROUNDS: usize = 60;

fn section(id: u8, content: &[u8]) -> Vec<u8> {
    [&[id][..], &leb128(content.len()), content].concat()
}

/// From x: of x times a number, one for each round, the exclusive or.
fn function(number: usize) -> Vec<u8> {
    let mut body = vec![0x00, 0x20, 0x00];
    for round in 0..ROUNDS {
        let factor = ((number + 7 * round) % 60) as u8 + 2;
        body.extend([0x20, 0x00, 0x41, factor, 0x6c, 0x73]);
    }
    body.push(0x0b);
    [leb128(body.len()), body].concat()
}

/// A core module with much code and much data, none of them alike.
fn module() -> Vec<u8> {
    let mut functions = leb128(FUNCTIONS);
    functions.extend([0].repeat(FUNCTIONS));
    let mut code = leb128(FUNCTIONS);
    (0..FUNCTIONS).for_each(|number| code.extend(function(number)));
    let memory = [vec![0x01, 0x00], leb128(DATA_BYTES / PAGE_BYTES)].concat();
    let mut data = [vec![0x01, 0x00, 0x41, 0x00, 0x0b], leb128(DATA_BYTES)].concat();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..DATA_BYTES / 8 {
        // xorshift: no compression makes it small.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        data.extend(state.to_le_bytes());
    }
    [
        b"\0asm\x01\0\0\0".to_vec(),
        section(1, &[0x01, 0x60, 0x01, 0x7f, 0x01, 0x7f]),
        section(3, &functions),
        section(5, &memory),
        section(10, &code),
        section(11, &data),
    ]
    .concat()
}

/// How many core modules a component has at its top.
fn modules(component: &[u8]) -> usize {
    let (mut at, mut found) = (8, 0);
    while let Some(id) = component.get(at) {
        at += 1;
        let (mut size, mut shift) = (0, 0);
        loop {
            let byte = component[at];
            at += 1;
            size |= usize::from(byte & 0x7f) << shift;
            shift += 7;
            if byte < 0x80 {
                break;
            }
        }
        found += usize::from(*id == 1);
        at += size;
    }
    found
}

/// The hello sample with such a module, which each of its instances has one of.
fn large() -> Vec<u8> {
    let hello = std::fs::read(guest("hello-http")).expect("it was built");
    let instance = [vec![0x01, 0x00], leb128(modules(&hello)), vec![0x00]].concat();
    [hello, section(1, &module()), section(2, &instance)].concat()
}

#[test]
fn a_component_of_tens_of_megabytes_is_run_and_deployed() {
    let up = Up::start(2);
    let bytes = large();
    assert!(bytes.len() > 24 << 20, "{}", bytes.len());
    let file = up.home.write("large.wasm", bytes);
    let path = file.to_str().expect("text");

    let command = up.home.command(&["run", "--http", "127.0.0.1:0", path]);
    let mut process = Process::start(command, up.home.path(), "run");
    let url = wait_for("the URL on the first line", || {
        let out = process.stdout();
        let line = out.contains('\n').then(|| out.lines().next())?;
        line.map(str::to_owned)
    });
    let addr = url.trim_start_matches("http://").trim_end_matches('/');
    let answer = http::get(addr, "anything", "/").expect("answers");
    assert_eq!(answer.body, "Hello from wasmorch, v1\n");
    process.signal(Signal::INT);
    assert_eq!(process.wait().code(), Some(0));
    // An instance begins with more than this.
    up.run(&["run", "--http", "127.0.0.1:0", "--memory", "16MiB", path])
        .refused(137, &["memory"]);

    // Larger than any message of NATS, and compiled on each host.
    up.run(&["deploy", path, "--replicas", "2"]).ok();
    for gateway in up.gateways() {
        let answer = http::get(&gateway, "large.default.localhost", "/").expect("answers");
        assert_eq!(answer.body, "Hello from wasmorch, v1\n", "{gateway}");
    }
}
