//! Series of measurements, and how they are shown: one table, or the same as JSON.

use std::fmt::Write as _;

use serde_json::{Value, json};

/// What a series counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Milliseconds.
    Ms,
    /// Mebibytes.
    MiB,
}

impl Unit {
    fn text(self) -> &'static str {
        match self {
            Self::Ms => "ms",
            Self::MiB => "MiB",
        }
    }
}

/// One row: measurements of one thing. Never empty when it is shown.
#[derive(Debug, Clone)]
pub(crate) struct Series {
    what: String,
    unit: Unit,
    aim: Option<f64>,
    values: Vec<f64>,
}

impl Series {
    pub(crate) fn new(what: impl Into<String>, unit: Unit) -> Self {
        Self {
            what: what.into(),
            unit,
            aim: None,
            values: Vec::new(),
        }
    }

    /// Its median should be under this.
    pub(crate) fn aim(mut self, aim: f64) -> Self {
        self.aim = Some(aim);
        self
    }

    pub(crate) fn push(&mut self, value: f64) {
        self.values.push(value);
    }

    /// Nearest rank: always a value that was measured.
    fn percentile(&self, percent: usize) -> f64 {
        let mut sorted = self.values.clone();
        sorted.sort_by(f64::total_cmp);
        let rank = (sorted.len() * percent).div_ceil(100).max(1);
        sorted[rank - 1]
    }

    fn met(&self) -> Option<bool> {
        self.aim.map(|aim| self.percentile(50) < aim)
    }

    fn cells(&self) -> [String; 5] {
        let number = |value: f64| format!("{value:.1} {}", self.unit.text());
        let aim = match (self.aim, self.met()) {
            (Some(aim), Some(met)) => {
                format!(
                    "< {aim} {}: {}",
                    self.unit.text(),
                    if met { "met" } else { "missed" }
                )
            }
            _ => String::new(),
        };
        [
            self.what.clone(),
            self.values.len().to_string(),
            number(self.percentile(50)),
            number(self.percentile(90)),
            aim,
        ]
    }

    fn json(&self) -> Value {
        json!({
            "what": self.what, "unit": self.unit.text(), "runs": self.values.len(),
            "median": self.percentile(50), "p90": self.percentile(90),
            "aim": self.aim, "met": self.met(), "values": self.values,
        })
    }
}

/// Everything that one benchmark says.
pub(crate) struct Report {
    /// Where it ran, as label and text.
    pub(crate) machine: Vec<(String, String)>,
    /// What was measured.
    pub(crate) series: Vec<Series>,
    /// What to know when reading it, skipped parts included.
    pub(crate) notes: Vec<String>,
    /// What others promise or reach.
    pub(crate) peer: &'static str,
}

impl Report {
    /// For people.
    pub(crate) fn table(&self) -> String {
        let mut text = String::new();
        for (label, fact) in &self.machine {
            line(&mut text, &format!("{label:<13}{fact}"));
        }
        text.push('\n');
        let head = ["measured", "runs", "median", "p90", "aim for the median"].map(str::to_owned);
        let rows: Vec<_> = std::iter::once(head)
            .chain(self.series.iter().map(Series::cells))
            .collect();
        let width = |column: usize| {
            rows.iter()
                .map(|row| row[column].chars().count())
                .max()
                .unwrap_or_default()
        };
        let [what, runs, median, p90] = [0, 1, 2, 3].map(width);
        for row in &rows {
            let [a, b, c, d, e] = row;
            line(
                &mut text,
                &format!("{a:<what$}  {b:>runs$}  {c:>median$}  {d:>p90$}  {e}"),
            );
        }
        text.push('\n');
        for note in &self.notes {
            line(&mut text, &format!("note: {note}"));
        }
        line(&mut text, &format!("peer: {}", self.peer));
        text
    }

    /// For programs.
    pub(crate) fn json(&self) -> Value {
        json!({
            "machine": crate::machine::json(&self.machine),
            "series": self.series.iter().map(Series::json).collect::<Vec<_>>(),
            "notes": self.notes, "peer": self.peer,
        })
    }
}

fn line(text: &mut String, line: &str) {
    writeln!(text, "{}", line.trim_end()).expect("a String takes everything");
}

/// Of sorted times; none at all count as 0.
pub(crate) fn percentile(sorted: &[f64], percent: usize) -> f64 {
    let at = (sorted.len() * percent).div_ceil(100).max(1) - 1;
    sorted.get(at).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(values: impl IntoIterator<Item = u32>) -> Series {
        let mut series = Series::new("a thing", Unit::Ms).aim(11.0);
        values
            .into_iter()
            .for_each(|value| series.push(f64::from(value)));
        series
    }

    #[test]
    fn percentiles_are_measured_values_whatever_the_order() {
        let series = series((1..=20).rev());
        assert!((series.percentile(50) - 10.0).abs() < f64::EPSILON);
        assert!((series.percentile(90) - 18.0).abs() < f64::EPSILON);
        assert_eq!(series.met(), Some(true));
    }

    #[test]
    fn one_run_is_its_own_median_and_an_aim_can_be_missed() {
        let series = series([11]);
        assert!((series.percentile(50) - 11.0).abs() < f64::EPSILON);
        assert_eq!(series.met(), Some(false), "an aim is `less than`");
    }

    #[test]
    fn the_columns_stand_under_each_other() {
        let report = Report {
            machine: vec![("cores".into(), "2".into())],
            series: vec![
                series([1, 2, 3]),
                Series {
                    aim: None,
                    ..series([12_345])
                },
            ],
            notes: vec!["a note".into()],
            peer: "a peer",
        };
        let expected = "\
cores        2

measured  runs      median         p90  aim for the median
a thing      3      2.0 ms      3.0 ms  < 11 ms: met
a thing      1  12345.0 ms  12345.0 ms

note: a note
peer: a peer
";
        assert_eq!(report.table(), expected);
    }
}
