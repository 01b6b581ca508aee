//! What people and scripts see: the answer on stdout, everything else on stderr.
//!
//! With `--json` stdout carries JSON alone. Colours and bars only where a person looks. Rendering
//! itself is pure (`table`, `views`): data in, text out.

pub(crate) mod human;
mod lines;
pub(crate) mod progress;
pub(crate) mod rollouts;
pub(crate) mod table;
pub(crate) mod views;

use std::io::{self, IsTerminal as _, Write as _};

use serde::Serialize;

use crate::args::{Color, Global};
use crate::error::CliError;
use table::Tone;

/// The output of one command.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Out {
    json: bool,
    /// Progress may move: stderr is a terminal and nobody asked for JSON.
    moving: bool,
    /// Lines must fit this; `None` when no one sees them wrap.
    width: Option<usize>,
}

impl Out {
    /// Follows the flags and what stdout and stderr are.
    pub(crate) fn new(global: &Global) -> Self {
        let choice = match global.color {
            Color::Auto => anstream::ColorChoice::Auto,
            Color::Always => anstream::ColorChoice::Always,
            Color::Never => anstream::ColorChoice::Never,
        };
        choice.write_global();
        let moving = !global.json && global.color != Color::Never && io::stderr().is_terminal();
        let stdout = io::stdout();
        let width = if stdout.is_terminal() {
            rustix::termios::tcgetwinsize(&stdout)
                .ok()
                .map(|size| usize::from(size.ws_col))
        } else {
            None
        };
        Self {
            json: global.json,
            moving,
            width: width.filter(|width| *width > 0),
        }
    }

    /// Whether to answer in JSON.
    pub(crate) fn is_json(&self) -> bool {
        self.json
    }

    /// Whether bars may move on stderr.
    pub(crate) fn moves(&self) -> bool {
        self.moving
    }

    /// The width that lines must fit.
    pub(crate) fn width(&self) -> Option<usize> {
        self.width
    }

    /// Text as it is, to stdout.
    pub(crate) fn text(&self, text: &str) -> Result<(), CliError> {
        let mut stdout = anstream::stdout().lock();
        stdout.write_all(text.as_bytes())?;
        Ok(stdout.flush()?)
    }

    /// A line to stdout.
    pub(crate) fn line(&self, text: &str) -> Result<(), CliError> {
        self.text(&format!("{text}\n"))
    }

    /// One JSON value, on lines of its own.
    pub(crate) fn json(&self, value: &impl Serialize) -> Result<(), CliError> {
        self.write_json(serde_json::to_string_pretty(value))
    }

    /// One JSON value on one line: a stream of objects.
    pub(crate) fn json_line(&self, value: &impl Serialize) -> Result<(), CliError> {
        self.write_json(serde_json::to_string(value))
    }

    fn write_json(&self, text: serde_json::Result<String>) -> Result<(), CliError> {
        let text = text.map_err(|error| {
            CliError::bug("the answer cannot be written as JSON", error.to_string())
        })?;
        // No escape codes in it, and none to be taken out.
        let mut stdout = io::stdout().lock();
        writeln!(stdout, "{text}")?;
        Ok(stdout.flush()?)
    }

    /// A remark to stderr; silent with `--json`.
    pub(crate) fn note(&self, text: &str) {
        if !self.json {
            // A remark that nobody can read is no failure.
            let _ = writeln!(anstream::stderr().lock(), "{text}");
        }
    }
}

/// Prints the one error of a run.
pub(crate) fn print_error(error: &CliError, json: bool) {
    if error.quiet {
        return;
    }
    // When stderr is closed the exit code still tells.
    let _ = if json {
        let body = serde_json::to_string(&error.to_body()).expect("plain data is JSON");
        writeln!(io::stderr().lock(), "{body}")
    } else {
        anstream::stderr()
            .lock()
            .write_all(render_error(error).as_bytes())
    };
}

/// `error: what`, every problem, `why:`, `fix:`.
pub(crate) fn render_error(error: &CliError) -> String {
    let mut text = format!("{} {}\n", Tone::Bad.paint("error:"), error.what);
    for problem in &error.problems {
        text.push_str(&format!("  {}\n", error.place(problem)));
    }
    for (label, body) in [("why:", &error.why), ("fix:", &error.fix)] {
        if !body.is_empty() {
            let hanging = body.replace('\n', "\n       ");
            text.push_str(&format!("  {} {hanging}\n", Tone::Dim.paint(label)));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use wasmorch_api::Problem;

    use super::*;
    use crate::error::Exit;

    #[test]
    fn errors_say_what_why_and_what_next() {
        let problem = |line: u32, at: &str, what: &str| Problem {
            at: at.into(),
            line: Some(line),
            column: Some(1),
            what: what.into(),
        };
        let error = CliError::new(
            Exit::USAGE,
            "the manifest has 2 mistakes",
            "nothing was deployed",
            "mend them\nand deploy again",
        )
        .with_problems(
            Some(Path::new("wasmorch.toml")),
            vec![
                problem(
                    3,
                    "workload[0].replcas",
                    "unknown key: did you mean `replicas`?",
                ),
                problem(9, "workload[1].name", "is missing"),
            ],
        );
        insta::assert_snapshot!(anstream::adapter::strip_str(&render_error(&error)).to_string());
    }
}
