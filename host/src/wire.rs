//! Messages over a stream: the length as four bytes, then JSON.
//!
//! The first message is read without an executor, since there is none yet.
//!
//! It knows nothing of what the messages mean. A frame that is too long or no message ends the
//! stream: the two ends are the same binary, so that is a bug or an attack, and nothing to mend.

use std::io;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// What a buffer keeps between messages.
const KEEP_BYTES: usize = 64 << 10;

/// Reads messages from a stream.
#[derive(Debug)]
pub(crate) struct Reader<S> {
    stream: S,
    max: usize,
    buffer: Vec<u8>,
}

impl<S: AsyncRead + Unpin> Reader<S> {
    pub(crate) fn new(stream: S, max: usize) -> Self {
        let buffer = Vec::new();
        Self {
            stream,
            max,
            buffer,
        }
    }

    /// The next message; `None` at the end of the stream, between two messages or within one.
    pub(crate) async fn next<M: DeserializeOwned>(&mut self) -> io::Result<Option<M>> {
        let length = match self.stream.read_u32().await {
            Ok(length) => usize::try_from(length).unwrap_or(usize::MAX),
            Err(error) if ended(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        if length > self.max {
            return Err(io::Error::other(format!("a message of {length} bytes")));
        }
        self.buffer.clear();
        self.buffer.shrink_to(KEEP_BYTES);
        self.buffer.resize(length, 0);
        match self.stream.read_exact(&mut self.buffer).await {
            Ok(_) => {}
            Err(error) if ended(&error) => return Ok(None),
            Err(error) => return Err(error),
        }
        Ok(Some(serde_json::from_slice(&self.buffer)?))
    }
}

/// Reads one message, waiting for it. `None` at the end of the stream.
pub(crate) fn read_now<M: DeserializeOwned>(
    stream: &mut impl io::Read,
    max: usize,
) -> io::Result<Option<M>> {
    let mut length = [0; 4];
    match stream.read_exact(&mut length) {
        Ok(()) => {}
        Err(error) if ended(&error) => return Ok(None),
        Err(error) => return Err(error),
    }
    let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if length > max {
        return Err(io::Error::other(format!("a message of {length} bytes")));
    }
    let mut message = vec![0; length];
    stream.read_exact(&mut message)?;
    Ok(Some(serde_json::from_slice(&message)?))
}

/// Whoever is at the other end is gone.
fn ended(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset
    )
}

/// Writes messages to a stream.
#[derive(Debug)]
pub(crate) struct Writer<S> {
    stream: S,
    buffer: Vec<u8>,
}

impl<S: AsyncWrite + Unpin> Writer<S> {
    pub(crate) fn new(stream: S) -> Self {
        let buffer = Vec::new();
        Self { stream, buffer }
    }

    /// Writes one message. Not safe to cancel.
    pub(crate) async fn send<M: Serialize>(&mut self, message: &M) -> io::Result<()> {
        self.buffer.clear();
        self.buffer.shrink_to(KEEP_BYTES);
        self.buffer.extend([0; 4]);
        serde_json::to_writer(&mut self.buffer, message)?;
        let length = u32::try_from(self.buffer.len() - 4).map_err(io::Error::other)?;
        if let Some(head) = self.buffer.first_chunk_mut() {
            *head = length.to_be_bytes();
        }
        self.stream.write_all(&self.buffer).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn messages_arrive_in_order_and_a_torn_one_is_the_end() {
        let (near, far) = tokio::io::duplex(16);
        let mut writer = Writer::new(near);
        let sending = tokio::spawn(async move {
            for number in 0..100_u32 {
                writer.send(&vec![number; 50]).await.unwrap();
            }
            // Promises more than comes.
            writer.stream.write_u32(10).await.unwrap();
            writer.stream.write_all(b"[1").await.unwrap();
        });
        let mut reader = Reader::new(far, 1 << 10);
        for number in 0..100_u32 {
            let message: Option<Vec<u32>> = reader.next().await.unwrap();
            assert_eq!(message, Some(vec![number; 50]));
        }
        assert_eq!(reader.next::<Vec<u32>>().await.unwrap(), None);
        sending.await.unwrap();
    }

    #[tokio::test]
    async fn what_is_too_long_or_no_message_is_an_error() {
        let mut reader = Reader::new(&[0, 0, 1, 0, 0][..], 255);
        assert!(reader.next::<u8>().await.is_err());
        let mut reader = Reader::new(&[0, 0, 0, 1, b'x'][..], 255);
        assert!(reader.next::<u8>().await.is_err());
    }
}
