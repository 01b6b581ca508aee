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

    /// Forgets everything that a runner that died counted: also in rows of replicas that are gone,
    /// where it may have been about to give back when it died.
    pub(super) fn wipe(&self, column: RunnerIndex) {
        (0..self.rows).for_each(|row| self.ledger.wipe(column, row));
    }
}

#[cfg(test)]
mod tests {
    use wasmorch_runtime::{Account, Field};

    use super::*;

    #[test]
    fn a_dead_runner_leaves_nothing_in_any_row() {
        let books = Books::open(2, 4).unwrap();
        let count = |column, row| Account::new(books.ledger.clone(), column, row);
        for row in 0..4 {
            count(0, row).set(Field::InFlight, 1);
            count(1, row).set(Field::InFlight, 2);
        }
        books.wipe(0);
        for row in 0..4 {
            assert_eq!(count(0, row).sum(Field::InFlight), 2, "only the other's");
        }
    }
}
