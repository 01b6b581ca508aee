//! This runner's column of the host's ledger: where it counts what replicas use, beside the others.

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use wasmorch_gateway::Crowd;
use wasmorch_runtime::{Account, Field, Ledger};

/// Which column of which ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ColumnNumber {
    /// This runner's.
    pub column: usize,
    /// How many there are.
    pub columns: usize,
    /// How many rows.
    pub rows: usize,
}

/// See the module's head.
#[derive(Debug)]
pub(super) struct Column {
    ledger: Arc<Ledger>,
    column: usize,
}

impl Column {
    /// Opens what the daemon handed over. A ledger that cannot be opened is said, and done
    /// without: limits then hold in each runner for itself.
    pub(super) fn open(file: &OwnedFd, number: ColumnNumber) -> Option<Self> {
        let ColumnNumber {
            column,
            columns,
            rows,
        } = number;
        match Ledger::open(file.as_fd(), columns, rows) {
            Ok(ledger) => Some(Self { ledger, column }),
            Err(error) => {
                tracing::error!(%error, "limits hold for each runner alone, not for all together");
                None
            }
        }
    }

    /// The gateways of all runners of this host.
    pub(super) fn gateways(&self) -> Gateways {
        Gateways(self.account(Ledger::GATEWAY))
    }

    /// A row, as this runner writes it.
    pub(super) fn account(&self, row: usize) -> Account {
        Account::new(self.ledger.clone(), self.column, row)
    }
}

/// The gateways of all runners of this host, which accept from the same listener.
#[derive(Debug, Clone)]
pub(super) struct Gateways(Account);

impl Gateways {
    /// Whether this runner's gateway accepts.
    pub(super) fn accepts(&self, accepts: bool) {
        self.0.set(Field::Accepts, u64::from(accepts));
    }
}

impl Crowd for Gateways {
    fn tell(&self, open: usize) {
        self.0.set(Field::Connections, open as u64);
    }

    fn share(&self) -> usize {
        let share = self.0.sum(Field::Connections);
        let among = self.0.sum(Field::Accepts).max(1);
        usize::try_from(share.div_ceil(among)).unwrap_or(usize::MAX)
    }
}
