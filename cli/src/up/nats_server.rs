//! The nats-server of an `up`: its configuration, its start, its restart after a death.
//!
//! It listens on loopback alone. `sync_interval: always`: what it has acknowledged survives a crash
//! of the operating system. The server picks a free port itself and writes it to a file, so there
//! is no moment at which somebody else could take it; after that the port stays the same.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use wasmorch_host::Child;

use super::process;
use crate::error::{CliError, Exit};
use crate::serve::bind_error;

/// A server with much to recover from its disk may take long.
const READY_MAX: Duration = Duration::from_secs(60);
/// Between two looks at the ports file.
const LOOK: Duration = Duration::from_millis(5);
/// A clean stop writes its indexes; beyond this it is killed, and rebuilds them.
const STOP_MAX: Duration = Duration::from_secs(10);
/// Starts after a death, and the pause between them.
const RESTARTS: u32 = 10;
const RESTART_PAUSE: Duration = Duration::from_secs(1);
/// One log file; two older ones are kept.
const LOG_BYTES_MAX: u64 = 10 << 20;

/// A running server.
pub(crate) struct NatsServer {
    program: PathBuf,
    folder: PathBuf,
    address: SocketAddr,
    child: Child,
}

impl NatsServer {
    /// Starts one with its data in `folder`. `listen`: exactly there; else at the port of the last
    /// start, when it is free, or at any.
    pub(crate) async fn start(
        program: PathBuf,
        folder: PathBuf,
        listen: Option<SocketAddr>,
        last_port: Option<u16>,
    ) -> Result<Self, CliError> {
        fs::create_dir_all(&folder).map_err(|error| CliError::writing(&folder, &error))?;
        let (child, address) = match listen {
            Some(address) => {
                if address.port() != 0 {
                    TcpListener::bind(address)
                        .map_err(|error| bind_error("--nats-listen", address, &error))?;
                }
                launch(&program, &folder, address).await?
            }
            None => launch_anywhere(&program, &folder, last_port).await?,
        };
        Ok(Self {
            program,
            folder,
            address,
            child,
        })
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its URL.
    pub(crate) fn url(&self) -> String {
        format!("nats://{}", self.address)
    }

    /// How it ended, once it has. Safe to cancel.
    pub(crate) async fn ended(&mut self) -> String {
        self.child.ended().await
    }

    /// Starts it again from its data, at the same port.
    pub(crate) async fn restart(&mut self) -> Result<(), CliError> {
        let mut tries = 0;
        loop {
            tries += 1;
            match launch(&self.program, &self.folder, self.address).await {
                Ok((child, _)) => {
                    self.child = child;
                    return Ok(());
                }
                Err(error) if tries >= RESTARTS => return Err(error),
                Err(error) => {
                    tracing::warn!(tries, error = %error, "nats-server did not start");
                    sleep(RESTART_PAUSE).await;
                }
            }
        }
    }

    /// Asks it to end, and waits.
    pub(crate) async fn stop(mut self) {
        self.child.terminate();
        if timeout(STOP_MAX, self.child.ended()).await.is_err() {
            self.child.kill();
            self.child.ended().await;
        }
    }
}

/// At this port of loopback when nobody has it, else at any.
async fn launch_anywhere(
    program: &Path,
    folder: &Path,
    port: Option<u16>,
) -> Result<(Child, SocketAddr), CliError> {
    let at = |port| SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
    // Another may take it between this look and the server's own bind.
    if let Some(again) = port.map(at).filter(|at| TcpListener::bind(at).is_ok()) {
        match launch(program, folder, again).await {
            // Anything else would fail elsewhere too.
            Err(error) if TcpListener::bind(again).is_ok() => return Err(error),
            Err(error) => tracing::info!(%again, error = %error, "not at the last port"),
            launched => return launched,
        }
    }
    launch(program, folder, at(0)).await
}

async fn launch(
    program: &Path,
    folder: &Path,
    address: SocketAddr,
) -> Result<(Child, SocketAddr), CliError> {
    for stale in ports_files(folder) {
        let _ = fs::remove_file(stale);
    }
    let config = folder.join("nats-server.conf");
    fs::write(&config, configuration(folder, address))
        .map_err(|error| CliError::writing(&config, &error))?;
    let output = folder.join("server.out");
    let args = vec!["--config".into(), config.into_os_string()];
    let mut child = process::spawn(program, args, &output).map_err(|error| {
        let what = format!("cannot start {}", program.display());
        CliError::new(Exit::FAILED, what, error.to_string(), "")
    })?;
    let pid = child.pid();
    let deadline = Instant::now() + READY_MAX;
    let address = loop {
        if let Some(address) = ports_files(folder)
            .into_iter()
            .filter(|path| path.to_string_lossy().ends_with(&format!("_{pid}.ports")))
            .find_map(|path| client_address(&fs::read(path).ok()?))
        {
            break address;
        }
        if let Some(how) = child.has_ended() {
            return Err(did_not_start(folder, &how));
        }
        if Instant::now() > deadline {
            child.kill();
            child.ended().await;
            return Err(did_not_start(
                folder,
                &format!("not ready within {READY_MAX:?}"),
            ));
        }
        sleep(LOOK).await;
    };
    greeted(address, deadline)
        .await
        .map_err(|why| did_not_start(folder, &why))?;
    Ok((child, address))
}

/// Waits for `INFO`, the first word a server says.
async fn greeted(address: SocketAddr, deadline: Instant) -> Result<(), String> {
    loop {
        let hello = async {
            let mut word = [0; 5];
            let mut stream = TcpStream::connect(address).await?;
            stream.read_exact(&mut word).await?;
            Ok::<bool, std::io::Error>(&word == b"INFO ")
        };
        match timeout(Duration::from_secs(2), hello).await {
            Ok(Ok(true)) => return Ok(()),
            Ok(Ok(false)) => return Err(format!("{address} speaks no NATS")),
            _ if Instant::now() > deadline => return Err(format!("no answer at {address}")),
            _ => sleep(LOOK).await,
        }
    }
}

fn ports_files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    paths
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "ports")
        })
        .collect()
}

/// `{"nats":["nats://127.0.0.1:37129"], ..}`; `None` while it is half written.
fn client_address(ports: &[u8]) -> Option<SocketAddr> {
    let ports: serde_json::Value = serde_json::from_slice(ports).ok()?;
    ports["nats"][0]
        .as_str()?
        .strip_prefix("nats://")?
        .parse()
        .ok()
}

fn configuration(folder: &Path, address: SocketAddr) -> String {
    // The server's own strings are quoted as JSON's are.
    let quoted =
        |path: &Path| serde_json::to_string(&path.to_string_lossy()).expect("text is JSON");
    let port = match address.port() {
        0 => "-1".to_owned(),
        port => port.to_string(),
    };
    format!(
        "# Written by `wasmorch up` at every start.\n\
         server_name: \"wasmorch-up\"\n\
         host: \"{host}\"\n\
         port: {port}\n\
         ports_file_dir: {folder}\n\
         log_file: {log}\n\
         logfile_size_limit: {LOG_BYTES_MAX}\n\
         logfile_max_num: 2\n\
         jetstream {{\n  store_dir: {folder}\n  sync_interval: always\n}}\n",
        host = address.ip(),
        folder = quoted(folder),
        log = quoted(&folder.join("server.log")),
    )
}

/// The server's last words tell more than its exit status.
fn did_not_start(folder: &Path, how: &str) -> CliError {
    let mut words = String::new();
    for file in ["server.out", "server.log"] {
        let text = fs::read(folder.join(file)).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).into_owned();
        let last = text.lines().rev().find(|line| {
            let line = line.to_lowercase();
            line.contains("[ftl]")
                || line.contains("[err]")
                || line.contains("nats-server:")
                || line.contains("error:")
        });
        if let Some(line) = last {
            words = line.trim().to_owned();
        }
    }
    let full = words.contains("no space left") || words.contains("address already in use");
    let exit = if full { Exit::BLOCKED } else { Exit::FAILED };
    let why = if words.is_empty() {
        how.to_owned()
    } else {
        format!("{words} ({how})")
    };
    let fix = format!("see {}", folder.join("server.log").display());
    CliError::new(exit, "nats-server did not start", why, fix)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_listens_on_loopback_and_syncs() {
        let address: SocketAddr = "127.0.0.1:0".parse().unwrap();
        insta::assert_snapshot!(configuration(Path::new("/data/a \"b\"/nats"), address));
    }

    #[test]
    fn the_port_is_read_from_the_file() {
        let ports = br#"{"nats":["nats://127.0.0.1:37129"],"cluster":[]}"#;
        assert_eq!(client_address(ports).unwrap().port(), 37_129);
        assert_eq!(client_address(br#"{"nats":["na"#), None);
    }
}
