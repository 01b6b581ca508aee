//! The host daemon: a pure agent, the shell that carries its effects out, and the runner that
//! hosts guests and the gateway.
//!
//! ```text
//!            daemon                                            driver
//!   files  admin  machine     link (NATS) <-> agent (pure) <-> runner (guests, gateway)
//!                             artifacts  logs  tables
//! ```
//!
//! Owns what one machine runs. It knows the controller only through `api` and NATS. Daemon and
//! runner speak only by the messages of [`runner::protocol`], so that runners can become processes.

pub mod agent;
#[doc(hidden)]
pub mod planted;
pub mod runner;

mod admin;
mod artifacts;
mod daemon;
mod driver;
mod error;
mod files;
mod link;
mod logs;
mod machine;
mod tables;

pub use daemon::{HostConfig, HostStarted, run};
pub use error::HostError;
pub use link::LinkError;
pub use runner::RunnerError;
