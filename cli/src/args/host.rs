//! Flags of a host: `host`, and the `runner` and `compiler` that it starts.

use std::collections::BTreeMap;
use std::net::{Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use wasmorch_api::manifest::grammar;
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
    #[arg(long, value_name = "HOST:PORT", value_parser = host_and_port)]
    pub(crate) advertise: Option<String>,
    /// Health and metrics
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0")]
    pub(crate) admin: SocketAddr,
    /// Its name [default: the hostname]
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<Name>,
    /// The domain of automatic names: <workload>.<namespace>.<domain>
    #[arg(long, value_name = "DOMAIN", default_value = "localhost", value_parser = domain)]
    pub(crate) domain: String,
    /// A label that constraints look at; may be given several times
    #[arg(long = "label", value_name = "K=V", value_parser = label)]
    pub(crate) labels: Vec<KeyValue>,
    /// A taint that workloads must tolerate; may be given several times
    #[arg(long = "taint", value_name = "K[=V]", value_parser = taint)]
    pub(crate) taints: Vec<String>,
    /// Memory for replicas [default: all but a reserve]
    #[arg(long, value_name = "SIZE", value_parser = memory)]
    pub(crate) memory: Option<ByteSize>,
    /// Cpu for replicas [default: all]
    #[arg(long, value_name = "CPU", value_parser = cpu)]
    pub(crate) cpu: Option<Cpu>,
    /// Compiled code from `wasmorch compile`, in a folder where only this user and root may write
    #[arg(long, value_name = "DIR")]
    pub(crate) compiled: Option<PathBuf>,
    /// Between two heartbeats: more of them for a quicker --dead-after of the controllers
    #[arg(long, value_name = "D", default_value = "1s", value_parser = heartbeat)]
    pub(crate) heartbeat: Duration,
    /// When told to end (SIGTERM), what is in hand may take so long; a second signal ends it at once
    #[arg(long, value_name = "D", default_value = "30s", value_parser = drain)]
    pub(crate) drain: Duration,
    /// Processes that run guests; 0: inside the daemon [default: one for each core]
    #[arg(long, value_name = "N", value_parser = runners)]
    pub(crate) runners: Option<u32>,
}

impl HostArgs {
    /// The labels, each with one value.
    pub(crate) fn labels(&self) -> Result<BTreeMap<String, String>, CliError> {
        let mut labels = BTreeMap::new();
        for KeyValue { key, value } in &self.labels {
            if let Some(other) = labels.insert(key.clone(), value.clone()) {
                return Err(CliError::usage(
                    format!("--label {key} is given twice: {other} and {value}"),
                    "a host has one value of a label: leave one out",
                ));
            }
        }
        Ok(labels)
    }
}

/// Labels that every host has by itself.
const BUILT_IN: [&str; 2] = ["host", "arch"];

fn label(text: &str) -> Result<KeyValue, String> {
    let pair: KeyValue = text.parse()?;
    grammar::label(&pair.key)?;
    grammar::label_value(&pair.value)?;
    if BUILT_IN.contains(&pair.key.as_str()) {
        let key = pair.key;
        return Err(format!(
            "every host has its own `{key}`: choose another label"
        ));
    }
    Ok(pair)
}

fn taint(text: &str) -> Result<String, String> {
    grammar::taint(text).map_err(|what| format!("write it like KEY or KEY=VALUE: {what}"))?;
    Ok(text.to_owned())
}

/// Below it not one replica of the usual kind has room: `resources.reserve` books as much.
const MEMORY_MIN: ByteSize = ByteSize::mib(1);

fn memory(text: &str) -> Result<ByteSize, String> {
    let asked: ByteSize = text.parse().map_err(|error| format!("{error}"))?;
    if asked < MEMORY_MIN {
        return Err(format!(
            "{MEMORY_MIN} or more: a replica books that much unless it says otherwise"
        ));
    }
    Ok(asked)
}

fn cpu(text: &str) -> Result<Cpu, String> {
    let asked: Cpu = text.parse().map_err(|error| format!("{error}"))?;
    if asked.0 == 0 {
        return Err("1m or more: without cpu nothing runs".into());
    }
    Ok(asked)
}

/// What names end with: labels of DNS, lower case as requests for them are compared.
fn domain(text: &str) -> Result<String, String> {
    let legal = text.len() <= 190 && text.split('.').all(|label| label.parse::<Name>().is_ok());
    if legal {
        return Ok(text.to_owned());
    }
    Err("write it like example.com: a-z, 0-9 and `-` between dots, 190 characters at most".into())
}

/// `HOST:PORT`, a name or an address, `[..]` around IPv6.
fn host_and_port(text: &str) -> Result<String, String> {
    let wrong =
        || "write it like 10.0.0.5:7000, host-1.example.com:7000 or [fd00::5]:7000".to_owned();
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    if !port.parse::<u16>().is_ok_and(|port| port > 0) {
        return Err(wrong());
    }
    let inner = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    let legal = match inner {
        Some(address) => address.parse::<Ipv6Addr>().is_ok(),
        None => host.len() <= 253 && host.to_ascii_lowercase().split('.').all(is_host_label),
    };
    if legal {
        Ok(text.to_owned())
    } else {
        Err(wrong())
    }
}

/// A part of a host's name, or of an IPv4 address. `_` is in some names of containers.
fn is_host_label(label: &str) -> bool {
    label.replace('_', "x").parse::<Name>().is_ok()
}

/// More are never of use: guests of one runner share a core, and each is a process with books of its own.
const RUNNERS_MAX: u32 = 64;

/// 0 to 64, or as many as there are cores.
fn runners(text: &str) -> Result<u32, String> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let most = u32::try_from(cores).unwrap_or(u32::MAX).max(RUNNERS_MAX);
    let asked = text.parse().ok().filter(|asked| *asked <= most);
    asked.ok_or_else(|| {
        format!("a number from 0 to {most}: each is a process, and one for each core is enough")
    })
}

/// 50 ms to 5 s: below, heartbeats are most of what NATS carries; above, a host's death is noticed late.
fn heartbeat(text: &str) -> Result<Duration, String> {
    within(text, Duration::from_millis(50), Duration::from_secs(5))
}

/// None to an hour: whoever ends hosts has to wait for it.
fn drain(text: &str) -> Result<Duration, String> {
    within(text, Duration::ZERO, Duration::from_secs(3600))
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

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use crate::args::{Cli, Command, HostArgs};

    fn host(flags: &[&str]) -> Result<HostArgs, String> {
        let line = ["wasmorch", "host"].iter().chain(flags);
        match Cli::try_parse_from(line)
            .map_err(|error| error.to_string())?
            .command
        {
            Command::Host(args) => Ok(args),
            other => panic!("not host: {other:?}"),
        }
    }

    #[test]
    fn flags_that_no_host_can_have_are_refused_with_what_is_allowed() {
        for (flags, allowed) in [
            (["--runners", "100000"], "from 0 to "),
            (["--runners", "x"], "from 0 to "),
            (["--memory", "0"], "1MiB or more"),
            (["--memory", "1"], "1MiB or more"),
            (["--cpu", "0m"], "1m or more"),
            (["--domain", "a b"], "like example.com"),
            (["--domain", ""], "like example.com"),
            (["--advertise", "foo"], "like 10.0.0.5:7000"),
            (["--advertise", "foo:0"], "like 10.0.0.5:7000"),
            (["--advertise", "fd00::5:7000"], "like 10.0.0.5:7000"),
            (["--drain", "2h"], "from 0s to 1h"),
            (["--label", "host=x"], "choose another label"),
            (["--label", "a b=x"], "is not a label"),
            (["--taint", "="], "KEY or KEY=VALUE"),
        ] {
            let error = host(&flags).unwrap_err();
            assert!(error.contains(allowed), "{flags:?}: {error}");
        }
    }

    #[test]
    fn flags_of_hosts_are_read() {
        let args = host(&[
            "--runners",
            "0",
            "--memory",
            "1MiB",
            "--cpu",
            "1m",
            "--domain",
            "apps.example.com",
            "--advertise",
            "[fd00::5]:7000",
            "--label",
            "zone=a",
            "--taint",
            "edge",
            "--taint",
            "gpu=yes",
        ])
        .unwrap();
        assert_eq!(args.labels().unwrap()["zone"], "a");
        assert_eq!(args.taints, ["edge", "gpu=yes"]);
        for address in ["10.0.0.5:7000", "Host_1.example.com:1"] {
            assert_eq!(
                host(&["--advertise", address]).unwrap().advertise.unwrap(),
                address
            );
        }
        let twice = host(&["--label", "a=1", "--label", "a=2"]).unwrap();
        assert!(
            twice
                .labels()
                .unwrap_err()
                .what
                .contains("a is given twice")
        );
    }
}
