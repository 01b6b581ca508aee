//! A flash crowd: from nothing to more than one replica takes, and back.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use serde_json::Value;
use wasmorch_tests::daemons::Daemons;
use wasmorch_tests::{guest, http, measured, wait_for};

/// Clients that come at once, each with one request in hand. A request takes 100 ms in the guest: 160 of them
/// ask 1,600 times a second of whoever takes them all.
const CROWD: usize = 160;
const LASTS: Duration = Duration::from_secs(8);

#[derive(Default)]
struct Counts {
    answered: AtomicUsize,
    /// 503 with `Retry-After`.
    turned_away: AtomicUsize,
    over: AtomicBool,
}

impl Counts {
    /// One client: anything but an answer and an explicit 503 is an error.
    fn client(&self, gateway: &str) {
        while !self.over.load(SeqCst) {
            let answer = http::get(gateway, "web.default.localhost", "/sleep?100");
            let answer = answer.unwrap_or_else(|error| panic!("at {gateway}: {error}"));
            match answer.status {
                200 => self.answered.fetch_add(1, SeqCst),
                503 => {
                    let again = answer
                        .header("retry-after")
                        .and_then(|text| text.parse().ok());
                    let again: u64 = again.expect("a 503 says when to come again");
                    assert!(again > 0);
                    let since = Instant::now();
                    wait_for("the time that it was told to wait", || {
                        let over = since.elapsed() >= Duration::from_secs(again);
                        (over || self.over.load(SeqCst)).then_some(())
                    });
                    self.turned_away.fetch_add(1, SeqCst)
                }
                other => panic!("{other} at {gateway}"),
            };
        }
    }
}

/// Sends the clients home, also when a test has failed beside them.
struct Home<'a>(&'a Counts);

impl Drop for Home<'_> {
    fn drop(&mut self) {
        self.0.over.store(true, SeqCst);
    }
}

fn desired(daemons: &Daemons) -> Option<u64> {
    let status: Value = daemons.run(&["status", "web", "--json"]).ok().json();
    status["desired"].as_u64()
}

#[test]
fn a_flash_crowd_is_absorbed_and_leaves_nothing_behind() {
    let daemons = Daemons::start(1, 3);
    // One replica has 16 seats and as many places to wait: a tenth of the crowd each.
    let text = format!(
        "[workload]\nname = \"web\"\ncomponent = \"{}\"\n\
         resources = {{ concurrency = 16, queue = 16 }}\n\
         scale = {{ min = 0, max = 12, target = {{ concurrency = 12 }}, window = \"4s\", panic = \"1s\" }}\n",
        guest("hello-http").display()
    );
    let file = daemons.home.write("web.toml", text);
    daemons.run(&["deploy", file.to_str().expect("text")]).ok();
    let gateways = daemons.gateways();
    wait_for("it to lie down", || (desired(&daemons)? == 0).then_some(()));

    let counts = Counts::default();
    let mut most = 0;
    std::thread::scope(|scope| {
        for n in 0..CROWD {
            let (counts, gateway) = (&counts, &gateways[n % gateways.len()]);
            scope.spawn(move || counts.client(gateway));
        }
        let (_home, began) = (Home(&counts), Instant::now());
        wait_for("replicas for the crowd, and its end", || {
            most = most.max(desired(&daemons)?);
            (most >= 8 && began.elapsed() >= LASTS).then_some(())
        });
    });
    let (answered, turned_away) = (
        counts.answered.into_inner(),
        counts.turned_away.into_inner(),
    );
    measured(&format!(
        "{CROWD} clients from zero: {answered} answered, {turned_away} told to come again, {most} replicas"
    ));
    assert!(answered > 4 * CROWD, "{answered} answers");
    assert!((8..=12).contains(&most), "{most} replicas");

    // As few as are needed, and then none.
    wait_for("it to lie down again", || {
        (desired(&daemons)? == 0).then_some(())
    });
}
