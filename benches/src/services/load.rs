//! A plain load: a number of kept connections, one request at a time on each, every answer checked. As fast as
//! they are answered, or so many a second.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

/// What a load has found.
#[derive(Default)]
pub(crate) struct Found {
    times: Vec<Duration>,
    lasted: Duration,
    sorted: bool,
}

impl Found {
    pub(crate) fn add(&mut self, other: Self) {
        self.times.extend(other.times);
        self.lasted += other.lasted;
        self.sorted = false;
    }

    pub(crate) fn count(&self) -> usize {
        self.times.len()
    }

    pub(crate) fn per_second(&self) -> f64 {
        self.times.len() as f64 / self.lasted.as_secs_f64()
    }

    /// Nearest rank: always a time that was measured.
    pub(crate) fn percentile_ms(&mut self, percent: usize) -> f64 {
        if !std::mem::replace(&mut self.sorted, true) {
            self.times.sort_unstable();
        }
        let rank = (self.times.len() * percent).div_ceil(100).max(1);
        self.times[rank - 1].as_secs_f64() * 1000.0
    }

    pub(crate) fn json(&mut self, what: &str) -> Value {
        let [p50, p99] = [50, 99].map(|percent| self.percentile_ms(percent));
        json!({
            "what": what, "requests": self.count(), "per_second": self.per_second(),
            "p50_ms": p50, "p99_ms": p99,
        })
    }
}

/// Asks for `/` for so long, `rate` times a second over all connections, or as fast as it is answered. Any answer
/// but 200 ends it.
pub(crate) fn measure(
    address: &str,
    host: &str,
    connections: usize,
    (length, rate): (Duration, Option<u32>),
) -> Result<Found> {
    let began = Instant::now();
    let until = began + length;
    let connections = connections.max(1);
    let times = std::thread::scope(|scope| {
        let asking: Vec<_> = (0..connections)
            .map(|n| {
                // By turns, so that no two ask at once when all is fast.
                let turn = rate.map(|rate| Duration::from_secs(1) / rate.max(1));
                let pace = turn.map(|turn| (began + turn * n as u32, turn * connections as u32));
                scope.spawn(move || ask(address, host, until, pace))
            })
            .collect();
        let mut times = Vec::new();
        for asking in asking {
            let one = asking
                .join()
                .map_err(|_| anyhow::anyhow!("a client panicked"))?;
            times.extend(one?);
        }
        anyhow::Ok(times)
    })?;
    ensure!(!times.is_empty(), "no request was answered");
    Ok(Found {
        times,
        lasted: began.elapsed(),
        sorted: false,
    })
}

/// `pace`: when the first request is due, and the time from one to the next. What is late counts from when it was
/// due.
fn ask(
    address: &str,
    host: &str,
    until: Instant,
    mut pace: Option<(Instant, Duration)>,
) -> Result<Vec<Duration>> {
    let mut stream = BufReader::new(TcpStream::connect(address)?);
    stream.get_ref().set_nodelay(true)?;
    stream
        .get_ref()
        .set_read_timeout(Some(Duration::from_secs(10)))?;
    let request = format!("GET / HTTP/1.1\r\nhost: {host}\r\n\r\n");
    let mut times = Vec::new();
    while Instant::now() < until {
        let began = match &mut pace {
            None => Instant::now(),
            Some((due, every)) => {
                let began = *due;
                *due += *every;
                while let Some(early) = began.checked_duration_since(Instant::now()) {
                    std::thread::park_timeout(early);
                }
                began
            }
        };
        stream.get_mut().write_all(request.as_bytes())?;
        answer(&mut stream)?;
        times.push(began.elapsed());
    }
    Ok(times)
}

/// Reads one whole answer.
fn answer(stream: &mut BufReader<TcpStream>) -> Result<()> {
    let mut line = String::new();
    stream.read_line(&mut line)?;
    ensure!(line.starts_with("HTTP/1.1 200 "), "{line:?} instead of 200");
    let mut length = None;
    let mut chunked = false;
    loop {
        line.clear();
        ensure!(stream.read_line(&mut line)? > 0, "the answer broke off");
        let text = line.trim_end().to_ascii_lowercase();
        if text.is_empty() {
            break;
        }
        if let Some(value) = text.strip_prefix("content-length:") {
            length = Some(value.trim().parse::<u64>()?);
        }
        chunked |= text == "transfer-encoding: chunked";
    }
    if !chunked {
        let length = length.context("an answer without a length")?;
        return skip(stream, length);
    }
    loop {
        line.clear();
        stream.read_line(&mut line)?;
        let length = u64::from_str_radix(line.trim_end(), 16)?;
        skip(stream, length + 2)?;
        if length == 0 {
            return Ok(());
        }
    }
}

fn skip(stream: &mut BufReader<TcpStream>, length: u64) -> Result<()> {
    let copied = std::io::copy(&mut stream.take(length), &mut std::io::sink())?;
    ensure!(copied == length, "the answer broke off");
    Ok(())
}
