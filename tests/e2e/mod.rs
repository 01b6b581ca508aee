//! End to end: the real binary, a real nats-server, real components.

mod access;
mod answers;
mod autoscale;
mod bonds;
mod capabilities;
mod counts;
mod daemons;
mod device;
mod disconnect;
mod drain;
mod faults;
mod front;
mod kinds;
mod leaders;
mod main_job;
mod nats_api;
mod plans;
mod recover;
mod refusals;
mod rollouts;
mod run;
mod runners;
mod services;
mod tls;
mod tunnel;
mod zero;
