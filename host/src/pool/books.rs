//! The ledger of a host's runners: made here, wiped here when one of them dies.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use wasmorch_runtime::Ledger;

use super::shares::RunnerIndex;
use crate::runner::ColumnNumber;

/// Which column of the ledger, and its descriptor.
pub(crate) type Column = (ColumnNumber, OwnedFd);

/// See the module's head.
pub(super) struct Books {
    ledger: Arc<Ledger>,
    file: OwnedFd,
    columns: usize,
    rows: usize,
}

impl Books {
    /// A ledger for so many runners and rows. `None`, and said: every runner counts alone.
    pub(super) fn open(columns: usize, rows: usize) -> Option<Self> {
        match Ledger::create(columns, rows) {
            Ok((ledger, file)) => Some(Self {
                ledger,
                file,
                columns,
                rows,
            }),
            Err(error) => {
                tracing::error!(%error, "limits hold for each runner alone, not for all together");
                None
            }
        }
    }

    /// What a runner is given.
    pub(super) fn column(&self, column: RunnerIndex) -> io::Result<Column> {
        let number = ColumnNumber {
            column,
            columns: self.columns,
            rows: self.rows,
        };
        Ok((number, self.file.try_clone()?))
    }

    /// Forgets what a runner that died counted, in these rows and in that of its gateway.
    pub(super) fn wipe(&self, column: RunnerIndex, rows: impl IntoIterator<Item = usize>) {
        self.ledger.wipe(column, Ledger::GATEWAY);
        rows.into_iter()
            .for_each(|row| self.ledger.wipe(column, row));
    }
}
