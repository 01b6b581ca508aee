//! Fuzz target: see `planned`.
#![no_main]

#[path = "../planned.rs"]
mod planned;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| planned::plan(bytes));
