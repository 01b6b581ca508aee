//! The load: connections that are kept busy, and what it costs the server.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::Request;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::memory;
use crate::report::percentile;

/// What is asked, and how much at once.
#[derive(Debug, Clone, Copy)]
pub(super) struct Load {
    pub(super) address: SocketAddr,
    pub(super) host: &'static str,
    pub(super) path: &'static str,
    /// Bytes of the request's body; 0: none, and the answer may be anything.
    pub(super) body: usize,
    pub(super) connections: usize,
}

/// What came of it.
#[derive(Debug)]
pub(super) struct Measured {
    pub(super) per_second: f64,
    pub(super) p50: Duration,
    pub(super) p99: Duration,
    /// Processor time of the server and its children for one request.
    pub(super) cpu_micros: f64,
}

impl Measured {
    /// Each figure's own median.
    pub(super) fn median(turns: &[Self]) -> Self {
        let of = |figure: fn(&Self) -> f64| {
            let mut figures: Vec<_> = turns.iter().map(figure).collect();
            figures.sort_by(f64::total_cmp);
            percentile(&figures, 50)
        };
        Self {
            per_second: of(|turn| turn.per_second),
            p50: Duration::from_secs_f64(of(|turn| turn.p50.as_secs_f64())),
            p99: Duration::from_secs_f64(of(|turn| turn.p99.as_secs_f64())),
            cpu_micros: of(|turn| turn.cpu_micros),
        }
    }
}

impl Load {
    /// Warms up for a fifth of the time, then measures.
    pub(super) fn run(&self, time: Duration, server: u32) -> Result<Measured> {
        let client = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        client.block_on(self.all(time / 5))?;
        let (began, cpu) = (Instant::now(), memory::cpu(server)?);
        let mut times = client.block_on(self.all(time))?;
        let (took, cpu) = (began.elapsed(), memory::cpu(server)?.saturating_sub(cpu));
        times.sort_unstable();
        let count = times.len();
        let rank = |percent: usize| (count * percent).div_ceil(100).max(1) - 1;
        let percentile = |percent| times.get(rank(percent)).copied().unwrap_or_default();
        Ok(Measured {
            per_second: count as f64 / took.as_secs_f64(),
            p50: percentile(50),
            p99: percentile(99),
            cpu_micros: cpu.as_secs_f64() * 1e6 / count.max(1) as f64,
        })
    }

    async fn all(&self, time: Duration) -> Result<Vec<Duration>> {
        let until = Instant::now() + time;
        let mut connections = JoinSet::new();
        for _ in 0..self.connections {
            connections.spawn((*self).one(until));
        }
        let mut times = Vec::new();
        while let Some(done) = connections.join_next().await {
            times.extend(done.context("a connection panicked")??);
        }
        Ok(times)
    }

    /// One connection after the other: a server may end one to spread its clients.
    async fn one(self, until: Instant) -> Result<Vec<Duration>> {
        let body = Bytes::from(vec![b'x'; self.body]);
        let mut times = Vec::new();
        while Instant::now() < until {
            let stream = TcpStream::connect(self.address).await?;
            stream.set_nodelay(true)?;
            let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
            let driven = tokio::spawn(connection);
            while Instant::now() < until && sender.ready().await.is_ok() {
                let method = if self.body == 0 { "GET" } else { "POST" };
                let request = Request::builder()
                    .method(method)
                    .uri(self.path)
                    .header("host", self.host)
                    .body(Full::new(body.clone()))?;
                let began = Instant::now();
                let answer = sender.send_request(request).await?;
                let status = answer.status();
                let got = answer.into_body().collect().await?.to_bytes();
                ensure!(status == 200, "{status}: {got:?}");
                ensure!(
                    self.body == 0 || got.len() == self.body,
                    "{} bytes",
                    got.len()
                );
                times.push(began.elapsed());
            }
            drop(sender);
            // It ended, well or not: every request on it was answered.
            let _ = driven.await;
        }
        Ok(times)
    }
}
