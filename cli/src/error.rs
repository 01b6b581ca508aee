//! How a command fails: what, why, what would fix it, and the exit code that scripts rely on.
//!
//! Owns the table of exit codes (docs/reference.md, "Commands") and how refusals of the API map to
//! it. Errors are printed once, by `main`.

use std::fmt;
use std::io;
use std::path::Path;

use wasmorch_api::error::ErrorBody;
use wasmorch_api::{ApiError, ErrorCode, Problem};

/// What the process ends with. [`Exit::OK`] and [`Exit::UNPLACED`] are answers, the rest failures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Exit(pub(crate) i32);

impl Exit {
    /// Done as asked.
    pub(crate) const OK: Self = Self(0);
    /// Tried and failed: not ready in time, reverted, job failed.
    pub(crate) const FAILED: Self = Self(1);
    /// `plan`: something would stay unplaced.
    pub(crate) const UNPLACED: Self = Self(2);
    /// Usage, name, manifest or spec refused.
    pub(crate) const USAGE: Self = Self(64);
    /// Bytes refused.
    pub(crate) const BYTES: Self = Self(65);
    /// No such file, workload, revision or host.
    pub(crate) const NOT_FOUND: Self = Self(66);
    /// The cluster cannot be reached, is too old, has no JetStream or no leader, or is frozen.
    pub(crate) const UNAVAILABLE: Self = Self(69);
    /// A bug of ours.
    pub(crate) const BUG: Self = Self(70);
    /// Port in use, data folder locked, disk full.
    pub(crate) const BLOCKED: Self = Self(73);
    /// Changed meanwhile, or a rollout is in the way: try again.
    pub(crate) const CONFLICT: Self = Self(75);
    /// Not granted, no right.
    pub(crate) const DENIED: Self = Self(77);
    /// `run`: out of time.
    #[cfg(feature = "compiler")]
    pub(crate) const TIMED_OUT: Self = Self(124);
    /// Interrupted.
    pub(crate) const INTERRUPTED: Self = Self(130);
    /// `run`: the guest trapped.
    #[cfg(feature = "compiler")]
    pub(crate) const TRAP: Self = Self(134);
    /// `run`: the guest ran out of its memory.
    #[cfg(feature = "compiler")]
    pub(crate) const MEMORY: Self = Self(137);

    fn of(code: ErrorCode) -> Self {
        match code {
            ErrorCode::Invalid => Self::USAGE,
            ErrorCode::TooLarge => Self::BYTES,
            ErrorCode::NotFound => Self::NOT_FOUND,
            ErrorCode::Frozen | ErrorCode::Unavailable => Self::UNAVAILABLE,
            ErrorCode::Internal => Self::BUG,
            ErrorCode::Conflict | ErrorCode::Busy => Self::CONFLICT,
            ErrorCode::Denied => Self::DENIED,
        }
    }

    /// The nearest word of the API, for `--json`.
    fn code(self) -> ErrorCode {
        match self {
            Self::NOT_FOUND => ErrorCode::NotFound,
            Self::UNAVAILABLE => ErrorCode::Unavailable,
            Self::CONFLICT | Self::BLOCKED => ErrorCode::Conflict,
            Self::DENIED => ErrorCode::Denied,
            Self::BUG => ErrorCode::Internal,
            _ => ErrorCode::Invalid,
        }
    }
}

/// Why a command failed.
#[derive(Debug, Clone)]
pub(crate) struct CliError {
    pub(crate) exit: Exit,
    pub(crate) what: String,
    pub(crate) why: String,
    pub(crate) fix: String,
    /// Every mistake of a document, and the file it was read from.
    pub(crate) problems: Vec<Problem>,
    pub(crate) file: Option<Box<Path>>,
    /// The API's own code when it refused, or what is nearer than the exit code's word.
    pub(crate) code: Option<ErrorCode>,
    /// There is nobody left to tell: the reader of our output has gone.
    pub(crate) quiet: bool,
}

impl CliError {
    /// A failure; leave `why` or `fix` empty only when there is nothing to say.
    pub(crate) fn new(
        exit: Exit,
        what: impl Into<String>,
        why: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self {
            exit,
            what: what.into(),
            why: why.into(),
            fix: fix.into(),
            problems: Vec::new(),
            file: None,
            code: None,
            quiet: false,
        }
    }

    /// Something in a command's arguments.
    pub(crate) fn usage(what: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::new(Exit::USAGE, what, "", fix)
    }

    /// Ctrl-C before anything was done.
    pub(crate) fn interrupted(what: impl Into<String>) -> Self {
        Self::new(Exit::INTERRUPTED, what, "", "")
    }

    /// A file that cannot be read.
    pub(crate) fn reading(path: &Path, error: &io::Error) -> Self {
        let exit = match error.kind() {
            io::ErrorKind::PermissionDenied => Exit::DENIED,
            _ => Exit::NOT_FOUND,
        };
        let why = match error.kind() {
            io::ErrorKind::NotFound => "no such file".to_owned(),
            io::ErrorKind::IsADirectory => "it is a folder".to_owned(),
            _ => error.to_string(),
        };
        Self::new(exit, format!("cannot read {}", path.display()), why, "")
    }

    /// A file or folder of ours that cannot be written.
    pub(crate) fn writing(path: &Path, error: &io::Error) -> Self {
        let exit = match error.kind() {
            io::ErrorKind::PermissionDenied => Exit::DENIED,
            _ => Exit::BLOCKED,
        };
        Self::new(
            exit,
            format!("cannot write {}", path.display()),
            error.to_string(),
            "",
        )
    }

    /// A mistake of ours.
    pub(crate) fn bug(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self::new(
            Exit::BUG,
            what,
            why,
            "this is a bug of ours: please report it",
        )
    }

    /// The same, with the mistakes of a document.
    #[must_use]
    pub(crate) fn with_problems(mut self, file: Option<&Path>, problems: Vec<Problem>) -> Self {
        self.problems = problems;
        self.file = file.map(Into::into);
        self
    }

    /// The shape that tools read on stderr with `--json`.
    pub(crate) fn to_body(&self) -> ErrorBody {
        ErrorBody {
            error: ApiError {
                code: self.code.unwrap_or_else(|| self.exit.code()),
                what: self.what.clone(),
                why: self.why.clone(),
                fix: self.fix.clone(),
                problems: self.problems.clone(),
            },
        }
    }

    /// A problem with its place in the file: `app.toml:3:5: what`.
    pub(crate) fn place(&self, problem: &Problem) -> String {
        let mut text = String::new();
        if let Some(file) = &self.file {
            text.push_str(&file.display().to_string());
            text.push(':');
            if problem.line.is_none() {
                text.push(' ');
            }
        }
        text.push_str(&problem.to_string());
        text
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        if !self.why.is_empty() {
            write!(f, ": {}", self.why)?;
        }
        Ok(())
    }
}

impl std::error::Error for CliError {}

impl From<ApiError> for CliError {
    fn from(error: ApiError) -> Self {
        Self {
            code: Some(error.code),
            problems: error.problems,
            ..Self::new(Exit::of(error.code), error.what, error.why, error.fix)
        }
    }
}

/// Only writing our own output gives a bare I/O error: files have [`CliError::reading`].
impl From<io::Error> for CliError {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            // `wasmorch ps | head -1`: the reader has what it wanted.
            return Self {
                quiet: true,
                ..Self::new(Exit::OK, "the output was closed", "", "")
            };
        }
        Self {
            // Nothing stands in conflict with anything.
            code: Some(ErrorCode::Unavailable),
            ..Self::new(
                Exit::BLOCKED,
                "cannot write the output",
                error.to_string(),
                "",
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_of_the_api_have_their_exit_codes() {
        for (code, exit) in [
            (ErrorCode::Invalid, 64),
            (ErrorCode::TooLarge, 65),
            (ErrorCode::NotFound, 66),
            (ErrorCode::Frozen, 69),
            (ErrorCode::Unavailable, 69),
            (ErrorCode::Internal, 70),
            (ErrorCode::Conflict, 75),
            (ErrorCode::Busy, 75),
            (ErrorCode::Denied, 77),
        ] {
            let error = CliError::from(ApiError::new(code, "what", "", ""));
            assert_eq!(error.exit, Exit(exit), "{code:?}");
            assert_eq!(error.to_body().error.code, code);
        }
    }

    #[test]
    fn problems_name_their_file() {
        let error = CliError::usage("x", "").with_problems(Some(Path::new("a.toml")), vec![]);
        let problem = |line| Problem {
            at: "workload.name".into(),
            line,
            column: line,
            what: "missing".into(),
        };
        assert_eq!(
            error.place(&problem(Some(3))),
            "a.toml:3:3: workload.name: missing"
        );
        assert_eq!(
            error.place(&problem(None)),
            "a.toml: workload.name: missing"
        );
    }

    #[test]
    fn output_that_cannot_be_written_conflicts_with_nothing() {
        let error = CliError::from(io::Error::from(io::ErrorKind::StorageFull));
        assert_eq!(error.exit, Exit::BLOCKED);
        assert_eq!(error.to_body().error.code, ErrorCode::Unavailable);
    }

    #[test]
    fn a_closed_pipe_is_no_failure() {
        let error = CliError::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert!(error.quiet);
        assert_eq!(error.exit, Exit::OK);
    }
}
