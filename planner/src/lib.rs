//! The planner: cluster state + event + now -> plan. Decisions only.
//!
//! Owns what the cluster should do next: where replicas go, how a rollout steps, when a host counts
//! as dead, what gateways should know. [`Cluster`] is the state; it changes in two ways only:
//! [`Cluster::observe`] folds in what hosts say, and [`Cluster::commit`] folds in writes after the
//! store has acknowledged them. [`Cluster::plan`] and the [`commands`] answer with writes and never
//! carry them out.
//!
//! Invariants: no I/O, no tokio, no NATS, no wasmtime, no clock, no ambient randomness: the same
//! state and the same `now` give the same plan. [`check::check`] is written apart from the planner
//! and passes every plan before it is dispatched.
//!
//! ```text
//!  heartbeats, statuses ──observe──▶ ┌─────────┐ ──plan──▶ Plan ──check──▶ writes ──▶ store
//!  requests ──────────────commands─▶ │ Cluster │ ◀─────────────commit──────────────── ack
//!                                    └─────────┘
//! ```

mod absent;
mod agenda;
mod alarms;
mod atomic;
mod autoscale;
mod awaited;
mod balance;
mod booked;
mod boots;
mod cached;
mod canary;
pub mod check;
mod cluster;
pub mod commands;
mod crash_loop;
mod cron;
mod detection;
mod explain;
mod fill;
mod hold;
mod holdings;
mod homes;
mod jobs;
mod judge;
mod moves;
mod observe;
mod per_host;
mod place;
mod plan;
#[doc(hidden)]
pub mod planted;
mod pool;
mod ports;
mod preempt;
pub mod preview;
pub mod queries;
mod quota;
mod removals;
mod rollout;
mod scaler;
mod silence;
mod slots;
mod stages;
mod standby;
mod tables;
pub mod why;
mod withdrawals;
mod write;

pub use canary::may_stand_beside;
pub use cluster::{Cluster, Host, Placed, Reported, Workload};
pub use detection::Detection;
pub use observe::{Ask, Observation, Observed};
pub use plan::{Plan, Start, Stop, StopReason};
pub use tables::Endpoints;
pub use write::{EventDraft, Stored, Write};

use std::time::Duration;

/// A host silent for this long is dead, unless the controller is told otherwise.
pub const DEAD_AFTER: Duration = Duration::from_secs(5);
/// Revisions kept for each workload.
pub const REVISIONS_KEPT: usize = 20;
/// Ended replicas remembered for each workload, for `ps --all` and `why`.
pub const ENDED_KEPT: usize = 10;
