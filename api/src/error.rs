//! Refusals: one shape for every error that crosses a boundary.
//!
//! A refusal says what was refused, why, and what would make it pass. Mistakes in a document come
//! all at once, each with its place. Exit codes are the command line's, derived from `code`.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What kind of refusal; each has a number that NATS tools show.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The request or what it names is malformed.
    Invalid,
    /// Not granted, or no right.
    Denied,
    /// No such thing.
    NotFound,
    /// Changed meanwhile, or something is in the way: try again.
    Conflict,
    /// Over a size limit.
    TooLarge,
    /// Too much at once: try again later.
    Busy,
    /// A bug of ours.
    Internal,
    /// The cluster is frozen: it only answers questions.
    Frozen,
    /// No leader, or no store.
    Unavailable,
}

impl ErrorCode {
    /// The number in `Nats-Service-Error-Code`.
    pub const fn number(self) -> u16 {
        match self {
            Self::Invalid => 400,
            Self::Denied => 403,
            Self::NotFound => 404,
            Self::Conflict => 409,
            Self::TooLarge => 413,
            Self::Busy => 429,
            Self::Internal => 500,
            Self::Frozen | Self::Unavailable => 503,
        }
    }

    /// The word in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::Denied => "denied",
            Self::NotFound => "not_found",
            Self::Conflict => "conflict",
            Self::TooLarge => "too_large",
            Self::Busy => "busy",
            Self::Internal => "internal",
            Self::Frozen => "frozen",
            Self::Unavailable => "unavailable",
        }
    }
}

/// One mistake in a document, with its place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// The path: `workload[0].update.max_surge`.
    pub at: String,
    /// Line, from 1, when the document has lines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<u32>,
    /// Column, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub column: Option<u32>,
    /// What is wrong, and what would be right.
    pub what: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let (Some(line), Some(column)) = (self.line, self.column) {
            write!(f, "{line}:{column}: ")?;
        }
        if !self.at.is_empty() {
            write!(f, "{}: ", self.at)?;
        }
        f.write_str(&self.what)
    }
}

/// A refusal, as the API answers it: `{"error": {..}}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub struct ApiError {
    /// What kind.
    pub code: ErrorCode,
    /// What was refused or failed.
    pub what: String,
    /// Why.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub why: String,
    /// What would make it pass.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub fix: String,
    /// Every mistake, when it was a document.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<Problem>,
}

impl ApiError {
    /// A refusal with its three sentences; leave one empty only when there is nothing to say.
    pub fn new(
        code: ErrorCode,
        what: impl Into<String>,
        why: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self {
            code,
            what: what.into(),
            why: why.into(),
            fix: fix.into(),
            problems: Vec::new(),
        }
    }

    /// A refused document.
    pub fn invalid(what: impl Into<String>, problems: Vec<Problem>) -> Self {
        Self {
            code: ErrorCode::Invalid,
            what: what.into(),
            why: String::new(),
            fix: String::new(),
            problems,
        }
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        if !self.why.is_empty() {
            write!(f, ": {}", self.why)?;
        }
        for problem in &self.problems {
            write!(f, "\n  {problem}")?;
        }
        Ok(())
    }
}

/// An error and what caused it, in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // Many libraries repeat their source in their own text.
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

/// The body of every refusal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// The refusal.
    pub error: ApiError,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Failed {
        text: &'static str,
        source: Option<Box<Failed>>,
    }

    fn failed(text: &'static str, source: Option<Failed>) -> Failed {
        let source = source.map(Box::new);
        Failed { text, source }
    }

    #[test]
    fn causes_are_told_once() {
        assert_eq!(chain(&failed("a", None)), "a");
        let end = failed("the end", None);
        let said = failed("b says: the end", Some(end));
        let error = failed("a", Some(said));
        assert_eq!(chain(&error), "a: b says: the end");
    }
}
