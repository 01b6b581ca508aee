//! Counters of replicas that several processes share: what a replica may use is counted over all
//! of them.
//!
//! ```text
//!                 row 0       row 1       ..      a row a replica, chosen by the daemon
//!   column 0    m i q c ..  m i q c ..            written by runner 0 alone
//!   column 1    m i q c ..  m i q c ..            written by runner 1 alone
//! ```
//!
//! A sum is the sum over the columns. Since each has one writer, a process that dies leaves
//! exactly its own column behind, and whoever outlives it wipes that: nothing is counted twice,
//! and nothing for ever.
//!
//! Owns the mapping: one of two places with `unsafe`, the other is `cache.rs`. It knows no replicas. A sum
//! is not a snapshot: two runners that take at the same moment see each other and may both be
//! refused, never both let in.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::{fmt, io};

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mm::{MapFlags, ProtFlags};

/// What is counted. Eight at the most: see [`STRIDE`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum Field {
    /// Linear memory, in bytes.
    Memory,
    /// Requests, messages or runs in progress.
    InFlight,
    /// Those that wait for a seat.
    Queued,
    /// Processor time in one window: its number above, microseconds in it below.
    CpuWindow,
    /// Connections of the runner's gateway (only in [`Ledger::GATEWAY`]).
    Connections,
    /// The runner accepts connections: 1 (only in [`Ledger::GATEWAY`]).
    Accepts,
    /// Open files, sockets and streams.
    Handles,
}

/// Counters of one row in one column: a cache line, so that runners do not wait for each other's.
const STRIDE: usize = 8;

/// See the module's head.
pub struct Ledger {
    cells: Cells,
    columns: usize,
    rows: usize,
}

enum Cells {
    Own(Box<[AtomicU64]>),
    Shared(Mapping),
}

impl Ledger {
    /// The row of the gateways, which belongs to no replica.
    pub const GATEWAY: usize = 0;

    /// One row of one column, in this process alone.
    fn own() -> Arc<Self> {
        let cells = (0..STRIDE).map(|_| AtomicU64::new(0)).collect();
        Arc::new(Self {
            cells: Cells::Own(cells),
            columns: 1,
            rows: 1,
        })
    }

    /// Makes one for `columns` runners, and the descriptor by which they open it.
    ///
    /// # Errors
    ///
    /// When the system has no memory for it. What is never written takes none.
    pub fn create(columns: usize, rows: usize) -> io::Result<(Arc<Self>, OwnedFd)> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = rustix::fs::memfd_create("wasmorch-ledger", flags)?;
        let bytes = bytes(columns, rows)?;
        rustix::fs::ftruncate(&file, bytes as u64)?;
        // Its size is for ever: a mapping beyond the end of a file would be a crash.
        let sealed = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        rustix::fs::fcntl_add_seals(&file, sealed)?;
        Ok((Self::open(file.as_fd(), columns, rows)?, file))
    }

    /// Opens one that another process made with the same numbers.
    ///
    /// # Errors
    ///
    /// When the descriptor is of something else, or it cannot be mapped.
    pub fn open(file: BorrowedFd<'_>, columns: usize, rows: usize) -> io::Result<Arc<Self>> {
        let mapping = Mapping::of(file, bytes(columns, rows)?)?;
        Ok(Arc::new(Self {
            cells: Cells::Shared(mapping),
            columns,
            rows,
        }))
    }

    fn cells(&self) -> &[AtomicU64] {
        match &self.cells {
            Cells::Own(cells) => cells,
            Cells::Shared(mapping) => mapping.cells(),
        }
    }

    fn cell(&self, column: usize, row: usize, field: Field) -> Option<&AtomicU64> {
        let inside = column < self.columns && row < self.rows;
        let index = (column * self.rows + row) * STRIDE + field as usize;
        inside.then(|| self.cells().get(index)).flatten()
    }

    /// Forgets what a runner that has died counted in a row.
    pub fn wipe(&self, column: usize, row: usize) {
        let index = (column * self.rows + row) * STRIDE;
        if column < self.columns && row < self.rows {
            let cells = self.cells().get(index..index + STRIDE);
            cells
                .into_iter()
                .flatten()
                .for_each(|cell| cell.store(0, SeqCst));
        }
    }
}

impl fmt::Debug for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ledger")
            .field("columns", &self.columns)
            .field("rows", &self.rows)
            .finish_non_exhaustive()
    }
}

fn bytes(columns: usize, rows: usize) -> io::Result<usize> {
    columns
        .checked_mul(rows)
        .and_then(|lines| lines.checked_mul(STRIDE * size_of::<AtomicU64>()))
        .filter(|bytes| *bytes > 0)
        .ok_or_else(|| io::Error::other("a ledger of no size, or of too large a one"))
}

/// One row as one runner writes it.
#[derive(Debug, Clone)]
pub struct Account {
    ledger: Arc<Ledger>,
    column: usize,
    row: usize,
}

impl Account {
    /// A row of a ledger, as the runner of this column.
    pub fn new(ledger: Arc<Ledger>, column: usize, row: usize) -> Self {
        Self {
            ledger,
            column,
            row,
        }
    }

    /// One that no other process has a part in.
    pub fn alone() -> Self {
        Self::new(Ledger::own(), 0, 0)
    }

    /// Whether nobody else counts here.
    pub(crate) fn is_alone(&self) -> bool {
        self.ledger.columns == 1
    }

    fn mine(&self, field: Field) -> Option<&AtomicU64> {
        self.ledger.cell(self.column, self.row, field)
    }

    /// What this runner counted.
    pub fn own(&self, field: Field) -> u64 {
        self.mine(field).map_or(0, |cell| cell.load(SeqCst))
    }

    /// What all runners counted.
    pub fn sum(&self, field: Field) -> u64 {
        self.each(field).fold(0, u64::saturating_add)
    }

    /// What each runner counted.
    pub(crate) fn each(&self, field: Field) -> impl Iterator<Item = u64> + '_ {
        (0..self.ledger.columns)
            .filter_map(move |column| self.ledger.cell(column, self.row, field))
            .map(|cell| cell.load(SeqCst))
    }

    /// Sets this runner's count.
    pub fn set(&self, field: Field, value: u64) {
        if let Some(cell) = self.mine(field) {
            cell.store(value, SeqCst);
        }
    }

    /// Takes so much unless all together would then have more than `limit`; says what they would
    /// have had.
    pub(crate) fn take(&self, field: Field, amount: u64, limit: u64) -> Result<u64, u64> {
        let Some(cell) = self.mine(field) else {
            return Ok(amount);
        };
        // Taken before it is looked at: of two that take at once, each sees the other.
        cell.fetch_add(amount, SeqCst);
        let sum = self.sum(field);
        if sum <= limit {
            return Ok(sum);
        }
        self.give_back(field, amount);
        Err(sum)
    }

    pub(crate) fn give_back(&self, field: Field, amount: u64) {
        if let Some(cell) = self.mine(field) {
            // Never below nothing, whatever was wiped meanwhile.
            let _ = cell.try_update(SeqCst, SeqCst, |held| Some(held.saturating_sub(amount)));
        }
    }
}

/// Memory that other processes have mapped too.
struct Mapping {
    start: std::ptr::NonNull<AtomicU64>,
    bytes: usize,
}

// SAFETY: it is only ever used as a slice of atomics, which any thread may use.
#[allow(unsafe_code, reason = "a mapping is a pointer until it is a slice")]
unsafe impl Send for Mapping {}
// SAFETY: as above.
#[allow(unsafe_code, reason = "a mapping is a pointer until it is a slice")]
unsafe impl Sync for Mapping {}

impl Mapping {
    #[allow(unsafe_code, reason = "mapping shared memory")]
    fn of(file: BorrowedFd<'_>, bytes: usize) -> io::Result<Self> {
        let size = rustix::fs::fstat(file)?.st_size;
        let seals = rustix::fs::fcntl_get_seals(file)?;
        if u64::try_from(size).ok() != Some(bytes as u64) || !seals.contains(SealFlags::SHRINK) {
            return Err(io::Error::other("not a ledger, or one of another size"));
        }
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the system chooses the place, so nothing else lies there. The file has just been
        // seen to be that long and sealed against shrinking, so every page of it stays there.
        let start = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                bytes,
                protection,
                MapFlags::SHARED,
                file,
                0,
            )?
        };
        let start = std::ptr::NonNull::new(start.cast())
            .ok_or_else(|| io::Error::other("mapped at the address of nothing"))?;
        Ok(Self { start, bytes })
    }

    #[allow(unsafe_code, reason = "looking at shared memory as what it is")]
    fn cells(&self) -> &[AtomicU64] {
        // SAFETY: the mapping lives as long as `self`, starts at a page, is `bytes` long, and was
        // zero, which is a valid atomic, when it was made. Every process uses it as atomics.
        unsafe {
            std::slice::from_raw_parts(self.start.as_ptr(), self.bytes / size_of::<AtomicU64>())
        }
    }
}

impl Drop for Mapping {
    #[allow(unsafe_code, reason = "giving the mapping back")]
    fn drop(&mut self) {
        // SAFETY: mapped by `of` with this length; every borrow of it has ended with `self`.
        let unmapped = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.bytes) };
        if let Err(error) = unmapped {
            tracing::debug!(%error, "a ledger stays mapped");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runners_share_a_limit_and_a_dead_one_is_forgotten() {
        let (here, file) = Ledger::create(2, 10).unwrap();
        let there = Ledger::open(file.as_fd(), 2, 10).unwrap();
        let one = Account::new(here.clone(), 0, 3);
        let other = Account::new(there.clone(), 1, 3);
        let elsewhere = Account::new(there, 1, 4);
        assert_eq!(one.take(Field::Memory, 60, 100), Ok(60));
        assert_eq!(other.take(Field::Memory, 60, 100), Err(120));
        assert_eq!(
            elsewhere.take(Field::Memory, 60, 100),
            Ok(60),
            "another row"
        );
        assert_eq!(other.take(Field::Memory, 40, 100), Ok(100));
        assert_eq!((one.own(Field::Memory), one.sum(Field::Memory)), (60, 100));
        here.wipe(1, 3);
        assert_eq!(one.sum(Field::Memory), 60);
        // It comes too late, and takes nothing from anyone.
        other.give_back(Field::Memory, 40);
        assert_eq!(other.own(Field::Memory), 0);
    }

    #[test]
    fn two_that_take_at_once_never_have_more_than_the_limit() {
        let (ledger, _file) = Ledger::create(4, 2).unwrap();
        let held = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for column in 0..4 {
                let account = Account::new(ledger.clone(), column, 1);
                let held = &held;
                scope.spawn(move || {
                    let mut taken = 0;
                    while taken < 1000 {
                        if account.take(Field::InFlight, 1, 2).is_ok() {
                            assert!(held.fetch_add(1, SeqCst) < 2);
                            held.fetch_sub(1, SeqCst);
                            account.give_back(Field::InFlight, 1);
                            taken += 1;
                        }
                    }
                });
            }
        });
        let account = Account::new(ledger, 0, 1);
        assert_eq!(account.sum(Field::InFlight), 0);
    }

    #[test]
    fn what_is_no_ledger_is_refused() {
        let (_ledger, file) = Ledger::create(2, 10).unwrap();
        assert!(Ledger::open(file.as_fd(), 2, 11).is_err());
        let file = tempfile::tempfile().unwrap();
        file.set_len(2 * 10 * 64).unwrap();
        assert!(Ledger::open(file.as_fd(), 2, 10).is_err());
        assert!(Ledger::create(0, 1).is_err());
        assert!(
            Account::new(Ledger::own(), 5, 5)
                .take(Field::Memory, 1, 0)
                .is_ok()
        );
    }
}
