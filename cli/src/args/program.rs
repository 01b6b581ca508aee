//! Flags of what compiles here and asks no cluster: `run`, `compile`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;
use wasmorch_api::{ByteSize, HumanDuration};
use wasmorch_runtime::Target;

use super::KeyValue;
use super::values::some_time;

pub(crate) const RUN_EXAMPLES: &str = "Examples:
  wasmorch run app.wasm -- one two
  wasmorch run --dir ./data::/data:ro --env LANG=en app.wasm < input
  wasmorch run --http 127.0.0.1:0 hello.wasm

Exit: the guest's own code; 124 out of time, 134 trap, 137 out of memory, 65 no such program.";

/// `--allow-network` without a value.
pub(crate) const ANY_NETWORK: &str = "any";

pub(crate) const COMPILE_EXAMPLES: &str = "Examples:
  wasmorch compile app.wasm
  wasmorch compile --target aarch64-linux --out edge web.wasm orders.wasm
  rsync -a edge/ device:/var/lib/wasmorch/compiled/

Hosts take what lies in the folder that their --compiled names: those built without a compiler
have nothing else to run, the others start sooner. Code runs outside of every sandbox, so nobody
but the host's user and root may write there.";

/// `run`.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// A component or core module
    #[arg(value_name = "APP.wasm")]
    pub(crate) file: PathBuf,
    /// An environment variable; may be given several times
    #[arg(long = "env", value_name = "K=V")]
    pub(crate) env: Vec<KeyValue>,
    /// A folder the guest sees; may be given several times
    #[arg(long = "dir", value_name = "HOST::GUEST[:ro]")]
    pub(crate) dirs: Vec<Dir>,
    /// A host it may call by HTTP; may be given several times
    #[arg(long, value_name = "PATTERN")]
    pub(crate) allow_http: Vec<String>,
    /// An address it may reach by sockets; without a value, all
    #[arg(long, value_name = "PATTERN", num_args = 0..=1, require_equals = true, default_missing_value = ANY_NETWORK)]
    pub(crate) allow_network: Vec<String>,
    /// Serve its HTTP handler here; port 0 takes a free one, the URL is the first line of output
    #[arg(long, value_name = "ADDR")]
    pub(crate) http: Option<SocketAddr>,
    /// End it after this long [default: no limit; with --http 30s for each request]
    // The same id as the global flag, so that this meaning takes its place here.
    #[arg(id = "timeout", long, value_name = "TIME", value_parser = some_time)]
    pub(crate) timeout: Option<HumanDuration>,
    /// Compile it anew, and keep no code in $XDG_CACHE_HOME/wasmorch/compiled
    #[arg(long)]
    pub(crate) no_cache: bool,
    /// The memory limit [default: 64MiB]
    #[arg(long, value_name = "SIZE")]
    pub(crate) memory: Option<ByteSize>,
    /// The program's arguments
    #[arg(last = true, value_name = "ARGS")]
    pub(crate) args: Vec<String>,
}

/// `compile`.
#[derive(Debug, Args)]
pub(crate) struct CompileArgs {
    /// Components or core modules
    #[arg(value_name = "APP.wasm", required = true)]
    pub(crate) files: Vec<PathBuf>,
    /// For x86_64-linux or aarch64-linux; may be given several times [default: this machine's]
    #[arg(long = "target", value_name = "TARGET")]
    pub(crate) targets: Vec<Target>,
    /// The folder to write to: ENGINE/TARGET/DIGEST.cwasm
    #[arg(short, long, value_name = "DIR", default_value = "compiled")]
    pub(crate) out: PathBuf,
}

/// `HOST::GUEST[:ro]`; `HOST` alone is seen under the same name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Dir {
    pub(crate) host: PathBuf,
    pub(crate) guest: String,
    pub(crate) read_only: bool,
}

impl FromStr for Dir {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "write it like ./data::/data or ./data::/data:ro".to_owned();
        let (host, guest) = text.split_once("::").ok_or_else(wrong)?;
        let (guest, read_only) = match guest.strip_suffix(":ro") {
            Some(guest) => (guest, true),
            None => (guest, false),
        };
        if host.is_empty() || guest.is_empty() {
            return Err(wrong());
        }
        Ok(Self {
            host: host.into(),
            guest: guest.to_owned(),
            read_only,
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::{Cli, Command};

    fn run(line: &str) -> RunArgs {
        let cli = Cli::try_parse_from(line.split_whitespace()).unwrap();
        match cli.command {
            Command::Run(run) => run,
            other => panic!("not run: {other:?}"),
        }
    }

    #[test]
    fn the_time_limit_of_run_is_its_own() {
        let run = run("wasmorch run --timeout 2s app.wasm -- --timeout x");
        assert_eq!(run.timeout, Some(HumanDuration::secs(2)));
        assert_eq!(run.args, ["--timeout", "x"]);
    }

    #[test]
    fn allow_network_takes_its_value_only_after_an_equals_sign() {
        let any = run("wasmorch run --allow-network app.wasm");
        assert_eq!(any.allow_network, [ANY_NETWORK]);
        let two = run("wasmorch run --allow-network=a:1 --allow-network=b:2 app.wasm");
        assert_eq!(two.allow_network, ["a:1", "b:2"]);
    }

    #[test]
    fn folders_read() {
        let dir: Dir = "./a::/b:ro".parse().unwrap();
        assert_eq!(
            dir,
            Dir {
                host: "./a".into(),
                guest: "/b".into(),
                read_only: true
            }
        );
        assert!("a:/b".parse::<Dir>().is_err());
    }
}
