//! Replies that fit: pages of lists, and one bound for every answer.
//!
//! Pure. A page ends at its limit or before the answer would be too large, whichever comes first.

use serde::Serialize;
use wasmorch_api::messages::{ListRequest, StatusReply};
use wasmorch_api::{ApiError, ErrorCode};

/// The contract's bound for a reply is 512 KiB; what is left is for headers and the envelope.
pub(crate) const REPLY_BYTES_MAX: usize = 500 * 1024;
/// Items of a page when no limit is asked for, and at most.
const PAGE_DEFAULT: u32 = 500;
const PAGE_MAX: u32 = 5_000;

/// Serialises items, each with the cursor that continues after it.
pub(crate) fn page<T: Serialize>(
    request: &ListRequest,
    items: impl Iterator<Item = (String, T)>,
) -> Vec<u8> {
    page_within(request, items, REPLY_BYTES_MAX)
}

fn page_within<T: Serialize>(
    request: &ListRequest,
    items: impl Iterator<Item = (String, T)>,
    bytes_max: usize,
) -> Vec<u8> {
    // None at all has been refused.
    let limit = request.limit.unwrap_or(PAGE_DEFAULT).clamp(1, PAGE_MAX) as usize;
    let mut body = b"{\"items\":[".to_vec();
    let mut last: Option<String> = None;
    let mut more = false;
    for (count, (cursor, item)) in items.enumerate() {
        let item = serde_json::to_vec(&item).expect("our own types have string keys");
        // The first item goes whatever its size, or the list would never move on.
        if count == limit || (count > 0 && body.len() + item.len() + 200 > bytes_max) {
            more = true;
            break;
        }
        if count > 0 {
            body.push(b',');
        }
        body.extend(item);
        last = Some(cursor);
    }
    body.extend(b"],\"next\":");
    let next = last.filter(|_| more);
    body.extend(serde_json::to_vec(&next).expect("a string serialises"));
    body.push(b'}');
    body
}

/// A status that fits: beyond the bound replicas are left out, and so many of them is said.
pub(crate) fn status(mut reply: StatusReply) -> Result<(Vec<u8>, usize), ApiError> {
    let all = reply.replicas.len();
    loop {
        let body = serde_json::to_vec(&reply).expect("our own types have string keys");
        if body.len() <= REPLY_BYTES_MAX {
            return Ok((body, all - reply.replicas.len()));
        }
        if reply.replicas.is_empty() {
            return Err(too_large(body.len()));
        }
        reply.replicas.truncate(reply.replicas.len() / 2);
    }
}

/// An answer that cannot be paged either fits or is refused.
pub(crate) fn fits(body: Vec<u8>) -> Result<Vec<u8>, ApiError> {
    if body.len() <= REPLY_BYTES_MAX {
        Ok(body)
    } else {
        Err(too_large(body.len()))
    }
}

fn too_large(bytes: usize) -> ApiError {
    ApiError::new(
        ErrorCode::TooLarge,
        format!("the answer has {bytes} bytes"),
        format!("an answer has at most {REPLY_BYTES_MAX}"),
        "ask for less: fewer workloads at once, or a smaller limit",
    )
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn ask(limit: Option<u32>, bytes_max: usize) -> Value {
        let request = ListRequest {
            limit,
            cursor: None,
        };
        let items = (0..10).map(|n| (format!("c{n}"), format!("item {n}")));
        serde_json::from_slice(&page_within(&request, items, bytes_max)).unwrap()
    }

    #[test]
    fn a_page_ends_at_its_limit() {
        let page = ask(Some(3), 10_000);
        assert_eq!(page["items"].as_array().unwrap().len(), 3);
        assert_eq!(page["next"], "c2");
        let page = ask(Some(10), 10_000);
        assert_eq!(page["next"], Value::Null, "nothing is left");
    }

    #[test]
    fn a_page_ends_before_it_is_too_large() {
        let page = ask(None, 240);
        assert_eq!(page["items"].as_array().unwrap().len(), 3);
        assert_eq!(page["next"], "c2");
        assert_eq!(
            ask(None, 1)["items"].as_array().unwrap().len(),
            1,
            "it moves on"
        );
    }
}
