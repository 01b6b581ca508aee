//! What a guest streams into a file by `wasi:filesystem` 0.3: each part asks the quota before it is
//! written.

use std::fs::File;
use std::future::Future;
use std::io::{self, IoSlice};
use std::os::unix::fs::FileExt as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustix::io::{ReadWriteFlags, pwritev2};
use tokio::sync::oneshot;
use wasmtime::StoreContextMut;
use wasmtime::component::{Source, StreamConsumer, StreamResult};
use wasmtime_wasi::p3::bindings::filesystem::types::ErrorCode;

use super::room::Room;

/// The most that is written at once.
const PART_BYTES_MAX: usize = 64 << 10;

/// What a guest hears at the end.
pub(super) type Told = Result<(), ErrorCode>;
type Writing = Pin<Box<dyn Future<Output = io::Result<usize>> + Send>>;

/// Takes the bytes of one stream.
pub(super) struct Writer {
    file: Arc<File>,
    room: Room,
    /// Where the next byte goes; `None`: at the end.
    position: Option<u64>,
    /// The part in hand: it is written whether or not the guest still waits for it.
    writing: Option<Writing>,
    told: Option<oneshot::Sender<Told>>,
}

impl Writer {
    pub(super) fn new(
        file: Arc<File>,
        room: Room,
        position: Option<u64>,
        told: oneshot::Sender<Told>,
    ) -> Self {
        Self {
            file,
            room,
            position,
            writing: None,
            told: Some(told),
        }
    }

    fn tell(&mut self, what: Told) {
        if let Some(told) = self.told.take() {
            // A guest that does not wait for it has dropped its end.
            let _ = told.send(what);
        }
    }

    /// Goes on after so many bytes.
    fn advance(&mut self, bytes: usize) -> Told {
        if let Some(position) = &mut self.position {
            *position = position
                .checked_add(bytes as u64)
                .ok_or(ErrorCode::Overflow)?;
        }
        Ok(())
    }
}

impl Drop for Writer {
    /// The stream has ended, or its guest has.
    fn drop(&mut self) {
        self.tell(Ok(()));
    }
}

async fn write(
    file: Arc<File>,
    room: Room,
    position: Option<u64>,
    bytes: Vec<u8>,
) -> io::Result<usize> {
    // A guest that asks whether it may write takes nothing.
    if bytes.is_empty() {
        return Ok(0);
    }
    let length = bytes.len() as u64;
    let taken = match position {
        None => room.take(length).await?,
        Some(position) => {
            let end = position.saturating_add(length);
            room.take_up_to(Some(&file), end).await?
        }
    };
    let writing = tokio::task::spawn_blocking(move || {
        // Until it is written, whether or not anybody waits for that.
        let _taken = taken;
        match position {
            Some(position) => file.write_at(&bytes, position),
            None => append(&file, &bytes),
        }
    });
    writing.await.map_err(io::Error::other)?
}

fn append(file: &File, bytes: &[u8]) -> io::Result<usize> {
    Ok(pwritev2(
        file,
        &[IoSlice::new(bytes)],
        0,
        ReadWriteFlags::APPEND,
    )?)
}

impl<D> StreamConsumer<D> for Writer {
    type Item = u8;

    fn poll_consume(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        store: StoreContextMut<'_, D>,
        source: Source<'_, u8>,
        _finish: bool,
    ) -> Poll<wasmtime::Result<StreamResult>> {
        let mut source = source.as_direct(store);
        let writer = &mut *self;
        let writing = writer.writing.get_or_insert_with(|| {
            let there = source.remaining();
            let part = there[..there.len().min(PART_BYTES_MAX)].to_vec();
            let (file, room) = (writer.file.clone(), writer.room.clone());
            Box::pin(write(file, room, writer.position, part))
        });
        // Also when the guest gives up: what is written by then is to be told.
        let written = ready!(writing.as_mut().poll(cx));
        writer.writing = None;
        let bytes = match written {
            Ok(bytes) => bytes,
            Err(error) => {
                writer.tell(Err(error.into()));
                return Poll::Ready(Ok(StreamResult::Dropped));
            }
        };
        source.mark_read(bytes);
        Poll::Ready(Ok(match writer.advance(bytes) {
            Ok(()) => StreamResult::Completed,
            Err(code) => {
                writer.tell(Err(code));
                StreamResult::Dropped
            }
        }))
    }
}
