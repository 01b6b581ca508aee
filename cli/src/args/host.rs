//! Flags of a host: `host`, and the `runner` that it starts.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use wasmorch_api::{ByteSize, Cpu, HumanDuration, Name};
use wasmorch_host::TlsSource;

use super::KeyValue;
use crate::error::CliError;

pub(crate) const HOST_EXAMPLES: &str = "Examples:
  wasmorch host --nats nats://10.0.0.1:4222 --http 0.0.0.0:80
  wasmorch host --nats nats://10.0.0.1:4222 --label zone=a --taint edge
  wasmorch host --nats nats://10.0.0.1:4222 --http 0.0.0.0:443 --tls-cert web.crt --tls-key web.key

With certificates the public port speaks TLS only. They are read again when they change; a bad
one leaves the old in force.";

/// How a connection to the public port begins.
#[derive(Debug, Args)]
pub(crate) struct FrontArgs {
    /// A certificate in PEM, several for several names; or a folder of NAME.crt beside NAME.key
    #[arg(long, value_name = "FILE")]
    pub(crate) tls_cert: Vec<PathBuf>,
    /// The key of each --tls-cert, in the same order; none for a folder
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub(crate) tls_key: Vec<PathBuf>,
    /// TLS with a certificate made here, for development
    #[arg(long, conflicts_with = "tls_cert")]
    pub(crate) tls_self_signed: bool,
    /// A load balancer in front tells of clients by the PROXY protocol, version 2
    #[arg(long)]
    pub(crate) proxy_protocol: bool,
}

impl FrontArgs {
    /// Where certificates come from, if they do.
    pub(crate) fn tls(&self) -> Result<Option<TlsSource>, CliError> {
        if self.tls_self_signed {
            return Ok(Some(TlsSource::SelfSigned));
        }
        let mut keys = self.tls_key.iter();
        let mut files = Vec::new();
        let mut missing = Vec::new();
        for cert in &self.tls_cert {
            let key = if cert.is_dir() { None } else { keys.next() };
            if key.is_none() && !cert.is_dir() {
                missing.push(cert.display().to_string());
            }
            files.push((cert.clone(), key.cloned()));
        }
        let extra: Vec<_> = keys.map(|key| key.display().to_string()).collect();
        let wrong = |what: String, fix| Err(CliError::usage(what, fix));
        if !missing.is_empty() {
            let fix = "give --tls-key once for each --tls-cert, in the same order";
            return wrong(format!("no --tls-key for {}", missing.join(", ")), fix);
        }
        if !extra.is_empty() {
            let fix = "a folder of certificates has its keys beside them: leave out --tls-key";
            return wrong(format!("no --tls-cert for {}", extra.join(", ")), fix);
        }
        Ok((!files.is_empty()).then_some(TlsSource::Files(files)))
    }
}

/// `host`.
#[derive(Debug, Args)]
pub(crate) struct HostArgs {
    /// Where everything is kept [default: $XDG_DATA_HOME/wasmorch/host]
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
    /// Where the gateway listens
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080")]
    pub(crate) http: SocketAddr,
    #[command(flatten)]
    pub(crate) front: FrontArgs,
    /// Where other hosts reach the gateway [default: a free port on the IP of --http]
    #[arg(long, value_name = "ADDR")]
    pub(crate) peer: Option<SocketAddr>,
    /// What other hosts dial, when it is not --peer
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) advertise: Option<String>,
    /// Health and metrics
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0")]
    pub(crate) admin: SocketAddr,
    /// Its name [default: the hostname]
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<Name>,
    /// The domain of automatic names: <workload>.<namespace>.<domain>
    #[arg(long, value_name = "DOMAIN", default_value = "localhost")]
    pub(crate) domain: String,
    /// A label that constraints look at; may be given several times
    #[arg(long = "label", value_name = "K=V")]
    pub(crate) labels: Vec<KeyValue>,
    /// A taint that workloads must tolerate; may be given several times
    #[arg(long = "taint", value_name = "K[=V]")]
    pub(crate) taints: Vec<String>,
    /// Memory for replicas [default: all but a reserve]
    #[arg(long, value_name = "SIZE")]
    pub(crate) memory: Option<ByteSize>,
    /// Cpu for replicas [default: all]
    #[arg(long, value_name = "CPU")]
    pub(crate) cpu: Option<Cpu>,
    /// Compiled code from `wasmorch compile`, in a folder where only this user and root may write
    #[arg(long, value_name = "DIR")]
    pub(crate) compiled: Option<PathBuf>,
    /// Between two heartbeats: more of them for a quicker --dead-after of the controllers
    #[arg(long, value_name = "D", default_value = "1s", value_parser = heartbeat)]
    pub(crate) heartbeat: Duration,
    /// Processes that run guests; 0: inside the daemon [default: one for each core]
    #[arg(long, value_name = "N")]
    pub(crate) runners: Option<u32>,
}

/// 50 ms to 5 s: below, heartbeats are most of what NATS carries; above, a host's death is noticed late.
fn heartbeat(text: &str) -> Result<Duration, String> {
    within(text, Duration::from_millis(50), Duration::from_secs(5))
}

/// A duration between these two.
pub(super) fn within(text: &str, least: Duration, most: Duration) -> Result<Duration, String> {
    let asked: HumanDuration = text.parse().map_err(|error| format!("{error}"))?;
    if (least..=most).contains(&asked.0) {
        Ok(asked.0)
    } else {
        let (least, most) = (HumanDuration(least), HumanDuration(most));
        Err(format!("from {least} to {most}"))
    }
}

/// `runner` and `compiler`: not for people.
#[derive(Debug, Args)]
pub(crate) struct ChildProcessArgs {
    /// What its host logs.
    #[arg(long)]
    pub(crate) log: String,
}
