//! Bodies in both directions: streamed, bounded, and tied to the guest that reads or writes them.

mod request;
mod response;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;

pub use request::Awaited;
pub(crate) use request::RequestBody;
pub(crate) use response::ResponseBody;

/// Why a body broke off. That of a response is an [`Ended`](crate::Ended) when the guest is the reason.
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// A streamed body, as requests come in and responses go out.
pub type Body = UnsyncBoxBody<Bytes, BodyError>;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use crate::guest::Watch;
    use crate::ledger::Account;
    use crate::limits::Meter;
    use crate::{Runtime, RuntimeConfig};

    /// What is known of a guest that runs.
    pub(super) fn watch() -> Arc<Watch> {
        let runtime = Runtime::new(RuntimeConfig {
            pooling: false,
            ..Default::default()
        });
        let meter = Arc::new(Meter::new(Account::alone(), None));
        Arc::new(Watch::new(runtime.unwrap(), meter, 0))
    }
}
