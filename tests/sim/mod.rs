//! The deterministic cluster: the real planner and the real host agent in one thread, at one virtual
//! time, with everything between them simulated and everything that can go wrong going wrong.
//!
//! ```text
//!  user ──calls──▶ controllers (real planner, guard, pace, lease clock)
//!                     │  batches, fenced         ▲ heartbeats, statuses
//!                     ▼                          │
//!                   store ──republish──▶ hosts (real agent) ── runners
//! ```
//!
//! A run is decided by its seed alone: which faults it knows (`weather`), when they strike
//! (`faults`), what users ask (`client`). Laws are checked at every step (`laws`, `host_laws`,
//! `oracle`), each under its name (`law`); when the storm is over the cluster must come to rest as
//! wanted (`settle`). That all of it bites is shown by bugs planted on purpose, each caught by the very
//! laws that it breaks (`planted`).
//!
//! `cargo xtask sim --seed S` replays a seed as a timeline, `--seeds N` runs many on all cores.

mod answers;
mod bent;
mod bonds;
mod claims;
mod client;
mod controller;
mod data;
mod explained;
mod faults;
mod host;
mod host_laws;
mod law;
mod laws;
mod load;
mod loss;
mod mass;
mod move_laws;
mod oracle;
mod planted;
mod rng;
mod rules;
mod runner;
mod runs;
mod seeds;
mod settle;
mod silence;
mod store;
mod term;
mod unplaced;
mod weather;
mod wire;
mod wishes;
mod world;
