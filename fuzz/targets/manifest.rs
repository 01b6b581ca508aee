//! Fuzz target: see `inputs::manifest`.
#![no_main]

#[allow(dead_code, reason = "each target uses one of them")]
#[path = "../inputs.rs"]
mod inputs;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| inputs::manifest(bytes));
