//! From planner writes to store batches.
//!
//! Pure. What a user asks for goes in one batch, whole or not at all. A plan may be larger than one
//! batch: its writes are cut in the planner's order (records, then what gateways know, then what
//! hosts run), each batch is committed before the next goes out, and what is left when
//! leadership ends in between is planned anew by the next leader: sets and tables are complete, so
//! every batch is right by itself.

use bytes::Bytes;
use wasmorch_planner::Write;

use crate::store::{BATCH_BYTES_MAX, BATCH_MESSAGES_MAX, Entry};

/// Writes that are stored together.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Batch {
    /// As the planner knows them.
    pub(crate) writes: Vec<Write>,
    /// As the store does; in the end one for each write, in the same order.
    pub(crate) entries: Vec<Entry>,
}

impl Batch {
    /// With an entry that is none of the planner's. It goes first: the writes' sequences are counted
    /// from the end.
    #[must_use]
    pub(crate) fn and(mut self, entry: Option<Entry>) -> Self {
        self.entries.splice(0..0, entry);
        self
    }
}

/// All writes as one batch, for what must be whole.
pub(crate) fn whole(writes: Vec<Write>) -> Batch {
    let entries = writes.iter().map(entry).collect();
    Batch { writes, entries }
}

/// Writes cut into batches that the store takes. Encoded one batch at a time: all of a large plan's
/// would be as much memory again.
pub(crate) fn cut(writes: Vec<Write>) -> impl Iterator<Item = Batch> {
    cut_at(writes, BATCH_MESSAGES_MAX, BATCH_BYTES_MAX)
}

fn cut_at(
    writes: Vec<Write>,
    messages_max: usize,
    bytes_max: usize,
) -> impl Iterator<Item = Batch> {
    let mut rest = writes
        .into_iter()
        .map(|write| (entry(&write), write))
        .peekable();
    std::iter::from_fn(move || {
        let (first, write) = rest.next()?;
        let mut bytes = size(&first);
        let mut batch = Batch {
            writes: vec![write],
            entries: vec![first],
        };
        while batch.entries.len() < messages_max {
            let fits = |(entry, _): &(Entry, Write)| bytes + size(entry) <= bytes_max;
            let Some((entry, write)) = rest.next_if(fits) else {
                break;
            };
            bytes += size(&entry);
            batch.writes.push(write);
            batch.entries.push(entry);
        }
        Some(batch)
    })
}

fn size(entry: &Entry) -> usize {
    entry.key.len() + entry.value.as_ref().map_or(0, Bytes::len)
}

fn entry(write: &Write) -> Entry {
    Entry {
        key: write.key(),
        value: write.body().map(Bytes::from),
    }
}

#[cfg(test)]
mod tests {
    use wasmorch_api::WorkloadKey;

    use super::*;

    fn deletes(count: usize) -> Vec<Write> {
        (0..count)
            .map(|n| {
                let name = format!("w{n:04}").parse().unwrap();
                Write::DeleteRecord(WorkloadKey::new("shop".parse().unwrap(), name))
            })
            .collect()
    }

    #[test]
    fn order_and_number_are_kept() {
        let writes = deletes(2_500);
        let batches: Vec<Batch> = cut(writes.clone()).collect();
        assert_eq!(
            batches.iter().map(|b| b.entries.len()).collect::<Vec<_>>(),
            [1000, 1000, 500]
        );
        let joined: Vec<Write> = batches
            .iter()
            .flat_map(|batch| batch.writes.clone())
            .collect();
        assert_eq!(joined, writes);
        for batch in &batches {
            for (write, entry) in batch.writes.iter().zip(&batch.entries) {
                assert_eq!((write.key(), write.body()), (entry.key.clone(), None));
            }
        }
        assert!(cut(Vec::new()).next().is_none());
    }

    #[test]
    fn bytes_are_bounded_and_one_large_write_still_goes() {
        // `workload.shop.w0000` has 19 bytes.
        let sizes = |bytes_max| {
            cut_at(deletes(5), 1_000, bytes_max)
                .map(|batch| batch.entries.len())
                .collect::<Vec<_>>()
        };
        assert_eq!(sizes(38), [2, 2, 1]);
        assert_eq!(sizes(1), [1, 1, 1, 1, 1]);
    }
}
