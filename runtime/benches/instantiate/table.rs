//! Figures as rows of a table, or as JSON.

use std::fmt::Write as _;

use serde_json::{Value, json};

/// What a row counts, and in which direction is better.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    Microseconds,
    Milliseconds,
    PerSecond,
}

impl Unit {
    fn text(self) -> &'static str {
        match self {
            Self::Microseconds => "us",
            Self::Milliseconds => "ms",
            Self::PerSecond => "/s",
        }
    }
}

/// Measurements of one thing by one contender.
pub(crate) struct Row {
    what: String,
    who: &'static str,
    unit: Unit,
    aim: Option<f64>,
    values: Vec<f64>,
}

impl Row {
    pub(crate) fn new(what: impl Into<String>, who: &'static str, unit: Unit) -> Self {
        Self {
            what: what.into(),
            who,
            unit,
            aim: None,
            values: Vec::new(),
        }
    }

    /// What its median should be better than.
    pub(crate) fn aim(mut self, aim: f64) -> Self {
        self.aim = Some(aim);
        self
    }

    pub(crate) fn push(&mut self, value: f64) {
        self.values.push(value);
    }

    /// A duration, in the row's unit.
    pub(crate) fn push_time(&mut self, took: std::time::Duration) {
        let seconds = took.as_secs_f64();
        self.push(match self.unit {
            Unit::Microseconds => seconds * 1e6,
            Unit::Milliseconds => seconds * 1e3,
            Unit::PerSecond => 1.0 / seconds,
        });
    }

    /// Nearest rank, from the good end: always a value that was measured.
    fn percentile(&self, percent: usize) -> f64 {
        let mut sorted = self.values.clone();
        sorted.sort_by(f64::total_cmp);
        if self.unit == Unit::PerSecond {
            sorted.reverse();
        }
        let rank = (sorted.len() * percent).div_ceil(100).max(1);
        sorted.get(rank - 1).copied().unwrap_or(f64::NAN)
    }

    fn met(&self) -> Option<bool> {
        let median = self.percentile(50);
        self.aim.map(|aim| match self.unit {
            Unit::PerSecond => median > aim,
            _ => median < aim,
        })
    }

    fn cells(&self) -> [String; 6] {
        let number = |value: f64| match self.unit {
            Unit::PerSecond => format!("{value:.0} {}", self.unit.text()),
            _ => format!("{value:.2} {}", self.unit.text()),
        };
        let sign = if self.unit == Unit::PerSecond {
            '>'
        } else {
            '<'
        };
        let aim = self.aim.zip(self.met()).map(|(aim, met)| {
            let met = if met { "met" } else { "missed" };
            format!("{sign} {aim} {}: {met}", self.unit.text())
        });
        [
            self.what.clone(),
            self.who.to_owned(),
            self.values.len().to_string(),
            number(self.percentile(50)),
            number(self.percentile(99)),
            aim.unwrap_or_default(),
        ]
    }

    fn json(&self) -> Value {
        json!({
            "what": self.what, "who": self.who, "unit": self.unit.text(), "runs": self.values.len(),
            "median": self.percentile(50), "p99": self.percentile(99),
            "aim": self.aim, "met": self.met(),
        })
    }
}

/// For people.
pub(crate) fn table(machine: &str, rows: &[Row]) -> String {
    let head = [
        "measured",
        "by",
        "runs",
        "median",
        "p99",
        "aim for the median",
    ];
    let lines: Vec<[String; 6]> = std::iter::once(head.map(str::to_owned))
        .chain(rows.iter().map(Row::cells))
        .collect();
    let width = |column: usize| {
        let cells = lines.iter().map(|line| line[column].chars().count());
        cells.max().unwrap_or_default()
    };
    let [a, b, c, d, e] = [0, 1, 2, 3, 4].map(width);
    let mut text = format!("{machine}\n\n");
    for [what, who, runs, median, p99, aim] in &lines {
        let line = format!("{what:<a$}  {who:<b$}  {runs:>c$}  {median:>d$}  {p99:>e$}  {aim}");
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

/// For programs.
pub(crate) fn json(machine: &str, rows: &[Row]) -> Value {
    json!({ "machine": machine, "rows": rows.iter().map(Row::json).collect::<Vec<_>>() })
}
