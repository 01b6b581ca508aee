//! Sizes, durations, cpu and shares as people write them: `64MiB`, `30s`, `500m`, `5%`.
//!
//! Owns their grammar: one way of writing each value out, several accepted.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Why a text is no such value; the message shows a legal one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not {what}: write it like {example}")]
pub struct UnitError {
    text: String,
    what: &'static str,
    example: &'static str,
}

fn wrong(text: &str, what: &'static str, example: &'static str) -> UnitError {
    UnitError {
        text: text.chars().take(40).collect(),
        what,
        example,
    }
}

/// `12.5MiB` -> (12.5, "MiB"); only plain decimal digits and one dot.
fn split_number(text: &str) -> Option<(f64, &str)> {
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    Some((number.parse().ok()?, unit.trim_start()))
}

fn whole(value: f64) -> Option<u64> {
    // 2^53: beyond it an f64 no longer holds every integer.
    (0.0..=9_007_199_254_740_992.0)
        .contains(&value)
        .then_some(value.round() as u64)
}

macro_rules! unit_serde {
    ($type:ty) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

/// A number of bytes. Written `64MiB`; `kB`, `MB`, `GB` (decimal) and a bare number are accepted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(pub u64);

const SIZES: [(&str, u64); 5] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("B", 1),
];

impl ByteSize {
    /// This many mebibytes.
    pub const fn mib(count: u64) -> Self {
        Self(count * 1024 * 1024)
    }
}

impl FromStr for ByteSize {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<Self, UnitError> {
        let error = || wrong(text, "a size", "64MiB");
        let (number, unit) = split_number(text.trim()).ok_or_else(error)?;
        let factor = match unit {
            "" => 1,
            "kB" | "KB" => 1_000,
            "MB" => 1_000_000,
            "GB" => 1_000_000_000,
            "K" | "Ki" => 1 << 10,
            "M" | "Mi" => 1 << 20,
            "G" | "Gi" => 1 << 30,
            unit => {
                SIZES
                    .iter()
                    .find(|(name, _)| *name == unit)
                    .ok_or_else(error)?
                    .1
            }
        };
        whole(number * factor as f64).map(Self).ok_or_else(error)
    }
}

impl fmt::Display for ByteSize {
    /// The largest unit that divides it exactly, so that reading gives the same value back.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, factor) = SIZES
            .iter()
            .find(|(_, factor)| self.0 >= *factor && self.0.is_multiple_of(*factor))
            .unwrap_or(&("B", 1));
        f.pad(&format!("{}{unit}", self.0 / factor))
    }
}
unit_serde!(ByteSize);

impl ByteSize {
    /// For a listing: three significant digits, `12.4 MiB`.
    pub fn approximate(self) -> String {
        let (unit, factor) = SIZES
            .iter()
            .find(|(_, factor)| self.0 >= *factor)
            .unwrap_or(&("B", 1));
        let value = self.0 as f64 / *factor as f64;
        let digits = if *factor == 1 || value >= 100.0 { 0 } else { 1 };
        format!("{value:.digits$} {unit}")
    }
}

/// A length of time. Written `1m30s`, `500ms`, `0s`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HumanDuration(pub Duration);

const TIMES: [(&str, u64); 5] = [
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1_000),
    ("ms", 1),
];

impl HumanDuration {
    /// This many seconds.
    pub const fn secs(count: u64) -> Self {
        Self(Duration::from_secs(count))
    }
    /// This many milliseconds.
    pub const fn millis(count: u64) -> Self {
        Self(Duration::from_millis(count))
    }
}

impl FromStr for HumanDuration {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<Self, UnitError> {
        let error = || wrong(text, "a duration", "30s, 500ms or 1m30s");
        let mut rest = text.trim();
        if rest.is_empty() {
            return Err(error());
        }
        let mut total_ms = 0.0;
        while !rest.is_empty() {
            let (number, after) = split_number(rest).ok_or_else(error)?;
            let end = after
                .find(|c: char| !c.is_ascii_alphabetic())
                .unwrap_or(after.len());
            let (unit, tail) = after.split_at(end);
            let (_, factor) = TIMES
                .iter()
                .find(|(name, _)| *name == unit)
                .ok_or_else(error)?;
            total_ms += number * *factor as f64;
            rest = tail.trim_start();
        }
        whole(total_ms)
            .map(|ms| Self(Duration::from_millis(ms)))
            .ok_or_else(error)
    }
}

impl fmt::Display for HumanDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut ms = u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX);
        if ms == 0 {
            return f.pad("0s");
        }
        let mut text = String::new();
        for (unit, factor) in TIMES {
            if ms >= factor {
                text.push_str(&format!("{}{unit}", ms / factor));
                ms %= factor;
            }
        }
        f.pad(&text)
    }
}
unit_serde!(HumanDuration);

/// Thousandths of a core. Written `500m`; `0.5` and `2` (cores) are accepted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cpu(pub u64);

impl FromStr for Cpu {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<Self, UnitError> {
        let error = || wrong(text, "an amount of cpu", "500m (half a core) or 2");
        let (number, unit) = split_number(text.trim()).ok_or_else(error)?;
        let factor = match unit {
            "m" => 1.0,
            "" => 1000.0,
            _ => return Err(error()),
        };
        whole(number * factor).map(Self).ok_or_else(error)
    }
}

impl fmt::Display for Cpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}m", self.0))
    }
}
unit_serde!(Cpu);

/// A share of something, 0 to 100 %. Written `5%`; kept in thousandths of a percent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Share(pub u32);

impl FromStr for Share {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<Self, UnitError> {
        let error = || wrong(text, "a share", "5%");
        let (number, unit) = split_number(text.trim()).ok_or_else(error)?;
        if unit != "%" || number > 100.0 {
            return Err(error());
        }
        Ok(Self((number * 1000.0).round() as u32))
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}%", f64::from(self.0) / 1000.0))
    }
}
unit_serde!(Share);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("64MiB", 64 << 20),
            ("1GiB", 1 << 30),
            ("1.5KiB", 1536),
            ("12", 12),
            ("1MB", 1_000_000),
        ] {
            assert_eq!(text.parse::<ByteSize>().unwrap().0, bytes, "{text}");
        }
        for bad in [
            "",
            "MiB",
            "-1MiB",
            "1XiB",
            "1e3",
            "999999999999TiB",
            "1..2MiB",
        ] {
            assert!(bad.parse::<ByteSize>().is_err(), "{bad}");
        }
        assert_eq!(ByteSize(13_000_000).approximate(), "12.4 MiB");
        assert_eq!(ByteSize(0).to_string(), "0B");
    }

    #[test]
    fn durations() {
        for (text, ms) in [
            ("30s", 30_000),
            ("1m30s", 90_000),
            ("500ms", 500),
            ("0.5s", 500),
            ("1d", 86_400_000),
        ] {
            assert_eq!(
                text.parse::<HumanDuration>().unwrap().0.as_millis(),
                ms,
                "{text}"
            );
        }
        for bad in ["", "30", "s", "-1s", "1y", "1s-"] {
            assert!(bad.parse::<HumanDuration>().is_err(), "{bad}");
        }
    }

    #[test]
    fn cpu_and_shares() {
        assert_eq!("500m".parse::<Cpu>().unwrap(), Cpu(500));
        assert_eq!("1.5".parse::<Cpu>().unwrap(), Cpu(1500));
        assert_eq!("0.5%".parse::<Share>().unwrap(), Share(500));
        assert!("101%".parse::<Share>().is_err());
        assert!("5".parse::<Share>().is_err());
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(bytes in 0u64..1 << 50, ms in 0u64..1 << 40, milli in 0u64..1 << 30, share in 0u32..=100_000) {
            prop_assert_eq!(ByteSize(bytes).to_string().parse::<ByteSize>().unwrap(), ByteSize(bytes));
            let time = HumanDuration::millis(ms);
            prop_assert_eq!(time.to_string().parse::<HumanDuration>().unwrap(), time);
            prop_assert_eq!(Cpu(milli).to_string().parse::<Cpu>().unwrap(), Cpu(milli));
            prop_assert_eq!(Share(share).to_string().parse::<Share>().unwrap(), Share(share));
        }

        #[test]
        fn no_text_panics(text in ".{0,40}") {
            let _ = text.parse::<ByteSize>();
            let _ = text.parse::<HumanDuration>();
            let _ = text.parse::<Cpu>();
            let _ = text.parse::<Share>();
        }
    }
}
