//! The host daemon: a pure agent, the shell that carries its effects out, and the runners that
//! host guests and the gateway.
//!
//! ```text
//!            daemon                                            driver
//!   files  admin  machine     link (NATS) <-> agent (pure) <-> pool <-> runners (guests,
//!                             artifacts  logs  tables           │    gateway), processes
//!                                                               └──> compiler, a process
//! ```
//!
//! Owns what one machine runs. It knows the controller only through `api` and NATS. Daemon and
//! runners speak only by the messages of [`runner::protocol`]; the pool makes several look like one.

pub mod agent;
#[doc(hidden)]
pub mod planted;
pub mod runner;

mod admin;
mod artifacts;
mod certificates;
mod child;
mod children;
mod compiled;
mod compiler;
mod daemon;
mod descriptors;
mod driver;
mod error;
mod files;
mod link;
mod logs;
mod machine;
mod pool;
mod process;
mod remover;
mod sandbox;
mod tables;
mod wire;

/// What the simulator in `tests/sim` drives beside the agent.
#[doc(hidden)]
pub mod simulation {
    pub use crate::driver::Clock;
}

pub use certificates::TlsSource;
pub use child::Child;
pub use compiler::serve as serve_compiler;
pub use daemon::{HostConfig, HostStarted, Runners, run};
pub use error::HostError;
pub use link::LinkError;
pub use process::ProcessCommand;
pub use runner::{RunnerError, serve_runner};
