//! Values as people read them: ages, sizes, counts.

use std::time::Duration;

use wasmorch_api::{ByteSize, Timestamp};

/// `3s`, `12m`, `5h`, `9d`: the largest unit alone, as listings of processes show it.
pub(crate) fn age(since: Timestamp, now: Timestamp) -> String {
    span(now.since(since))
}

/// A length of time in its largest unit.
pub(crate) fn span(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..=119 => format!("{seconds}s"),
        120..=7_199 => format!("{}m", seconds / 60),
        7_200..=172_799 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// `1 replica`, `2 replicas`.
pub(crate) fn count(number: u64, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

/// What is used of a limit, as short as it goes: `1.4/64MiB`; in a unit of its own when it is little.
pub(crate) fn used_of(used: u64, limit: ByteSize) -> String {
    let written = limit.to_string();
    let digits = written.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = limit.0 / digits.parse().unwrap_or(1).max(1);
    let share = used as f64 / unit.max(1) as f64;
    match used {
        0 => format!("0/{limit}"),
        _ if share >= 0.1 => format!("{share:.1}/{limit}"),
        _ => format!("{}/{limit}", ByteSize(used).approximate().replace(' ', "")),
    }
}

/// Text of a guest on a terminal: control characters are shown, not obeyed. Tabs stay, and so do
/// the colours that a program chose for itself (CSI .. m).
pub(crate) fn harmless(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(|c: char| c.is_control() && c != '\t') {
        safe.push_str(&rest[..at]);
        rest = &rest[at..];
        let colour = rest.strip_prefix("\x1b[").and_then(|after| {
            let digits = after
                .bytes()
                .take_while(|b| b.is_ascii_digit() || *b == b';')
                .count();
            (after.as_bytes().get(digits) == Some(&b'm')).then_some(2 + digits + 1)
        });
        let taken = colour.unwrap_or_else(|| rest.chars().next().map_or(1, char::len_utf8));
        match colour {
            Some(_) => safe.push_str(&rest[..taken]),
            None => safe.extend(rest[..taken].escape_debug()),
        }
        rest = &rest[taken..];
    }
    safe.push_str(rest);
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_have_one_unit() {
        for (seconds, text) in [
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (7_199, "119m"),
            (7_200, "2h"),
            (200_000, "2d"),
        ] {
            assert_eq!(span(Duration::from_secs(seconds)), text);
        }
        // A clock that is behind is no error.
        assert_eq!(age(Timestamp(2_000), Timestamp(1_000)), "0s");
    }

    #[test]
    fn what_is_used_stands_before_its_limit() {
        for (used, limit, text) in [
            (0, ByteSize::mib(64), "0/64MiB"),
            (1_500_000, ByteSize::mib(64), "1.4/64MiB"),
            (800 << 10, ByteSize::mib(64), "0.8/64MiB"),
            (4 << 10, ByteSize::mib(64), "4.0KiB/64MiB"),
            (31 << 20, ByteSize::mib(1024), "31.0MiB/1GiB"),
            (7, ByteSize(0), "7.0/0B"),
        ] {
            assert_eq!(used_of(used, limit), text);
        }
    }

    #[test]
    fn guests_cannot_drive_the_terminal() {
        assert_eq!(harmless("a\tb"), "a\tb");
        assert_eq!(harmless("\x1b[31mred\x1b[0m"), "\x1b[31mred\x1b[0m");
        assert_eq!(harmless("\x1b]0;title\x07x"), "\\u{1b}]0;title\\u{7}x");
        assert_eq!(harmless("\x1b[2J"), "\\u{1b}[2J");
    }
}
