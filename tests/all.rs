//! Every test above the units, in one binary: `cargo xtask test` runs it.

mod conformance;
mod e2e;
mod sim;
