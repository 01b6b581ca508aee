//! Ctrl-C and SIGTERM, for commands that have something to say or to put away before they end.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::error::{CliError, Exit};

/// Both signals that ask a process to end. From its making on they no longer end it by themselves.
pub(crate) struct Interrupt {
    int: Signal,
    term: Signal,
}

impl Interrupt {
    /// Listens from now on.
    pub(crate) fn listen() -> Result<Self, CliError> {
        let wrong = |error: std::io::Error| {
            CliError::new(
                Exit::BUG,
                "signals cannot be listened to",
                error.to_string(),
                "",
            )
        };
        Ok(Self {
            int: signal(SignalKind::interrupt()).map_err(wrong)?,
            term: signal(SignalKind::terminate()).map_err(wrong)?,
        })
    }

    /// The next one. Safe to cancel.
    pub(crate) async fn next(&mut self) {
        tokio::select! {
            _ = self.int.recv() => {}
            _ = self.term.recv() => {}
        }
    }
}
