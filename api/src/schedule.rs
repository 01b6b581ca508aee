//! Cron schedules: five fields in a time zone, and the next time that they name.
//!
//! Owns the grammar and the arithmetic. Time zones come from the IANA database that is compiled in,
//! so that every controller reads the same, whatever its machine has installed; "now" is an argument.
//!
//! Rules, where clocks and calendars leave room:
//! - day of month and day of week: when both are restricted, either is enough (as everywhere in cron);
//! - with every hour (`*`), minutes go by real time: in the hour that comes twice they come twice;
//! - with hours named, times go by the clock on the wall: one that comes twice is taken the first
//!   time, one that is left out is taken as much later as the clock is set forward.

use jiff::civil::{Date, Time};
use jiff::tz::{TimeZone, TimeZoneDatabase};
use jiff::{SignedDuration, ToSpan};

use crate::manifest::reader::echo;
use crate::time::Timestamp;

/// Longer is no schedule.
const TEXT_BYTES_MAX: usize = 1_024;
/// A 29th of February is eight years away at most (2096 to 2104): what is further never comes.
const DAYS_MAX: usize = 9 * 366;

/// When a cron workload runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    /// Bit n: value n.
    minutes: u64,
    hours: u64,
    days: u64,
    months: u64,
    /// Sunday is 0.
    weekdays: u64,
    /// Which of the two days is not restricted.
    any_day: bool,
    any_weekday: bool,
    zone: TimeZone,
}

/// One field: its name, its values, their words.
struct Field {
    what: &'static str,
    low: u32,
    high: u32,
    words: &'static [&'static str],
}

const FIELDS: [Field; 5] = [
    Field {
        what: "minute",
        low: 0,
        high: 59,
        words: &[],
    },
    Field {
        what: "hour",
        low: 0,
        high: 23,
        words: &[],
    },
    Field {
        what: "day of month",
        low: 1,
        high: 31,
        words: &[],
    },
    Field {
        what: "month",
        low: 1,
        high: 12,
        words: &[
            "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
        ],
    },
    Field {
        what: "day of week",
        low: 0,
        high: 7,
        words: &["sun", "mon", "tue", "wed", "thu", "fri", "sat"],
    },
];

const EVERY_HOUR: u64 = (1 << 24) - 1;

impl Field {
    fn number(&self, text: &str) -> Option<u32> {
        let named = self
            .words
            .iter()
            .position(|word| text.eq_ignore_ascii_case(word));
        let named = named
            .and_then(|at| u32::try_from(at).ok())
            .map(|at| at + self.low);
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        named
            .or_else(|| digits.then(|| text.parse().ok())?)
            .filter(|number| (self.low..=self.high).contains(number))
    }

    /// The values of `a`, `a-b`, `*`, each with `/step` or without.
    fn part(&self, part: &str) -> Option<u64> {
        let (range, step) = match part.split_once('/') {
            Some((range, step)) => (range, Some(step)),
            None => (part, None),
        };
        let step_by = match step {
            None => 1,
            Some(step) => step
                .parse()
                .ok()
                .filter(|step| (1..=self.high).contains(step))?,
        };
        let (from, to) = if range == "*" {
            (self.low, self.high)
        } else if let Some((from, to)) = range.split_once('-') {
            (self.number(from)?, self.number(to)?)
        } else {
            let from = self.number(range)?;
            // `5/15` is from 5 on.
            (from, if step.is_some() { self.high } else { from })
        };
        let values = (from <= to).then(|| (from..=to).step_by(step_by as usize))?;
        Some(values.fold(0, |bits, value| bits | 1 << value))
    }

    fn read(&self, text: &str) -> Result<u64, String> {
        let mut parts = text.split(',').map(|part| self.part(part));
        let bits = parts.try_fold(0, |bits, part| Some(bits | part?));
        bits.ok_or_else(|| {
            let (what, low, high) = (self.what, self.low, self.high);
            format!(
                "{} is no {what} of a schedule: {low} to {high}, `*`, `a-b`, `a,b` or `*/n`",
                echo(text)
            )
        })
    }
}

/// What a word like `@daily` stands for.
fn word(text: &str) -> Option<&'static str> {
    Some(match text {
        "@yearly" => "0 0 1 1 *",
        "@monthly" => "0 0 1 * *",
        "@weekly" => "0 0 * * 0",
        "@daily" | "@midnight" => "0 0 * * *",
        "@hourly" => "0 * * * *",
        _ => return None,
    })
}

/// The zone of this name.
pub fn zone(name: &str) -> Result<TimeZone, String> {
    static ZONES: std::sync::OnceLock<TimeZoneDatabase> = std::sync::OnceLock::new();
    let zones = ZONES.get_or_init(TimeZoneDatabase::bundled);
    zones.get(name).map_err(|_| {
        format!(
            "{} is not a time zone: write it like UTC or Europe/Berlin",
            echo(name)
        )
    })
}

impl Schedule {
    /// Reads a schedule; `None`: in UTC.
    pub fn parse(text: &str, timezone: Option<&str>) -> Result<Self, String> {
        let fields: Vec<&str> = word(text).unwrap_or(text).split_whitespace().collect();
        let [minute, hour, day, month, weekday] = fields[..] else {
            return Err(not_a_schedule(text));
        };
        if text.len() > TEXT_BYTES_MAX {
            return Err(not_a_schedule(text));
        }
        let weekdays = FIELDS[4].read(weekday)?;
        let schedule = Self {
            minutes: FIELDS[0].read(minute)?,
            hours: FIELDS[1].read(hour)?,
            days: FIELDS[2].read(day)?,
            months: FIELDS[3].read(month)?,
            // 7 is Sunday too.
            weekdays: weekdays | weekdays >> 7 & 1,
            any_day: day.starts_with('*'),
            any_weekday: weekday.starts_with('*'),
            zone: zone(timezone.unwrap_or("UTC"))?,
        };
        let mut days = Date::constant(2000, 1, 1).series(1.day()).take(DAYS_MAX);
        if !days.any(|date| schedule.names(date)) {
            return Err(format!("{} names a day that never comes", echo(text)));
        }
        Ok(schedule)
    }

    fn names(&self, date: Date) -> bool {
        let has = |bits: u64, value: i8| bits >> value & 1 == 1;
        let day = has(self.days, date.day());
        let weekday = has(self.weekdays, date.weekday().to_sunday_zero_offset());
        has(self.months, date.month())
            && match (self.any_day, self.any_weekday) {
                (false, false) => day || weekday,
                _ => day && weekday,
            }
    }

    /// The first time after `after` that it names.
    pub fn next_after(&self, after: Timestamp) -> Option<Timestamp> {
        let after = i64::try_from(after.0).ok()?;
        let after = jiff::Timestamp::from_millisecond(after).ok()?;
        let first = self.zone.to_datetime(after).date().yesterday().ok()?;
        let mut best: Option<jiff::Timestamp> = None;
        for date in first.series(1.day()).take(DAYS_MAX) {
            let found = if self.names(date) {
                self.on(date, after)
            } else {
                None
            };
            match (best, found) {
                // A day that a zone leaves out lies in the one after it: so one more is looked at.
                (Some(best), found) => return stamp(found.map_or(best, |found| found.min(best))),
                (None, found) => best = found,
            }
        }
        best.and_then(stamp)
    }

    /// The first time after `after` on a day that is named.
    fn on(&self, date: Date, after: jiff::Timestamp) -> Option<jiff::Timestamp> {
        if self.hours & EVERY_HOUR == EVERY_HOUR {
            return self.by_real_time(date, after);
        }
        let mut best: Option<jiff::Timestamp> = None;
        for hour in (0..24).filter(|hour| self.hours >> hour & 1 == 1) {
            for minute in (0..60).filter(|minute| self.minutes >> minute & 1 == 1) {
                let wall = date.to_datetime(Time::constant(hour, minute, 0, 0));
                let there = self.zone.to_ambiguous_timestamp(wall).compatible();
                let there = there.ok().filter(|there| *there > after);
                best = match (best, there) {
                    (Some(best), Some(there)) => Some(best.min(there)),
                    (best, there) => best.or(there),
                };
            }
        }
        best
    }

    fn by_real_time(&self, date: Date, after: jiff::Timestamp) -> Option<jiff::Timestamp> {
        let start = |date: Date| Some(date.to_zoned(self.zone.clone()).ok()?.timestamp());
        let (from, to) = (start(date)?, start(date.tomorrow().ok()?)?);
        let minute = SignedDuration::from_mins(1);
        let mut at = from;
        if after >= from {
            // The next whole minute.
            let seconds = after
                .as_second()
                .div_euclid(60)
                .checked_add(1)?
                .checked_mul(60)?;
            at = jiff::Timestamp::from_second(seconds).ok()?;
        }
        while at < to {
            if self.minutes >> self.zone.to_datetime(at).minute() & 1 == 1 {
                return Some(at);
            }
            at = at.checked_add(minute).ok()?;
        }
        None
    }
}

fn stamp(at: jiff::Timestamp) -> Option<Timestamp> {
    u64::try_from(at.as_millisecond()).ok().map(Timestamp)
}

fn not_a_schedule(text: &str) -> String {
    format!(
        "{} is not a schedule: write minute, hour, day, month and weekday, as in `0 3 * * *`",
        echo(text)
    )
}

#[cfg(test)]
mod tests {
    use jiff::civil::Weekday;

    use super::*;

    fn times(text: &str, zone: &str, after: &str, many: usize) -> Vec<String> {
        let schedule = Schedule::parse(text, Some(zone)).unwrap();
        let mut at: Timestamp = after.parse().unwrap();
        let mut times = Vec::new();
        for _ in 0..many {
            at = schedule.next_after(at).unwrap();
            times.push(at.to_string()[..16].to_owned());
        }
        times
    }

    #[test]
    fn plain_times() {
        let at = "2026-11-24T21:04:30Z";
        assert_eq!(
            times("0 3 * * *", "UTC", at, 2),
            ["2026-11-25T03:00", "2026-11-26T03:00"]
        );
        assert_eq!(
            times("*/20 * * * *", "UTC", at, 3),
            ["2026-11-24T21:20", "2026-11-24T21:40", "2026-11-24T22:00"]
        );
        assert_eq!(
            times("30 9-17/4 * * mon-fri", "UTC", at, 4),
            [
                "2026-11-25T09:30",
                "2026-11-25T13:30",
                "2026-11-25T17:30",
                "2026-11-26T09:30",
            ]
        );
        assert_eq!(
            times("@monthly", "UTC", at, 2),
            ["2026-12-01T00:00", "2027-01-01T00:00"]
        );
        assert_eq!(
            times("0 0 29 2 *", "UTC", at, 2),
            ["2028-02-29T00:00", "2032-02-29T00:00"]
        );
        assert_eq!(times("0 0 * * 7", "UTC", at, 1), ["2026-11-29T00:00"]);
        // Both days restricted: either is enough.
        assert_eq!(
            times("0 0 1 * fri", "UTC", at, 2),
            ["2026-11-27T00:00", "2026-12-01T00:00"]
        );
        // A time is not named again by itself.
        assert_eq!(
            times("* * * * *", "UTC", "2026-11-24T21:04:00Z", 1),
            ["2026-11-24T21:05"]
        );
        assert_eq!(
            times("5/20 0 * * *", "UTC", at, 3),
            ["2026-11-25T00:05", "2026-11-25T00:25", "2026-11-25T00:45"]
        );
    }

    #[test]
    fn a_clock_that_is_set_forward_leaves_nothing_out() {
        // Berlin, 2026-03-29: 02:00 becomes 03:00.
        let at = "2026-03-28T12:00:00Z";
        assert_eq!(
            times("30 2 * * *", "Europe/Berlin", at, 2),
            ["2026-03-29T01:30", "2026-03-30T00:30"]
        );
        assert_eq!(
            times("0 3 * * *", "Europe/Berlin", at, 2),
            ["2026-03-29T01:00", "2026-03-30T01:00"]
        );
        // 02:00 and 03:00 fall together: once.
        assert_eq!(
            times("0 2,3 * * *", "Europe/Berlin", at, 2),
            ["2026-03-29T01:00", "2026-03-30T00:00"]
        );
        assert_eq!(
            times("30 * * * *", "Europe/Berlin", "2026-03-29T00:00:00Z", 3),
            ["2026-03-29T00:30", "2026-03-29T01:30", "2026-03-29T02:30",]
        );
    }

    #[test]
    fn an_hour_that_comes_twice_is_one_by_the_clock_and_two_by_real_time() {
        // Berlin, 2026-10-25: 03:00 becomes 02:00.
        let at = "2026-10-24T12:00:00Z";
        assert_eq!(
            times("30 2 * * *", "Europe/Berlin", at, 2),
            ["2026-10-25T00:30", "2026-10-26T01:30"]
        );
        assert_eq!(
            times("30 * * * *", "Europe/Berlin", "2026-10-25T00:00:00Z", 3),
            ["2026-10-25T00:30", "2026-10-25T01:30", "2026-10-25T02:30",]
        );
        // New York, 2026-11-01: 02:00 becomes 01:00.
        assert_eq!(
            times("15 1 * * *", "America/New_York", "2026-10-31T12:00:00Z", 2),
            ["2026-11-01T05:15", "2026-11-02T06:15",]
        );
    }

    #[test]
    fn odd_zones() {
        // Samoa had no 30 December 2011.
        assert_eq!(
            times("0 12 30 12 *", "Pacific/Apia", "2011-12-01T00:00:00Z", 1),
            ["2011-12-30T22:00"]
        );
        // Half-hour and quarter-hour offsets.
        assert_eq!(
            times("0 0 * * *", "Asia/Kathmandu", "2026-01-01T00:00:00Z", 1),
            ["2026-01-01T18:15"]
        );
        // Lord Howe moves by half an hour: 02:00 becomes 02:30 on 2026-10-04.
        assert_eq!(
            times(
                "15 2 * * *",
                "Australia/Lord_Howe",
                "2026-10-03T00:00:00Z",
                1
            ),
            ["2026-10-03T15:45"]
        );
    }

    #[test]
    fn what_never_comes_is_refused() {
        for text in ["0 0 31 2 *", "0 0 30 feb *", "0 0 31 4,6 *"] {
            let error = Schedule::parse(text, None).unwrap_err();
            assert!(error.contains("never comes"), "{error}");
        }
        // The weekday alone is enough.
        assert!(Schedule::parse("0 0 31 2 mon", None).is_ok());
        assert!(Schedule::parse("0 0 * * *", Some("Mars/Olympus")).is_err());
        assert!(Schedule::parse("+5 0 * * *", None).is_err());
    }

    proptest::proptest! {
        /// Held against a walk over every minute that asks only what the wall shows.
        #[test]
        fn next_is_the_first_minute_that_matches(
            minute in 0..60u32, step in 1..30u32, hour in proptest::option::of(0..24u32),
            weekday in proptest::option::of(0..7u32), day in proptest::option::of(1..29u32),
            at in 1_700_000_000_000u64..1_800_000_000_000,
        ) {
            let or = |value: Option<u32>| value.map_or("*".to_owned(), |value| value.to_string());
            let text = format!("{minute}-59/{step} {} {} * {}", or(hour), or(day), or(weekday));
            let schedule = Schedule::parse(&text, None).unwrap();
            let found = schedule.next_after(Timestamp(at)).unwrap();
            proptest::prop_assert!(found.0 > at && found.0.is_multiple_of(60_000));
            let shows = |at: u64| {
                let wall = jiff::Timestamp::from_millisecond(at as i64).unwrap().to_zoned(TimeZone::UTC);
                let day_fits = day.is_none_or(|day| wall.day() as u32 == day);
                let weekday_fits = weekday.is_none_or(|one| wall.weekday() == Weekday::from_sunday_zero_offset(one as i8).unwrap());
                let days = if day.is_some() && weekday.is_some() { day_fits || weekday_fits } else { day_fits && weekday_fits };
                let minutes = wall.minute() as u32;
                days && hour.is_none_or(|hour| wall.hour() as u32 == hour) && minutes >= minute && (minutes - minute).is_multiple_of(step)
            };
            proptest::prop_assert!(shows(found.0));
            let first = at / 60_000 * 60_000 + 60_000;
            for at in (first..found.0).step_by(60_000) {
                proptest::prop_assert!(!shows(at), "{text}: {} comes before", Timestamp(at));
            }
        }
    }
}
