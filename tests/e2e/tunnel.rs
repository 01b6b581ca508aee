//! A host that dials out and that nobody can dial: its replicas are reached over NATS, and directly
//! as soon as that works.

use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use wasmorch_tests::daemons::{Daemons, says_hello};
use wasmorch_tests::namespace::Namespace;
use wasmorch_tests::nats::Nats;
use wasmorch_tests::process::Process;
use wasmorch_tests::up::Home;
use wasmorch_tests::{guest, http, measured, wait_for};

/// Set where network namespaces cannot be made (it takes root and `ip`): the test is left out there, and
/// says so. Without it, it fails.
const WITHOUT: &str = "WASMORCH_TEST_WITHOUT_NETNS";

/// A host in that network, on a folder of its own.
fn edge_host(network: &Namespace, cluster: &Daemons) -> Process {
    let url = cluster.url().replace("127.0.0.1", &network.here());
    let data = cluster.home.path().join("edge");
    let peer = format!("{}:0", network.there());
    let args = [
        "--nats",
        &url,
        "host",
        "--data",
        data.to_str().expect("text"),
    ];
    let flags = [
        "--http",
        "127.0.0.1:0",
        "--peer",
        &peer,
        "--name",
        "edge",
        "--label",
        "place=edge",
    ];
    let command = cluster.home.command(&[&args[..], &flags[..]].concat());
    Process::start(network.inside(&command), cluster.home.path(), "edge")
}

#[test]
fn a_host_that_can_only_dial_out_serves_and_the_direct_way_is_taken_when_it_works() {
    let network = match Namespace::make() {
        Ok(network) => network,
        Err(why) if std::env::var_os(WITHOUT).is_some() => {
            measured(&format!(
                "NOT TESTED, as {WITHOUT} asks for: the tunnel between network namespaces: {why}"
            ));
            return;
        }
        Err(why) => panic!("{why}: run as root, or leave this test out by {WITHOUT}=1"),
    };
    let home = Home::new();
    let nats = vec![Nats::on_every_address(&home.path().join("nats"))];
    let mut cluster = Daemons::start_on(home, nats, 1, 1);
    let core = cluster.gateways().remove(0);
    let _edge = edge_host(&network, &cluster);
    cluster.wait_for_hosts(2);
    let text = format!(
        "[workload]\nname = \"hello\"\ncomponent = \"{}\"\nconstraints = [{{ label = \"place\", eq = \"edge\" }}]\n",
        guest("hello-http").display()
    );
    let file = cluster.home.write("hello.toml", text);
    cluster.run(&["deploy", file.to_str().expect("text")]).ok();

    // Nobody here can dial it, and yet it answers here.
    let hosts = cluster.run(&["hosts", "--json"]).ok().json();
    let hosts = hosts.as_array().expect("a list is an array");
    let peer = hosts.iter().find_map(|host| {
        let peer = host["peer"]
            .as_str()
            .filter(|peer| peer.starts_with("10.232."))?;
        peer.parse::<SocketAddr>().ok()
    });
    if let Some(peer) = peer {
        assert!(TcpStream::connect_timeout(&peer, Duration::from_millis(500)).is_err());
    }
    wait_for("the edge to be routed", || {
        says_hello(&core, "hello").then_some(())
    });
    for _ in 0..50 {
        assert!(says_hello(&core, "hello"));
    }
    // A body of many messages comes back whole.
    let body = "0123456789".repeat(100_000);
    for _ in 0..5 {
        let host = "hello.default.localhost";
        let echoed = http::request(&core, "POST", host, "/echo", body.as_bytes());
        let echoed = echoed.expect("answers");
        assert_eq!(echoed.status, 200);
        assert!(echoed.body == body, "other bytes came back");
    }

    // The direct way opens: it is found, and no request is lost on the way over.
    network.open().expect("it could be closed");
    let host = cluster.hosts[0].as_ref().expect("it runs");
    // Each of the host's runners finds out for itself.
    wait_for("the direct way to be taken by every runner", || {
        assert!(says_hello(&core, "hello"), "lost on the way over");
        let told = host.stderr();
        let times = |what| told.matches(what).count();
        let (back, there) = (
            times("reached directly again"),
            times("reached through the tunnel"),
        );
        (back > 0 && back == there).then_some(())
    });
    for _ in 0..50 {
        assert!(says_hello(&core, "hello"), "lost on the way over");
    }
    // Without NATS there is no tunnel: this is the direct way indeed.
    cluster.nats[0].kill();
    for _ in 0..20 {
        assert!(says_hello(&core, "hello"));
    }
}
