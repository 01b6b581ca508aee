//! A command that prints one line and traps: what a crash at the start looks like.

fn main() {
    println!("about to crash");
    core::arch::wasm32::unreachable()
}
