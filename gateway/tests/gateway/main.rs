//! Gateways in one process, on loopback, with made-up replicas behind them.

#![allow(
    clippy::unwrap_used,
    reason = "a helper of tests that cannot go on says where"
)]

mod answers;
mod bounds;
mod forwarding;
mod links;
mod protocol;
mod public;
mod secure;
mod shutdown;
mod spill;
mod support;
mod tries;
mod tunnel;
mod uploads;
