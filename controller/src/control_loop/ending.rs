//! What a store's error means: for leadership, and for who waits for an answer.

use wasmorch_api::{ApiError, ErrorCode, Term};

use super::Recovery;
use crate::api::stepping_down;
use crate::store::StoreError;

/// Why the loop ended.
#[derive(Debug)]
pub(crate) enum End {
    /// It was told to.
    Stopped,
    /// The lease is over, or another leader has written.
    Deposed(String),
    /// The outcome of a write is not known.
    Unsure(StoreError),
    /// A host has seen a later term than the store holds: the next term must be later still.
    Behind(Term),
    /// The state is to be stored anew.
    Recover(Box<Recovery>),
}

/// Tells whoever waits, and whether leadership ends with it.
pub(super) fn ending(error: StoreError, refuse: impl FnOnce(ApiError)) -> Option<End> {
    if error.ends_leadership() {
        refuse(stepping_down());
        return Some(match error {
            StoreError::Fenced => End::Deposed("the store refused this term".to_owned()),
            other => End::Unsure(other),
        });
    }
    refuse(refusal(&error));
    None
}

/// A store's error as an answer: nothing was written.
fn refusal(error: &StoreError) -> ApiError {
    let why = error.to_string();
    let what = "the store did not take it: nothing was changed";
    match error {
        StoreError::Full(_) => ApiError::new(
            ErrorCode::Unavailable,
            what,
            why,
            "make room for JetStream: raise its limits, or free the disk",
        ),
        StoreError::TooLarge { .. } | StoreError::TooMany { .. } => ApiError::new(
            ErrorCode::TooLarge,
            what,
            why,
            "deploy fewer workloads at once, or raise the server's max_payload",
        ),
        StoreError::NotReady(_) | StoreError::Unavailable(_) => {
            ApiError::new(ErrorCode::Unavailable, what, why, "try again")
        }
        _ => ApiError::new(ErrorCode::Internal, what, why, "see the controller's log"),
    }
}

/// A leader that has just begun changes nothing before a host has said what it knows.
pub(super) fn listening() -> ApiError {
    ApiError::new(
        ErrorCode::Unavailable,
        "the leader has just begun and listens to its hosts",
        "the store may be older than what they hold: nothing was changed",
        "try again in a moment",
    )
}

/// A host has seen more than this leader knows of: the store is asked first.
pub(super) fn in_doubt() -> ApiError {
    ApiError::new(
        ErrorCode::Unavailable,
        "the store is being compared with what hosts hold",
        "a host has seen a later state than this leader: nothing was changed",
        "try again in a moment",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_certain_is_answered_as_not_done() {
        let mut answer = None;
        let end = ending(StoreError::Full("disk".into()), |refusal| {
            answer = Some(refusal)
        });
        assert!(end.is_none());
        assert_eq!(answer.unwrap().code, ErrorCode::Unavailable);

        let mut answer = None;
        let end = ending(StoreError::Unknown("timed out".into()), |refusal| {
            answer = Some(refusal)
        });
        assert!(matches!(end, Some(End::Unsure(_))));
        assert!(answer.unwrap().why.contains("not known"));

        let end = ending(StoreError::Fenced, |_| {});
        assert!(matches!(end, Some(End::Deposed(_))));
    }
}
