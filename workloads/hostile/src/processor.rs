//! Takes processor time and memory.

use std::hint::black_box;

use wasip2::clocks::monotonic_clock;
use wasip2::random::random::get_random_bytes;

const PAGE_BYTES: usize = 64 << 10;

pub(crate) fn spin() -> ! {
    loop {
        black_box(());
    }
}

pub(crate) fn recurse() {
    #[inline(never)]
    fn deeper(depth: u64) -> u64 {
        if black_box(depth) == u64::MAX {
            return depth;
        }
        // The addition comes after the call, so that no loop can be made of it.
        black_box(deeper(depth + 1)) + 1
    }
    black_box(deeper(0));
}

pub(crate) fn memory_at_once() {
    black_box(vec![1u8; 1 << 30]);
}

pub(crate) fn memory_slowly() -> ! {
    loop {
        black_box(vec![1u8; PAGE_BYTES]).leak();
        monotonic_clock::subscribe_duration(10_000).block();
    }
}

/// Bulk memory operations are one instruction each, however long: nothing interrupts them.
pub(crate) fn fill() -> ! {
    let mut block = vec![0u8; 40 << 20];
    loop {
        block.fill(black_box(7));
        black_box(&block);
    }
}

pub(crate) fn host_calls() -> ! {
    loop {
        black_box(monotonic_clock::now());
    }
}

pub(crate) fn lines(count: u64) -> String {
    for number in 0..count {
        println!("line {number} of a flood");
    }
    "written".into()
}

pub(crate) fn long_line(bytes: u64) -> String {
    let part = "x".repeat(PAGE_BYTES);
    for _ in 0..bytes / PAGE_BYTES as u64 {
        print!("{part}");
    }
    "written".into()
}

/// Asks for more memory than there is, and goes on without.
pub(crate) fn denied() -> String {
    let mut block = Vec::<u8>::new();
    match block.try_reserve(1 << 30) {
        Ok(()) => "granted".into(),
        Err(_) => "denied".into(),
    }
}

/// Takes so many MiB for good, and waits a little, so that others come meanwhile.
pub(crate) fn hold(mib: u64) -> String {
    let mib = usize::try_from(mib).unwrap_or_default();
    black_box(vec![1u8; mib << 20]).leak();
    monotonic_clock::subscribe_duration(50_000_000).block();
    "held".into()
}

pub(crate) fn random() -> String {
    get_random_bytes(1 << 40).len().to_string()
}

pub(crate) fn wait() {
    monotonic_clock::subscribe_duration(u64::MAX).block();
}
