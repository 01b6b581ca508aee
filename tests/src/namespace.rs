//! A network of its own, from which this one can be dialled and which this one cannot dial.
//!
//! ```text
//!   here 10.231.N.1 ──── 10.231.N.2 there        there dials 10.231.N.1 and is answered
//!                              10.232.N.2        no packet from here finds this one, until `open`
//! ```
//!
//! Made with `ip`, by root, and removed when dropped.

use std::process::Command;

/// The other network, joined to this one by a pair of interfaces.
pub struct Namespace {
    name: String,
    /// The third number of its addresses.
    number: u32,
}

impl Namespace {
    /// Makes it. The error says what this machine lacks.
    pub fn make() -> Result<Self, String> {
        let number = std::process::id() % 250 + 1;
        let made = Self {
            name: format!("wasmorch-{number}"),
            number,
        };
        let (name, link) = (&made.name, made.link());
        // What a killed test has left.
        made.remove();
        for line in [
            format!("netns add {name}"),
            format!("link add {link} type veth peer name edge netns {name}"),
            format!("addr add 10.231.{number}.1/24 dev {link}"),
            format!("link set {link} up"),
            format!("-n {name} link set lo up"),
            format!("-n {name} addr add 10.231.{number}.2/24 dev edge"),
            format!("-n {name} link set edge up"),
            format!("-n {name} addr add 10.232.{number}.2/32 dev lo"),
        ] {
            ip(&line)?;
        }
        made.close()?;
        Ok(made)
    }

    /// Where it reaches this network.
    pub fn here(&self) -> String {
        format!("10.231.{}.1", self.number)
    }

    /// Where it would be reached, and is only while it is open.
    pub fn there(&self) -> String {
        format!("10.232.{}.2", self.number)
    }

    /// The same command, in that network.
    pub fn inside(&self, command: &Command) -> Command {
        let mut inside = Command::new("ip");
        inside.args(["netns", "exec", &self.name]);
        inside.arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => inside.env(name, value),
                None => inside.env_remove(name),
            };
        }
        if let Some(folder) = command.get_current_dir() {
            inside.current_dir(folder);
        }
        inside
    }

    /// Lets it be dialled.
    pub fn open(&self) -> Result<(), String> {
        let (number, link) = (self.number, self.link());
        ip(&format!(
            "route replace 10.232.{number}.2/32 via 10.231.{number}.2 dev {link}"
        ))
    }

    /// Whoever dials it waits: the way leads to a machine that is not there.
    pub fn close(&self) -> Result<(), String> {
        let (number, link) = (self.number, self.link());
        ip(&format!(
            "route replace 10.232.{number}.2/32 via 10.231.{number}.77 dev {link}"
        ))
    }

    fn link(&self) -> String {
        format!("wasmorch{}", self.number)
    }

    fn remove(&self) {
        // The namespace takes its end of the pair along, and that the other.
        let _ = ip(&format!("netns del {}", self.name));
        let _ = ip(&format!("link del {}", self.link()));
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        self.remove();
    }
}

fn ip(line: &str) -> Result<(), String> {
    let done = Command::new("ip").args(line.split(' ')).output();
    let done = done.map_err(|error| format!("`ip` cannot be run: {error}"))?;
    if done.status.success() {
        return Ok(());
    }
    let why = String::from_utf8_lossy(&done.stderr).trim().to_owned();
    Err(format!("`ip {line}`: {why}"))
}
