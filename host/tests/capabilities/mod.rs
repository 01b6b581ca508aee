//! Capabilities with a cluster behind them: granted, denied, and what happens without NATS.

mod blobstore;
mod foreign;
mod keyvalue;
mod streams;
mod volumes;
