//! The size of a container on disk: what a write takes of it before it is written.
//!
//! Counted as a volume is ([`Quota`]), by all runners together. The count lies in the container's folder, under a name
//! that no object has: whoever removes the folder removes it too.

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::OnceCell;
use wasmorch_api::ByteSize;

use crate::volume::{ENTRY_BYTES, Quota, Taken};

/// object_store takes what ends so for an upload under way, and lists none; names with `#` are encoded.
const COUNT: &str = "used#0";
/// What is read and taken at once.
const STEP_BYTES: usize = 256 << 10;

/// See the module's head.
pub(super) struct Room {
    folder: PathBuf,
    limit: ByteSize,
    /// Opened by the first write: a folder that was never counted is measured then.
    quota: OnceCell<Arc<Quota>>,
}

impl Room {
    pub(super) fn new(folder: PathBuf, limit: ByteSize) -> Self {
        Self {
            folder,
            limit,
            quota: OnceCell::new(),
        }
    }

    async fn quota(&self) -> io::Result<&Arc<Quota>> {
        let open = || async {
            let (folder, limit) = (self.folder.clone(), self.limit.0);
            let count = folder.join(COUNT);
            let opening = tokio::task::spawn_blocking(move || Quota::open(&folder, &count, limit));
            opening.await.map_err(io::Error::other)?
        };
        self.quota.get_or_try_init(open).await
    }

    async fn take(&self, bytes: u64) -> io::Result<Taken> {
        let taken = self.quota().await?.take_measured(bytes).await?;
        taken.ok_or_else(|| {
            let why = format!(
                "the container is full: it holds {} at most; delete objects, or give its binding a larger `size`",
                self.limit
            );
            io::Error::new(io::ErrorKind::StorageFull, why)
        })
    }

    /// Copies an object, within the room that there is. `folders`: so many its name may make. `behind`: so many
    /// bytes of it, the last ones, may not be on the disk yet, where a measurement would find them.
    pub(super) async fn copy(
        &self,
        body: &mut (impl AsyncRead + Unpin),
        writer: &mut (impl AsyncWrite + Unpin),
        folders: u64,
        behind: u64,
    ) -> io::Result<Vec<Taken>> {
        let entries = self.take(ENTRY_BYTES * (1 + folders)).await?;
        let mut in_hand = VecDeque::from([(ENTRY_BYTES, entries)]);
        // What was taken already: the smallest object is as large as an entry.
        let (mut credit, mut held) = (ENTRY_BYTES, ENTRY_BYTES);
        let mut buffer = vec![0; STEP_BYTES];
        loop {
            let read = body.read(&mut buffer).await?;
            let Some(step) = buffer.get(..read).filter(|step| !step.is_empty()) else {
                return Ok(in_hand.into_iter().map(|(_, taken)| taken).collect());
            };
            let bytes = (read as u64).saturating_sub(credit);
            credit = credit.saturating_sub(read as u64);
            if bytes > 0 {
                in_hand.push_back((bytes, self.take(bytes).await?));
                held += bytes;
            }
            writer.write_all(step).await?;
            while let Some((first, _)) = in_hand.front()
                && held - first > behind
            {
                held -= first;
                in_hand.pop_front();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    /// Writes an object to the disk as a store would.
    async fn put(room: &Room, name: &str, bytes: usize) -> io::Result<()> {
        let mut written = Vec::new();
        let mut body = Cursor::new(vec![b'x'; bytes]);
        let taken = room.copy(&mut body, &mut written, 0, 1 << 20).await?;
        assert_eq!(written.len(), bytes);
        std::fs::write(room.folder.join(name), written)?;
        drop(taken);
        Ok(())
    }

    #[tokio::test]
    async fn a_container_holds_its_size_over_all_who_write_and_what_is_deleted_makes_room() {
        let folder = tempfile::tempdir().unwrap();
        let room = || Room::new(folder.path().to_owned(), ByteSize(3 << 20));
        let (one, other) = (room(), room());
        put(&one, "a", 1_500_000).await.unwrap();
        put(&other, "b", 1_000_000).await.unwrap();
        let full = put(&one, "c", 1_000_000).await.unwrap_err();
        assert_eq!(full.kind(), io::ErrorKind::StorageFull);
        assert!(full.to_string().contains("3MiB"), "{full}");
        std::fs::remove_file(folder.path().join("a")).unwrap();
        put(&other, "c", 1_500_000).await.unwrap();
        // Many small ones are not free.
        for number in 0..1000 {
            if put(&one, &format!("small-{number}"), 1).await.is_err() {
                assert!((100..160).contains(&number), "{number}");
                return;
            }
        }
        panic!("there was room for all");
    }

    #[tokio::test]
    async fn the_folders_of_a_name_are_not_free() {
        let folder = tempfile::tempdir().unwrap();
        let room = Room::new(folder.path().to_owned(), ByteSize(1 << 20));
        let (mut body, mut written) = (Cursor::new(b"x".to_vec()), Vec::new());
        let full = room.copy(&mut body, &mut written, 300, 0).await;
        assert_eq!(full.unwrap_err().kind(), io::ErrorKind::StorageFull);
        room.copy(&mut body, &mut written, 100, 0).await.unwrap();
    }
}
