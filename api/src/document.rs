//! A document as a small tree, with the place of everything in it.
//!
//! Owns the step from text (TOML or JSON) to [`Node`], and syntax errors with line and column. What
//! the keys mean is `manifest`'s. JSON nodes have no places: a request has no lines that its
//! author would look at.
//!
//! Invariant: no text panics or takes more than time and memory proportional to its length; depth is
//! bounded by the parsers (TOML 80, JSON 128).

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use toml::de::{DeTable, DeValue};

use crate::error::Problem;

/// A text longer than this is no manifest: 4 MiB.
pub const TEXT_BYTES_MAX: usize = 4 * 1024 * 1024;

/// A place in a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// From 1.
    pub line: u32,
    /// In characters, from 1.
    pub column: u32,
}

/// One value, and where it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// The value.
    pub value: Value,
    /// Where it begins; `None` in JSON.
    pub at: Option<Position>,
}

/// What a node holds.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// JSON's `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A whole number.
    Integer(i128),
    /// Any other number.
    Float(f64),
    /// A text.
    String(String),
    /// TOML's date or time, as it was written.
    Datetime(String),
    /// A list.
    Array(Vec<Node>),
    /// Keys and values in the order written; no key twice.
    Table(Vec<Entry>),
}

/// One key of a table.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// Where the key stands.
    pub at: Option<Position>,
    /// Its value.
    pub node: Node,
}

impl Value {
    /// The word for it in messages: `an integer`.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "true or false",
            Self::Integer(_) => "an integer",
            Self::Float(_) => "a number with a fraction",
            Self::String(_) => "a text",
            Self::Datetime(_) => "a date",
            Self::Array(_) => "a list",
            Self::Table(_) => "a table",
        }
    }
}

impl Node {
    /// The value of a key, when this is a table that has it.
    pub fn get(&self, key: &str) -> Option<&Node> {
        match &self.value {
            Value::Table(entries) => entries
                .iter()
                .find(|entry| entry.key == key)
                .map(|entry| &entry.node),
            _ => None,
        }
    }
}

/// Reads TOML. Every syntax error is reported, at most one a line: what follows on the same line is
/// most often a consequence.
pub fn from_toml(text: &str) -> Result<Node, Vec<Problem>> {
    if text.len() > TEXT_BYTES_MAX {
        return Err(vec![too_long(text.len())]);
    }
    let mut places = Places::new(text);
    let (table, errors) = DeTable::parse_recoverable(text);
    if errors.is_empty() {
        return Ok(Node {
            value: table_value(table.get_ref(), &mut places),
            at: Some(Position { line: 1, column: 1 }),
        });
    }
    let mut errors: Vec<_> = errors
        .iter()
        .map(|error| (error.span().map_or(0, |span| span.start), error.message()))
        .collect();
    errors.sort_by_key(|(offset, _)| *offset);
    let mut problems: Vec<Problem> = Vec::new();
    for (offset, message) in errors {
        let at = places.find(offset);
        if problems
            .last()
            .is_none_or(|last| last.line != Some(at.line))
        {
            problems.push(syntax(at, message));
        }
    }
    Err(problems)
}

/// Reads JSON. The first syntax error ends it; a key that stands twice in one object is one.
pub fn from_json(body: &[u8]) -> Result<Node, Vec<Problem>> {
    if body.len() > TEXT_BYTES_MAX {
        return Err(vec![too_long(body.len())]);
    }
    serde_json::from_slice(body).map_err(|error| {
        let at = Position {
            line: u32::try_from(error.line()).unwrap_or(u32::MAX),
            column: u32::try_from(error.column().max(1)).unwrap_or(u32::MAX),
        };
        let message = error.to_string();
        // serde_json ends its message with the place, which the problem carries already.
        let message = message
            .rsplit_once(" at line ")
            .map_or(message.as_str(), |(what, _)| what);
        vec![syntax(at, message)]
    })
}

fn too_long(bytes: usize) -> Problem {
    let what = format!("is {bytes} bytes long; at most {TEXT_BYTES_MAX} are read");
    Problem {
        at: String::new(),
        line: None,
        column: None,
        what,
    }
}

fn syntax(at: Position, message: &str) -> Problem {
    Problem {
        at: String::new(),
        line: Some(at.line),
        column: Some(at.column),
        what: format!("syntax: {message}"),
    }
}

fn table_value(table: &DeTable<'_>, places: &mut Places<'_>) -> Value {
    let mut entries: Vec<_> = table.iter().collect();
    // toml sorts by key; a reader goes from top to bottom.
    entries.sort_by_key(|(key, _)| key.span().start);
    let entries = entries
        .into_iter()
        .map(|(key, value)| Entry {
            key: key.get_ref().to_string(),
            at: Some(places.find(key.span().start)),
            node: Node {
                at: Some(places.find(value.span().start)),
                value: toml_value(value.get_ref(), places),
            },
        })
        .collect();
    Value::Table(entries)
}

fn toml_value(value: &DeValue<'_>, places: &mut Places<'_>) -> Value {
    match value {
        DeValue::String(text) => Value::String(text.to_string()),
        DeValue::Integer(number) => match i128::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) => Value::Integer(number),
            // More than 38 digits: no key takes such a number, and the message shows it as written.
            Err(_) => Value::Float(number.as_str().parse().unwrap_or(f64::INFINITY)),
        },
        DeValue::Float(number) => Value::Float(number.as_str().parse().unwrap_or(f64::NAN)),
        DeValue::Boolean(value) => Value::Bool(*value),
        DeValue::Datetime(time) => Value::Datetime(time.to_string()),
        DeValue::Array(items) => Value::Array(
            items
                .iter()
                .map(|item| Node {
                    at: Some(places.find(item.span().start)),
                    value: toml_value(item.get_ref(), places),
                })
                .collect(),
        ),
        DeValue::Table(table) => table_value(table, places),
    }
}

/// Turns offsets into places. Goes on from the last one, since offsets come mostly in order: a text
/// of one long line then still takes linear time.
struct Places<'a> {
    text: &'a str,
    line_starts: Vec<usize>,
    last: (usize, Position),
}

impl<'a> Places<'a> {
    fn new(text: &'a str) -> Self {
        let starts = text.match_indices('\n').map(|(at, _)| at + 1);
        Self {
            text,
            line_starts: std::iter::once(0).chain(starts).collect(),
            last: (0, Position { line: 1, column: 1 }),
        }
    }

    fn find(&mut self, offset: usize) -> Position {
        let mut offset = offset.min(self.text.len());
        while !self.text.is_char_boundary(offset) {
            offset -= 1;
        }
        let line = self.line_starts.partition_point(|start| *start <= offset);
        let line_number = u32::try_from(line).unwrap_or(u32::MAX);
        let (from, column) = match self.last {
            (from, at) if at.line == line_number && from <= offset => (from, at.column),
            _ => (self.line_starts[line - 1], 1),
        };
        let further = self.text[from..offset].chars().count();
        let column = column.saturating_add(u32::try_from(further).unwrap_or(u32::MAX));
        let position = Position {
            line: line_number,
            column,
        };
        self.last = (offset, position);
        position
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

fn placeless<E>(value: Value) -> Result<Node, E> {
    Ok(Node { value, at: None })
}

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON")
    }
    fn visit_unit<E>(self) -> Result<Node, E> {
        placeless(Value::Null)
    }
    fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
        placeless(Value::Bool(value))
    }
    fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
        placeless(Value::Integer(value.into()))
    }
    fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
        placeless(Value::Integer(value.into()))
    }
    fn visit_f64<E>(self, value: f64) -> Result<Node, E> {
        placeless(Value::Float(value))
    }
    fn visit_str<E>(self, value: &str) -> Result<Node, E> {
        placeless(Value::String(value.to_owned()))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Node, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        placeless(Value::Array(list))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        let mut seen = std::collections::HashSet::new();
        let mut entries: Vec<Entry> = Vec::new();
        while let Some(key) = map.next_key::<String>()? {
            if !seen.insert(key.clone()) {
                return Err(serde::de::Error::custom(format!(
                    "the key `{key}` stands twice"
                )));
            }
            entries.push(Entry {
                key,
                at: None,
                node: map.next_value()?,
            });
        }
        placeless(Value::Table(entries))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn places_count_characters_from_one() {
        let node =
            from_toml("a = 1\nb = { x = 'ü', z = [1, 2] }\n[c.d]\ne = 1979-05-27\n").unwrap();
        let b = node.get("b").unwrap();
        assert_eq!(b.at, Some(Position { line: 2, column: 5 }));
        let Value::Table(entries) = &b.value else {
            panic!("{b:?}")
        };
        assert_eq!(
            entries[1].at,
            Some(Position {
                line: 2,
                column: 16
            })
        );
        let Value::Array(items) = &b.get("z").unwrap().value else {
            panic!("{b:?}")
        };
        assert_eq!(
            items[1].at,
            Some(Position {
                line: 2,
                column: 24
            })
        );
        let e = node.get("c").unwrap().get("d").unwrap().get("e").unwrap();
        assert_eq!(e.value, Value::Datetime("1979-05-27".into()));
        assert_eq!(e.at, Some(Position { line: 4, column: 5 }));
    }

    #[test]
    fn syntax_errors_have_a_place() {
        let problems = from_toml("a = 1\nb = [1,\nc = = 2\na = 3\n").unwrap_err();
        assert_eq!(
            (problems[0].line, problems[0].column.is_some()),
            (Some(3), true),
            "{problems:?}"
        );
        let problems = from_json(b"{\"a\": 1,\n \"a\": 2}").unwrap_err();
        assert_eq!(problems[0].line, Some(2));
        assert_eq!(problems[0].what, "syntax: the key `a` stands twice");
        assert!(from_json(b"").is_err());
        assert!(from_json(&b"[".repeat(10_000)).is_err());
        assert!(from_toml(&"a = [".repeat(10_000)).is_err());
        assert!(from_toml(&" ".repeat(TEXT_BYTES_MAX + 1)).is_err());
    }

    #[test]
    fn one_long_line_takes_linear_time() {
        let line = format!("a = [{}]", "'ü', ".repeat(200_000));
        let node = from_toml(&line).unwrap();
        let Value::Array(items) = &node.get("a").unwrap().value else {
            panic!()
        };
        assert_eq!(
            items[199_999].at,
            Some(Position {
                line: 1,
                column: 6 + 199_999 * 5
            })
        );
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,200}", toml_like in "([a-c]( = |\\.)?['\"\\[\\]{}0-9.,\n #-]{0,6}){0,20}") {
            let _ = from_toml(&text);
            let _ = from_toml(&toml_like);
            let _ = from_json(text.as_bytes());
            let _ = from_json(toml_like.as_bytes());
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = from_json(&bytes);
        }
    }
}
