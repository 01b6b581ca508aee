//! A job: counts the lines, words and bytes of the file named by its argument, or of stdin, and ends.
//!
//! The same source is built twice: as a `wasi:cli` component and as a core module (preview 1).

use std::fs::File;
use std::io::{self, Read};
use std::process::ExitCode;

#[derive(Default)]
struct Count {
    lines: u64,
    words: u64,
    bytes: u64,
}

fn main() -> ExitCode {
    let path = std::env::args().nth(1);
    let counted = match &path {
        Some(path) => File::open(path).and_then(count),
        None => count(io::stdin().lock()),
    };
    match counted {
        Ok(count) => {
            println!(
                "{} lines, {} words, {} bytes",
                count.lines, count.words, count.bytes
            );
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("wordcount: {}: {error}", path.as_deref().unwrap_or("stdin"));
            ExitCode::FAILURE
        }
    }
}

fn count(mut input: impl Read) -> io::Result<Count> {
    let mut count = Count::default();
    let mut buffer = [0; 16 * 1024];
    let mut in_word = false; // carried over from one buffer to the next
    loop {
        let read = input.read(&mut buffer)?;
        if read == 0 {
            return Ok(count);
        }
        count.bytes += read as u64;
        for byte in &buffer[..read] {
            let space = byte.is_ascii_whitespace();
            count.lines += u64::from(*byte == b'\n');
            count.words += u64::from(!space && !in_word);
            in_word = !space;
        }
    }
}
