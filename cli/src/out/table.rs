//! Aligned tables: data in, text out. Narrow enough for the width it is given, by cutting the
//! columns that may be cut.

use anstyle::{AnsiColor, Style};

/// The gap between two columns.
const GAP: usize = 2;
/// No column is cut below this.
const CUT_MIN: usize = 8;

/// How a cell looks. Colour never carries what the text does not say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Tone {
    /// As it is.
    #[default]
    Plain,
    /// All well.
    Good,
    /// Look here.
    Warn,
    /// Wrong.
    Bad,
    /// Of little weight.
    Dim,
    /// The name of something.
    Name,
}

impl Tone {
    /// The escape codes for it.
    pub(crate) fn style(self) -> Style {
        let colour = |colour: AnsiColor| colour.on_default();
        match self {
            Self::Plain => Style::new(),
            Self::Good => colour(AnsiColor::Green),
            Self::Warn => colour(AnsiColor::Yellow),
            Self::Bad => colour(AnsiColor::Red),
            Self::Dim => Style::new().dimmed(),
            Self::Name => Style::new().bold(),
        }
    }

    /// Text in this tone.
    pub(crate) fn paint(self, text: &str) -> String {
        let style = self.style();
        format!("{style}{text}{style:#}")
    }
}

/// One cell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cell {
    text: String,
    tone: Tone,
}

impl Cell {
    /// A cell with a tone.
    pub(crate) fn toned(text: impl ToString, tone: Tone) -> Self {
        Self {
            text: text.to_string(),
            tone,
        }
    }
}

impl<T: ToString> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::toned(text, Tone::Plain)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Left,
    Right,
}

/// A table under construction.
#[derive(Debug, Clone)]
pub(crate) struct Table {
    heads: Vec<&'static str>,
    sides: Vec<Side>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// A table with these heads; a head that begins with `>` is set to the right.
    pub(crate) fn new(heads: &[&'static str]) -> Self {
        let sides = heads.iter().map(|head| {
            if head.starts_with('>') {
                Side::Right
            } else {
                Side::Left
            }
        });
        Self {
            sides: sides.collect(),
            heads: heads
                .iter()
                .map(|head| head.trim_start_matches('>'))
                .collect(),
            rows: Vec::new(),
        }
    }

    /// Adds a row with a cell for every head.
    pub(crate) fn row(&mut self, cells: Vec<Cell>) {
        debug_assert_eq!(cells.len(), self.heads.len());
        self.rows.push(cells);
    }

    /// The text, each line ended. `width`: cut columns until lines fit; `None`: nothing is cut.
    pub(crate) fn render(&self, width: Option<usize>) -> String {
        let used: Vec<usize> = (0..self.heads.len())
            .filter(|at| self.is_used(*at))
            .collect();
        let mut widths: Vec<usize> = used.iter().map(|at| self.width_of(*at)).collect();
        if let Some(width) = width {
            shrink(&mut widths, width);
        }
        let mut text = String::new();
        let heads: Vec<Cell> = self
            .heads
            .iter()
            .map(|head| Cell::toned(head, Tone::Dim))
            .collect();
        for row in std::iter::once(&heads).chain(&self.rows) {
            self.line(&mut text, row, &used, &widths);
        }
        text
    }

    /// A column that is empty in every row says nothing.
    fn is_used(&self, column: usize) -> bool {
        self.rows.is_empty() || self.rows.iter().any(|row| !row[column].text.is_empty())
    }

    fn width_of(&self, column: usize) -> usize {
        let cells = self.rows.iter().map(|row| row[column].text.chars().count());
        cells.max().unwrap_or(0).max(self.heads[column].len())
    }

    fn line(&self, text: &mut String, row: &[Cell], used: &[usize], widths: &[usize]) {
        let last = used.len().saturating_sub(1);
        for (place, (column, width)) in used.iter().zip(widths).enumerate() {
            let cell = &row[*column];
            let shown = cut(&cell.text, *width);
            let padding = " ".repeat(width - shown.chars().count());
            let painted = if shown.is_empty() {
                shown
            } else {
                cell.tone.paint(&shown)
            };
            match self.sides[*column] {
                Side::Right => text.extend([padding.as_str(), painted.as_str()]),
                Side::Left if place == last => text.push_str(&painted),
                Side::Left => text.extend([painted.as_str(), padding.as_str()]),
            }
            if place != last {
                text.push_str(&" ".repeat(GAP));
            }
        }
        text.truncate(text.trim_end_matches(' ').len());
        text.push('\n');
    }
}

/// Takes from the widest column first, so that short columns stay whole.
fn shrink(widths: &mut [usize], width: usize) {
    let gaps = GAP * widths.len().saturating_sub(1);
    let mut over = (widths.iter().sum::<usize>() + gaps).saturating_sub(width);
    while over > 0 {
        let Some(widest) = widths.iter_mut().max().filter(|widest| **widest > CUT_MIN) else {
            return;
        };
        *widest -= 1;
        over -= 1;
    }
}

/// The text, or its beginning and `…`.
fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars()
        .take(width.saturating_sub(1))
        .chain(['…'])
        .collect()
}

/// Lines of `name  value`, the values aligned.
pub(crate) fn pairs(pairs: &[(&str, String)]) -> String {
    let width = pairs
        .iter()
        .map(|(name, _)| name.chars().count())
        .max()
        .unwrap_or(0);
    let mut text = String::new();
    for (name, value) in pairs {
        let padding = " ".repeat(width - name.chars().count() + GAP);
        text.push_str(&Tone::Dim.paint(name));
        text.push_str(&padding);
        // A value of several lines hangs below its first.
        text.push_str(&value.replace('\n', &format!("\n{}", " ".repeat(width + GAP))));
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(text: &str) -> String {
        anstream::adapter::strip_str(text).to_string()
    }

    #[test]
    fn columns_are_aligned_and_empty_ones_left_out() {
        let mut table = Table::new(&["NAME", ">READY", "NOTE", "URL"]);
        table.row(vec![
            "web".into(),
            "2/3".into(),
            "".into(),
            "http://web".into(),
        ]);
        table.row(vec!["orders".into(), "10/10".into(), "".into(), "".into()]);
        let want = "NAME    READY  URL\nweb       2/3  http://web\norders  10/10\n";
        assert_eq!(plain(&table.render(None)), want);
    }

    #[test]
    fn lines_fit_the_width() {
        let mut table = Table::new(&["NAME", "URL"]);
        table.row(vec![
            "web".into(),
            "http://a-very-long-name.default.localhost".into(),
        ]);
        for line in plain(&table.render(Some(30))).lines() {
            assert!(line.chars().count() <= 30, "{line}");
        }
        assert!(plain(&table.render(Some(30))).contains("web   http://a-very-long-name…"));
    }

    #[test]
    fn values_hang_below_their_first_line() {
        assert_eq!(
            plain(&pairs(&[("a", "1\n2".into()), ("long", "3".into())])),
            "a     1\n      2\nlong  3\n"
        );
    }
}
