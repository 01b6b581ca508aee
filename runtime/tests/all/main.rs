//! Runs the sample guests of `workloads/` in the runtime: each kind, each limit, each denial.
//!
//! The guests are built by `cargo xtask setup`, or lie where `WASMORCH_GUESTS` says.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod blobstore;
mod cache;
mod command;
mod foreign;
mod given;
mod hostile;
mod http;
mod keyvalue;
mod limits;
mod messages;
mod outbound;
mod refusals;
mod reuse;
mod secrets;
mod sockets;
mod support;
mod times;
mod tls;
mod together;
mod told;
mod unload;
mod volume;
