//! Open files of this process: as many as the system lets it have.
//!
//! The usual soft limit of 1024 is for programs that use `select`. Connections, files of guests and
//! what is mapped for them are all counted in it, over all tenants of a runner. The daemon raises the
//! limit once, and its runners have it from the daemon: in their sandbox they only read it.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the limit to what this user may have.
pub(crate) fn raise() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

/// The limit as it is.
pub(crate) fn limit() -> u64 {
    // None: unlimited.
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// How many of them clients' connections may be, of `wanted`: the other half is for guests, other
/// hosts and NATS.
pub(crate) fn for_connections(limit: u64, wanted: usize) -> usize {
    usize::try_from(limit / 2)
        .unwrap_or(usize::MAX)
        .clamp(1, wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_raised_and_connections_get_half() {
        raise();
        let now = getrlimit(Resource::Nofile);
        assert_eq!(now.current, now.maximum);
        assert_eq!(now.current.unwrap_or(u64::MAX), limit());
        assert_eq!(for_connections(1024, 8192), 512);
        assert_eq!(for_connections(u64::MAX, 8192), 8192);
        assert_eq!(for_connections(0, 8192), 1);
    }
}
