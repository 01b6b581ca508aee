//! Who asks all the while: by GETs, by POSTs over connections that are kept, and by calls over NATS.
//!
//! Owns what a right answer is. Which failures are excused is `rolls`' to say.

use std::sync::atomic::Ordering;
use std::thread::park_timeout;
use std::time::{Duration, Instant};

use super::{Asked, Failed, HOST, HOSTS, NAME, Shared};
use crate::http::{self, Exchange};
use crate::nats_client::Client;

/// Between two requests of one client.
const PACE: Duration = Duration::from_millis(20);
/// For the answer to a call over NATS: one that its host took with it has none.
const CALL_PATIENCE: Duration = Duration::from_secs(10);
/// A body has so many words, by turns. The longest is within what a gateway keeps of one to send it elsewhere.
const WORDS: [usize; 3] = [1, 100, 2_000];

/// What came in place of the answer.
struct Miss {
    what: String,
    /// The right answer had begun.
    broke_off: bool,
}

impl From<String> for Miss {
    fn from(what: String) -> Self {
        Self {
            what,
            broke_off: false,
        }
    }
}

impl From<std::io::Error> for Miss {
    fn from(error: std::io::Error) -> Self {
        error.to_string().into()
    }
}

impl Shared {
    /// Counts how a request ended.
    fn count(&self, asked: Asked, gateway: usize, began: Instant, ended: Result<(), Miss>) {
        let Err(Miss { what, broke_off }) = ended else {
            self.answered.fetch_add(1, Ordering::Relaxed);
            return;
        };
        let failed = Failed {
            asked,
            gateway,
            roll: self.roll(),
            took_ms: began.elapsed().as_millis(),
            what,
            broke_off,
            began,
            ended: Instant::now(),
        };
        self.failed.lock().expect("nobody panicked").push(failed);
    }

    fn address(&self, gateway: usize) -> String {
        let address = self.gateways[gateway].address.lock();
        address.expect("nobody panicked").clone()
    }

    fn is_away(&self, gateway: usize) -> bool {
        self.gateways[gateway].away.load(Ordering::SeqCst)
    }
}

/// Asks the workload once.
pub(super) fn says(address: &str) -> Result<(), String> {
    match http::get(address, HOST, "/") {
        Ok(answer) if answer.status == 200 && answer.body.contains("Hello") => Ok(()),
        Ok(answer) => Err(format!("{}: {}", answer.status, answer.body.trim())),
        Err(error) => Err(error.to_string()),
    }
}

/// Asks at a gateway, by a new connection each time.
pub(super) fn get(shared: &Shared, gateway: usize) {
    while !shared.is_over() {
        park_timeout(PACE);
        let address = shared.address(gateway);
        let began = Instant::now();
        if !shared.is_away(gateway) {
            let said = says(&address).map_err(Miss::from);
            shared.count(Asked::Get, gateway, began, said);
        }
    }
}

/// Posts what nobody else posts, by a connection that is kept until an answer says that it closes: one that
/// closes without that has lost a request.
pub(super) fn post(shared: &Shared, gateway: usize, client: usize) {
    let mut kept: Option<(String, Exchange)> = None;
    for (n, words) in WORDS.iter().cycle().enumerate() {
        if shared.is_over() {
            return;
        }
        park_timeout(PACE);
        let address = shared.address(gateway);
        let began = Instant::now();
        if shared.is_away(gateway) {
            // It went with its gateway.
            kept = None;
            continue;
        }
        let same = kept.take().filter(|(at, _)| *at == address);
        let opened = match same {
            Some((_, connection)) => Ok(connection),
            None => Exchange::open(&address),
        };
        let body = format!("{gateway}.{client}.{n} ").repeat(*words);
        let said = said_back(opened, &body);
        kept = match said {
            Ok(connection) => {
                shared.count(Asked::Post, gateway, began, Ok(()));
                shared.posts.fetch_add(1, Ordering::Relaxed);
                connection.map(|connection| (address, connection))
            }
            Err(miss) => {
                shared.count(Asked::Post, gateway, began, Err(miss));
                None
            }
        };
    }
}

/// Posts a body, and waits until it is said back; the connection, if it goes on.
fn said_back(opened: std::io::Result<Exchange>, body: &str) -> Result<Option<Exchange>, Miss> {
    let mut exchange = opened?;
    exchange.ask(("POST", HOST, "/echo"), body.as_bytes(), false)?;
    let head = exchange.head()?;
    let good = head.status == 200;
    let rest = exchange.rest().map_err(|error| Miss {
        what: format!("{} broke off: {error}", head.status),
        broke_off: good,
    })?;
    let said = String::from_utf8_lossy(&rest);
    if good && said == body {
        let closes = head.header("connection") == Some("close");
        return Ok((!closes).then_some(exchange));
    }
    if good {
        let (said_bytes, bytes) = (said.len(), body.len());
        return Err(Miss {
            broke_off: said_bytes < bytes && body.starts_with(&*said),
            what: format!("{said_bytes} bytes that were not posted, or not all of {bytes}"),
        });
    }
    let class = head.header("wasmorch-error").unwrap_or("none");
    Err(format!("{} {class}: {}", head.status, said.trim()).into())
}

/// Calls the workload over NATS: whoever is called there drains too.
pub(super) fn call(shared: &Shared, url: &str) {
    let client = Client::connect(url);
    let subject = format!("wasmorch.v1.invoke.default.{NAME}");
    while !shared.is_over() {
        park_timeout(PACE);
        let began = Instant::now();
        let said = match client.try_invoke(&subject, CALL_PATIENCE) {
            Ok((status, body)) => {
                let text = String::from_utf8_lossy(&body);
                let right = status.as_deref() == Some("200") && text.contains("Hello");
                let wrong = || Miss::from(format!("a call: {status:?}: {text}"));
                right.then_some(()).ok_or_else(wrong)
            }
            Err(error) => Err(format!("a call: {error}").into()),
        };
        shared.count(Asked::Call, HOSTS, began, said);
    }
}
