//! The other processes that accept from the same listeners, and this one's part of the clients.
//!
//! ```text
//!   open <= fair share: accept at once
//!   a little over:      leave a new connection to the others, for a moment
//!   far over:           ask the surplus to close after its request; clients come again
//! ```
//!
//! Who takes a connection is the kernel's choice, and clients keep theirs for hours: without this
//! one process ends up with most of them. It knows neither how processes count nor how many there
//! are.

use std::fmt;
use std::time::Duration;

/// How long a new connection is left to the others. They take it in microseconds; longer means
/// that they are stuck, and the client must not wait for that.
pub(crate) const LEAVE_FOR: Duration = Duration::from_millis(5);
/// So many more than its share are no reason to do anything: with few connections shares are rough.
const SLACK: usize = 2;

/// All processes that accept from the same listeners, this one included.
pub trait Crowd: fmt::Debug + Send + Sync + 'static {
    /// This process has so many connections open. Told at every change.
    fn tell(&self, open: usize);

    /// How many it would have, were all connections shared out evenly: rounded up. Asked at every
    /// accept: keep it cheap.
    fn share(&self) -> usize;
}

/// Whether a new connection is better left to others.
pub(crate) fn is_over(open: usize, share: usize) -> bool {
    open > share + share / 8 + SLACK
}

/// How many connections should go to others.
pub(crate) fn surplus(open: usize, share: usize) -> usize {
    let far = open > share + share / 4 + 2 * SLACK;
    if far { open - share } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_little_over_waits_and_far_over_gives_away() {
        assert!(!is_over(3, 1));
        assert!(is_over(4, 1));
        assert!(!is_over(112, 100));
        assert!(is_over(115, 100));
        assert_eq!(surplus(5, 1), 0);
        assert_eq!(surplus(129, 100), 0);
        assert_eq!(surplus(130, 100), 30);
        assert_eq!(surplus(0, 0), 0);
    }
}
