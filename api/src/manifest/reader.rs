//! Typed reading of a [`Node`] that collects every mistake instead of ending at the first.
//!
//! Owns how a mistake is worded and placed. The keys of a table are those that were asked for:
//! there is no second list of them to keep in step. It must not know any key by name.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::str::FromStr;

use crate::document::{Entry, Node, Position, Value};
use crate::error::Problem;

/// More mistakes than this are only counted: a reply must fit a message, and a person's patience.
const PROBLEMS_MAX: usize = 100;

/// A text of the input is echoed no longer than this.
const ECHO_CHARS_MAX: usize = 60;

/// Where mistakes go, and where the keys that were read stand.
#[derive(Default)]
pub(super) struct Reader {
    problems: RefCell<Vec<Problem>>,
    uncounted: RefCell<usize>,
    places: RefCell<BTreeMap<String, Position>>,
}

impl Reader {
    pub(super) fn problem(&self, at: &str, position: Option<Position>, what: impl Into<String>) {
        let mut problems = self.problems.borrow_mut();
        if problems.len() == PROBLEMS_MAX {
            *self.uncounted.borrow_mut() += 1;
            return;
        }
        problems.push(Problem {
            at: at.to_owned(),
            line: position.map(|at| at.line),
            column: position.map(|at| at.column),
            what: what.into(),
        });
    }

    /// Where the keys read since the last call stand, by their path.
    pub(super) fn take_places(&self) -> BTreeMap<String, Position> {
        self.places.take()
    }

    /// All mistakes, from top to bottom.
    pub(super) fn finish(self) -> Vec<Problem> {
        let mut problems = self.problems.into_inner();
        problems.sort_by_key(|problem| (problem.line, problem.column));
        let uncounted = self.uncounted.into_inner();
        if uncounted > 0 {
            let what = format!("and {uncounted} more mistakes");
            problems.push(Problem {
                at: String::new(),
                line: None,
                column: None,
                what,
            });
        }
        problems
    }
}

/// Takes a value when there was one: what was refused leaves the default.
fn put<T>(slot: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *slot = value;
    }
}

/// At most [`ECHO_CHARS_MAX`] characters of the input, in backticks, control characters escaped.
pub(crate) fn echo(text: &str) -> String {
    let mut short: String = text
        .chars()
        .take(ECHO_CHARS_MAX)
        .flat_map(char::escape_debug)
        .collect();
    if text.chars().nth(ECHO_CHARS_MAX).is_some() {
        short.push_str("...");
    }
    format!("`{short}`")
}

/// One value under its path.
pub(super) struct Field<'a> {
    pub(super) reader: &'a Reader,
    pub(super) node: &'a Node,
    pub(super) path: String,
}

impl<'a> Field<'a> {
    pub(super) fn root(reader: &'a Reader, node: &'a Node) -> Self {
        Self {
            reader,
            node,
            path: String::new(),
        }
    }

    pub(super) fn wrong(&self, what: impl Into<String>) {
        self.reader.problem(&self.path, self.node.at, what);
    }

    fn mismatch(&self, wanted: &str) {
        let mut found = self.node.value.kind().to_owned();
        if let Value::String(text) = &self.node.value {
            found = format!("the text {}", echo(text));
        }
        self.wrong(format!("must be {wanted}, not {found}"));
    }

    pub(super) fn text(&self) -> Option<&'a str> {
        if let Value::String(text) = &self.node.value {
            return Some(text);
        }
        self.mismatch("a text in quotes");
        None
    }

    pub(super) fn flag(&self) -> Option<bool> {
        if let Value::Bool(value) = self.node.value {
            return Some(value);
        }
        self.mismatch("true or false");
        None
    }

    /// A whole number within bounds.
    pub(super) fn integer<T>(&self, range: RangeInclusive<T>) -> Option<T>
    where
        T: TryFrom<i128> + PartialOrd + Display,
    {
        let Value::Integer(number) = self.node.value else {
            self.mismatch("a whole number");
            return None;
        };
        let legal = T::try_from(number)
            .ok()
            .filter(|number| range.contains(number));
        if legal.is_none() {
            self.wrong(format!(
                "must be {} to {}, not {number}",
                range.start(),
                range.end()
            ));
        }
        legal
    }

    /// A value written as text: a name, a digest.
    pub(super) fn parsed<T: FromStr<Err: Display>>(&self) -> Option<T> {
        match self.text()?.parse() {
            Ok(value) => Some(value),
            Err(error) => {
                self.wrong(error.to_string());
                None
            }
        }
    }

    /// A value with a unit, within bounds.
    pub(super) fn unit<T>(&self, range: &RangeInclusive<T>) -> Option<T>
    where
        T: FromStr<Err: Display> + PartialOrd + Display,
    {
        if let Value::Integer(_) | Value::Float(_) = self.node.value {
            let example = ""
                .parse::<T>()
                .err()
                .map(|error| error.to_string())
                .unwrap_or_default();
            let example = example.rsplit(": ").next().unwrap_or_default();
            self.wrong(format!("must be a text with its unit: {example}"));
            return None;
        }
        let value: T = self.parsed()?;
        if range.contains(&value) {
            return Some(value);
        }
        self.wrong(format!(
            "must be {} to {}, not {value}",
            range.start(),
            range.end()
        ));
        None
    }

    /// One of a few words.
    pub(super) fn choice<T: Copy>(&self, words: &[(&str, T)]) -> Option<T> {
        let text = self.text()?;
        let found = words
            .iter()
            .find(|(word, _)| *word == text)
            .map(|(_, value)| *value);
        if found.is_none() {
            let all: Vec<_> = words.iter().map(|(word, _)| format!("`{word}`")).collect();
            let hint = nearest(text, words.iter().map(|(word, _)| *word))
                .map_or_else(String::new, |word| format!(": did you mean `{word}`?"));
            self.wrong(format!(
                "must be {}, not {}{hint}",
                all.join(" or "),
                echo(text)
            ));
        }
        found
    }

    /// A list of at most so many; what is wrong in it is reported and left out.
    pub(super) fn list<T>(
        &self,
        most: usize,
        each: impl Fn(Field<'a>) -> Option<T>,
    ) -> Option<Vec<T>> {
        let Value::Array(items) = &self.node.value else {
            self.mismatch("a list");
            return None;
        };
        if items.len() > most {
            self.wrong(format!(
                "has {} entries; at most {most} are accepted",
                items.len()
            ));
            return None;
        }
        let field = |(index, node)| Field {
            reader: self.reader,
            node,
            path: format!("{}[{index}]", self.path),
        };
        Some(
            items
                .iter()
                .enumerate()
                .map(field)
                .filter_map(each)
                .collect(),
        )
    }

    /// A table whose keys the user chooses.
    pub(super) fn map<T>(
        &self,
        most: usize,
        each: impl Fn(&str, Field<'a>) -> Option<T>,
    ) -> Option<BTreeMap<String, T>> {
        let entries = self.entries()?;
        if entries.len() > most {
            self.wrong(format!(
                "has {} keys; at most {most} are accepted",
                entries.len()
            ));
            return None;
        }
        let entry = |entry: &'a Entry| {
            let field = self.reader.field(&self.path, entry);
            Some((entry.key.clone(), each(&entry.key, field)?))
        };
        Some(entries.iter().filter_map(entry).collect())
    }

    fn entries(&self) -> Option<&'a [Entry]> {
        if let Value::Table(entries) = &self.node.value {
            return Some(entries);
        }
        self.mismatch("a table");
        None
    }

    /// A table whose keys are known. The caller asks for each and ends with [`Fields::finish`].
    pub(super) fn table(&self) -> Option<Fields<'a>> {
        Some(Fields {
            reader: self.reader,
            entries: self.entries()?,
            path: self.path.clone(),
            at: self.node.at,
            known: Vec::new(),
        })
    }
}

impl Reader {
    fn field<'a>(&'a self, path: &str, entry: &'a Entry) -> Field<'a> {
        let path = join(path, &entry.key);
        if let Some(at) = entry.at {
            self.places.borrow_mut().insert(path.clone(), at);
        }
        Field {
            reader: self,
            node: &entry.node,
            path,
        }
    }
}

/// The place of a path, or of the nearest one above it that lies below `root`.
pub(super) fn place_of(
    places: &BTreeMap<String, Position>,
    path: &str,
    root: &str,
) -> Option<Position> {
    let mut path = path;
    loop {
        if let Some(place) = places.get(path) {
            return Some(*place);
        }
        path = &path[..path.rfind(['.', '[']).filter(|end| *end > root.len())?];
    }
}

pub(super) fn join(path: &str, key: &str) -> String {
    let bare = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    let key: std::borrow::Cow<'_, str> =
        if !key.is_empty() && key.len() <= 64 && key.chars().all(bare) {
            key.into()
        } else {
            format!("\"{}\"", echo(key).trim_matches('`')).into()
        };
    if path.is_empty() {
        key.into_owned()
    } else {
        format!("{path}.{key}")
    }
}

/// The likeliest of these words, when one is near enough to be meant.
pub(super) fn nearest<'w>(word: &str, words: impl Iterator<Item = &'w str>) -> Option<&'w str> {
    // A longer word is no misspelt key, and the measure is quadratic.
    if word.len() > 64 {
        return None;
    }
    let word = word.to_ascii_lowercase().replace('-', "_");
    words
        .map(|candidate| {
            (
                strsim::jaro_winkler(&word, &candidate.replace('-', "_")),
                candidate,
            )
        })
        .filter(|(likeness, _)| *likeness >= 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

/// The keys of a table, asked for one by one.
pub(super) struct Fields<'a> {
    pub(super) reader: &'a Reader,
    entries: &'a [Entry],
    pub(super) path: String,
    pub(super) at: Option<Position>,
    known: Vec<&'static str>,
}

impl<'a> Fields<'a> {
    /// A mistake of the table as a whole.
    pub(super) fn wrong(&self, what: impl Into<String>) {
        self.reader.problem(&self.path, self.at, what);
    }

    /// A mistake of one key (`max`) or of one below (`update.canary`): at its place when it has been
    /// read, else at the nearest place above.
    pub(super) fn wrong_at(&self, key: &str, what: impl Into<String>) {
        let path = if self.path.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.path)
        };
        let at = place_of(&self.reader.places.borrow(), &path, &self.path).or(self.at);
        self.reader.problem(&path, at, what);
    }

    /// Whether the key stands there, legal or not.
    pub(super) fn has(&self, key: &str) -> bool {
        self.entries.iter().any(|entry| entry.key == key)
    }

    pub(super) fn take(&mut self, key: &'static str) -> Option<Field<'a>> {
        self.known.push(key);
        let entry = self.entries.iter().find(|entry| entry.key == key)?;
        Some(self.reader.field(&self.path, entry))
    }

    pub(super) fn flag(&mut self, key: &'static str, slot: &mut bool) {
        put(slot, self.take(key).and_then(|field| field.flag()));
    }

    pub(super) fn count(&mut self, key: &'static str, range: RangeInclusive<u32>, slot: &mut u32) {
        put(slot, self.take(key).and_then(|field| field.integer(range)));
    }

    pub(super) fn count_option(
        &mut self,
        key: &'static str,
        range: RangeInclusive<u32>,
    ) -> Option<u32> {
        self.take(key)?.integer(range)
    }

    pub(super) fn unit<T>(&mut self, key: &'static str, range: RangeInclusive<T>, slot: &mut T)
    where
        T: FromStr<Err: Display> + PartialOrd + Display,
    {
        put(slot, self.unit_option(key, range));
    }

    pub(super) fn unit_option<T>(
        &mut self,
        key: &'static str,
        range: RangeInclusive<T>,
    ) -> Option<T>
    where
        T: FromStr<Err: Display> + PartialOrd + Display,
    {
        self.take(key)?.unit(&range)
    }

    pub(super) fn choice<T: Copy>(&mut self, key: &'static str, words: &[(&str, T)], slot: &mut T) {
        put(slot, self.take(key).and_then(|field| field.choice(words)));
    }

    /// A list of texts, each checked.
    pub(super) fn texts(
        &mut self,
        key: &'static str,
        most: usize,
        check: impl Fn(&str) -> Result<(), String>,
        slot: &mut Vec<String>,
    ) {
        let Some(field) = self.take(key) else { return };
        let each = |field: Field<'_>| {
            let text = field.text()?;
            check(text).map_err(|what| field.wrong(what)).ok()?;
            Some(text.to_owned())
        };
        if let Some(list) = field.list(most, each) {
            for (index, text) in list.iter().enumerate() {
                if list[..index].contains(text) {
                    field.wrong(format!("names {} twice", echo(text)));
                    break;
                }
            }
            *slot = list;
        }
    }

    /// Every key that was not asked for is a mistake.
    ///
    /// `elsewhere` names what people write here for what stands elsewhere: `("env", "environment")`.
    pub(super) fn finish_with(self, elsewhere: &[(&str, &str)]) {
        for entry in self
            .entries
            .iter()
            .filter(|entry| !self.known.contains(&entry.key.as_str()))
        {
            let meant = elsewhere
                .iter()
                .find(|(word, _)| *word == entry.key)
                .map(|(_, meant)| *meant)
                .or_else(|| nearest(&entry.key, self.known.iter().copied()));
            let hint = match meant {
                Some(meant) => format!("did you mean `{meant}`?"),
                None => format!("the keys here are {}", self.known.join(", ")),
            };
            let path = join(&self.path, &entry.key);
            self.reader
                .problem(&path, entry.at, format!("unknown key: {hint}"));
        }
    }

    /// Every key that was not asked for is a mistake.
    pub(super) fn finish(self) {
        self.finish_with(&[]);
    }
}
