//! The interface itself: what guests hold, and what their calls come to.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::BoxStream;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::time::timeout;
use wasmtime::Result;
use wasmtime::component::{HasSelf, Linker, Resource};
use wasmtime_wasi::p2::pipe::AsyncReadStream;
use wasmtime_wasi::p2::{DynInputStream, DynOutputStream};

use super::spool::{Spool, SpoolStream};
use super::{BlobContainer, BlobRead, ObjectInfo, check_name};
use crate::bindings::blobstore::wasi::blobstore::{blobstore, container, types};
use crate::refusals::Refused;
use crate::state::{GuestState, ReplicaShared};

/// What a guest may take at once instead of as a stream.
const SYNC_BYTES_MAX: u64 = 64 << 20;
/// And how long that may take: others wait for the memory that it holds.
const SYNC_TIMEOUT: Duration = Duration::from_secs(30);
/// Names in one answer.
const NAMES_MAX: u64 = 10_000;
/// Names in one call that deletes.
const DELETE_MAX: usize = 10_000;

/// Adds the three interfaces.
pub(crate) fn add_to_linker(linker: &mut Linker<GuestState>) -> Result<()> {
    types::add_to_linker::<_, HasSelf<_>>(linker, |state| state)?;
    container::add_to_linker::<_, HasSelf<_>>(linker, |state| state)?;
    blobstore::add_to_linker::<_, HasSelf<_>>(linker, |state| state)
}

/// An open container.
#[derive(Clone)]
pub struct Container {
    name: String,
    held: Arc<dyn BlobContainer>,
}

/// A value that is being written.
pub struct OutgoingValue {
    spool: Spool,
    /// Its stream was handed out.
    streamed: bool,
    /// What it shall be.
    object: Option<(Arc<dyn BlobContainer>, String)>,
}

/// A value that is read.
pub struct IncomingValue {
    body: BlobRead,
    size: u64,
}

/// A listing under way.
pub struct Names {
    names: BoxStream<'static, Answer<String>>,
    /// Read ahead, to know whether it was the last.
    next: Option<Answer<String>>,
    begun: bool,
}

/// What the interface answers: errors are text.
type Answer<T> = std::result::Result<T, String>;

impl Names {
    /// Up to `count` names to `each`; whether there are no more.
    async fn take(&mut self, count: u64, mut each: impl FnMut(String)) -> Answer<bool> {
        if !self.begun {
            self.begun = true;
            self.next = self.names.next().await;
        }
        for _ in 0..count {
            let Some(name) = self.next.take() else {
                return Ok(true);
            };
            each(name?);
            self.next = self.names.next().await;
        }
        Ok(self.next.is_none())
    }
}

async fn object_of(held: &dyn BlobContainer, name: &str) -> Answer<ObjectInfo> {
    check_name(name)?;
    let found = held.object(name).await?;
    found.ok_or_else(|| format!("there is no object `{name}`"))
}

async fn read_whole(mut body: impl AsyncRead + Unpin, within: Duration) -> Answer<Vec<u8>> {
    let mut bytes = Vec::new();
    match timeout(within, body.read_to_end(&mut bytes)).await {
        Ok(Ok(_)) => Ok(bytes),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!(
            "the value did not come within {within:?}: read it as a stream"
        )),
    }
}

/// One after the other: who has many objects shall not open as many connections.
async fn delete_all(held: &dyn BlobContainer) -> Answer<()> {
    let mut names = held.names().await?;
    while let Some(name) = names.next().await {
        held.delete(&name?).await?;
    }
    Ok(())
}

impl types::Host for GuestState {}

impl types::HostOutgoingValue for GuestState {
    async fn new_outgoing_value(&mut self) -> Result<Resource<OutgoingValue>> {
        let value = OutgoingValue {
            spool: self.shared.config.blobs.spool().await?,
            streamed: false,
            object: None,
        };
        Ok(self.table.push(value)?)
    }

    async fn outgoing_value_write_body(
        &mut self,
        value: Resource<OutgoingValue>,
    ) -> Result<std::result::Result<Resource<DynOutputStream>, ()>> {
        let held = self.table.get_mut(&value)?;
        if std::mem::replace(&mut held.streamed, true) {
            return Ok(Err(()));
        }
        let stream: DynOutputStream = Box::new(SpoolStream(held.spool.clone()));
        Ok(Ok(self.table.push_child(stream, &value)?))
    }

    async fn finish(&mut self, value: Resource<OutgoingValue>) -> Result<Answer<()>> {
        let OutgoingValue { spool, object, .. } = self.table.delete(value)?;
        let Some((held, name)) = object else {
            return Ok(Ok(()));
        };
        let file = match spool.read().await {
            Ok(file) => tokio::fs::File::from_std(file),
            Err(error) => return Ok(Err(error.to_string())),
        };
        Ok(held.write(&name, Box::pin(file)).await)
    }

    async fn drop(&mut self, value: Resource<OutgoingValue>) -> Result<()> {
        self.table.delete(value)?;
        Ok(())
    }
}

impl types::HostIncomingValue for GuestState {
    async fn incoming_value_consume_sync(
        &mut self,
        value: Resource<IncomingValue>,
    ) -> Result<Answer<Vec<u8>>> {
        let IncomingValue { body, size } = self.table.delete(value)?;
        if size > SYNC_BYTES_MAX {
            return Ok(Err(format!(
                "{size} bytes are too many at once: read the value as a stream"
            )));
        }
        let bytes = usize::try_from(size).unwrap_or(usize::MAX);
        let _held = match self.shared.config.share.hold(bytes).await {
            Ok(held) => held,
            Err(error) => return Ok(Err(error.to_string())),
        };
        Ok(read_whole(body.take(size), SYNC_TIMEOUT).await)
    }

    async fn incoming_value_consume_async(
        &mut self,
        value: Resource<IncomingValue>,
    ) -> Result<Answer<Resource<DynInputStream>>> {
        let IncomingValue { body, .. } = self.table.delete(value)?;
        let stream: DynInputStream = Box::new(AsyncReadStream::new(body));
        Ok(Ok(self.table.push(stream)?))
    }

    async fn size(&mut self, value: Resource<IncomingValue>) -> Result<u64> {
        Ok(self.table.get(&value)?.size)
    }

    async fn drop(&mut self, value: Resource<IncomingValue>) -> Result<()> {
        self.table.delete(value)?;
        Ok(())
    }
}

impl container::Host for GuestState {}

impl container::HostContainer for GuestState {
    async fn name(&mut self, at: Resource<Container>) -> Result<Answer<String>> {
        Ok(Ok(self.table.get(&at)?.name.clone()))
    }

    async fn info(
        &mut self,
        at: Resource<Container>,
    ) -> Result<Answer<container::ContainerMetadata>> {
        let Container { name, held } = self.table.get(&at)?.clone();
        let created = held.created().await;
        Ok(created.map(|created_at| container::ContainerMetadata { name, created_at }))
    }

    async fn get_data(
        &mut self,
        at: Resource<Container>,
        name: String,
        start: u64,
        end: u64,
    ) -> Result<Answer<Resource<IncomingValue>>> {
        let held = self.table.get(&at)?.held.clone();
        let read = async {
            let info = object_of(&*held, &name).await?;
            // Both ends are included, and the last byte is as far as anything goes.
            let end = end.saturating_add(1).min(info.size);
            let size = end.saturating_sub(start);
            let body = held.read(&name, start, size).await?;
            Ok::<_, String>(IncomingValue { body, size })
        };
        match read.await {
            Ok(value) => Ok(Ok(self.table.push(value)?)),
            Err(why) => Ok(Err(why)),
        }
    }

    async fn write_data(
        &mut self,
        at: Resource<Container>,
        name: String,
        value: Resource<OutgoingValue>,
    ) -> Result<Answer<()>> {
        if let Err(why) = check_name(&name) {
            return Ok(Err(why));
        }
        let held = self.table.get(&at)?.held.clone();
        let value = self.table.get_mut(&value)?;
        if value.object.is_some() {
            return Ok(Err("this value is an object already".to_owned()));
        }
        value.object = Some((held, name));
        Ok(Ok(()))
    }

    async fn list_objects(&mut self, at: Resource<Container>) -> Result<Answer<Resource<Names>>> {
        let held = self.table.get(&at)?.held.clone();
        match held.names().await {
            Ok(names) => {
                let names = Names {
                    names,
                    next: None,
                    begun: false,
                };
                Ok(Ok(self.table.push(names)?))
            }
            Err(why) => Ok(Err(why)),
        }
    }

    async fn delete_object(&mut self, at: Resource<Container>, name: String) -> Result<Answer<()>> {
        self.delete_objects(at, vec![name]).await
    }

    async fn delete_objects(
        &mut self,
        at: Resource<Container>,
        names: Vec<String>,
    ) -> Result<Answer<()>> {
        let held = self.table.get(&at)?.held.clone();
        if names.len() > DELETE_MAX {
            return Ok(Err(format!("at most {DELETE_MAX} names at once")));
        }
        for name in names {
            let deleted = match check_name(&name) {
                Ok(()) => held.delete(&name).await,
                Err(why) => Err(why),
            };
            if deleted.is_err() {
                return Ok(deleted);
            }
        }
        Ok(Ok(()))
    }

    async fn has_object(&mut self, at: Resource<Container>, name: String) -> Result<Answer<bool>> {
        let held = self.table.get(&at)?.held.clone();
        if let Err(why) = check_name(&name) {
            return Ok(Err(why));
        }
        Ok(held.object(&name).await.map(|found| found.is_some()))
    }

    async fn object_info(
        &mut self,
        at: Resource<Container>,
        name: String,
    ) -> Result<Answer<container::ObjectMetadata>> {
        let Container {
            name: container,
            held,
        } = self.table.get(&at)?.clone();
        let found = object_of(&*held, &name).await;
        Ok(found.map(|info| container::ObjectMetadata {
            name,
            container,
            created_at: info.written,
            size: info.size,
        }))
    }

    async fn clear(&mut self, at: Resource<Container>) -> Result<Answer<()>> {
        let held = self.table.get(&at)?.held.clone();
        Ok(delete_all(&*held).await)
    }

    async fn drop(&mut self, at: Resource<Container>) -> Result<()> {
        self.table.delete(at)?;
        Ok(())
    }
}

impl container::HostStreamObjectNames for GuestState {
    async fn read_stream_object_names(
        &mut self,
        at: Resource<Names>,
        count: u64,
    ) -> Result<Answer<(Vec<String>, bool)>> {
        let mut found = Vec::new();
        let names = self.table.get_mut(&at)?;
        let ended = names
            .take(count.min(NAMES_MAX), |name| found.push(name))
            .await;
        Ok(ended.map(|ended| (found, ended)))
    }

    async fn skip_stream_object_names(
        &mut self,
        at: Resource<Names>,
        count: u64,
    ) -> Result<Answer<(u64, bool)>> {
        let mut skipped = 0;
        let names = self.table.get_mut(&at)?;
        let ended = names.take(count, |_| skipped += 1).await;
        Ok(ended.map(|ended| (skipped, ended)))
    }

    async fn drop(&mut self, at: Resource<Names>) -> Result<()> {
        self.table.delete(at)?;
        Ok(())
    }
}

impl GuestState {
    fn open_container(&mut self, name: String) -> Result<Answer<Resource<Container>>> {
        match open(&self.shared, &name) {
            Ok(held) => Ok(Ok(self.table.push(Container { name, held })?)),
            Err(why) => Ok(Err(why)),
        }
    }
}

fn open(shared: &ReplicaShared, name: &str) -> Answer<Arc<dyn BlobContainer>> {
    let held = shared.config.blobs.open(name);
    held.inspect_err(|_| shared.refusals.tell(Refused::Blobstore(name)))
}

async fn copy(shared: &ReplicaShared, from: &types::ObjectId, to: &types::ObjectId) -> Answer<()> {
    let (source, target) = (open(shared, &from.container)?, open(shared, &to.container)?);
    check_name(&to.object)?;
    let info = object_of(&*source, &from.object).await?;
    if Arc::ptr_eq(&source, &target) && from.object == to.object {
        return Ok(());
    }
    let body = source.read(&from.object, 0, info.size).await?;
    target.write(&to.object, body).await
}

impl blobstore::Host for GuestState {
    async fn create_container(&mut self, name: String) -> Result<Answer<Resource<Container>>> {
        self.open_container(name)
    }

    async fn get_container(&mut self, name: String) -> Result<Answer<Resource<Container>>> {
        self.open_container(name)
    }

    async fn delete_container(&mut self, name: String) -> Result<Answer<()>> {
        match open(&self.shared, &name) {
            Ok(held) => Ok(delete_all(&*held).await),
            Err(why) => Ok(Err(why)),
        }
    }

    async fn container_exists(&mut self, name: String) -> Result<Answer<bool>> {
        Ok(Ok(self.shared.config.blobs.open(&name).is_ok()))
    }

    async fn copy_object(
        &mut self,
        from: types::ObjectId,
        to: types::ObjectId,
    ) -> Result<Answer<()>> {
        let shared = self.shared.clone();
        Ok(copy(&shared, &from, &to).await)
    }

    async fn move_object(
        &mut self,
        from: types::ObjectId,
        to: types::ObjectId,
    ) -> Result<Answer<()>> {
        let shared = self.shared.clone();
        if let Err(why) = copy(&shared, &from, &to).await {
            return Ok(Err(why));
        }
        match open(&shared, &from.container) {
            Ok(_) if from.container == to.container && from.object == to.object => Ok(Ok(())),
            Ok(source) => Ok(source.delete(&from.object).await),
            Err(why) => Ok(Err(why)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_value_that_does_not_come_is_given_up() {
        let (mut sender, body) = tokio::io::duplex(8);
        tokio::io::AsyncWriteExt::write_all(&mut sender, b"part")
            .await
            .unwrap();
        let why = read_whole(body, SYNC_TIMEOUT).await.unwrap_err();
        assert!(why.contains("as a stream"), "{why}");
    }
}
