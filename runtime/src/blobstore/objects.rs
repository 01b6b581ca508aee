//! Containers of the `object_store` crate: a folder of this machine, S3.

use std::collections::BTreeSet;
use std::path::Path as FilePath;
use std::sync::Arc;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _};
use object_store::aws::AmazonS3Builder;
use object_store::buffered::BufWriter;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{Error, GetOptions, GetRange, ObjectStore, ObjectStoreExt as _};
use tokio::io::AsyncWriteExt as _;
use tokio_util::io::StreamReader;
use wasmorch_api::ByteSize;

use super::room::Room;
use super::{BlobContainer, BlobRead, ObjectInfo};

/// What is held of an upload before it becomes one of several parts.
const PART_BYTES: usize = 5 << 20;
/// Parts under way at once.
const PARTS: usize = 2;
/// What of an object that is written may be on its way: those, and the part that is being filled.
const BEHIND_BYTES: u64 = ((PARTS + 1) * PART_BYTES) as u64;

/// Why a container cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ObjectsError(String);

/// What says who comes: all of one of these, or nobody does. Where none is whole, object_store asks the
/// machine for its role, which is the host's own and no workload's.
const CREDENTIALS: [&[&str]; 4] = [
    &["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"],
    &["AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_ROLE_ARN"],
    &["AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"],
    &[
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    ],
];
/// Or that nobody has to be anybody.
const UNSIGNED: &str = "AWS_SKIP_SIGNATURE";

/// Where an S3 bucket is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct S3Settings {
    /// The bucket.
    pub bucket: String,
    /// Where, when it is not Amazon's: `http://10.0.0.5:9000`.
    pub endpoint: Option<String>,
    /// The region; `us-east-1` when there is none.
    pub region: Option<String>,
    /// What all names in the bucket begin with.
    pub prefix: Option<String>,
}

/// A container of an object store, below a prefix.
pub struct ObjectsContainer {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
    /// On disk: how much it may hold.
    room: Option<Room>,
}

impl ObjectsContainer {
    /// In a folder, which is made when it is not there, and which may hold so much.
    ///
    /// # Errors
    ///
    /// When it cannot be made or read.
    pub fn on_disk(folder: &FilePath, size: ByteSize) -> Result<Self, ObjectsError> {
        std::fs::create_dir_all(folder)
            .map_err(|error| ObjectsError(format!("{}: {error}", folder.display())))?;
        let store = LocalFileSystem::new_with_prefix(folder)
            .map_err(|error| ObjectsError(error.to_string()))?
            // The folders of a name go with the last object in them: they take room too.
            .with_automatic_cleanup(true);
        Ok(Self {
            store: Arc::new(store),
            prefix: Path::default(),
            room: Some(Room::new(folder.to_owned(), size)),
        })
    }

    /// In S3, or in what speaks its protocol. Who comes is in the environment of the host
    /// (`AWS_ACCESS_KEY_ID` and its like).
    ///
    /// # Errors
    ///
    /// What is wrong with the settings, or that the environment names nobody.
    pub fn in_s3(
        settings: &S3Settings,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ObjectsError> {
        let mut builder = AmazonS3Builder::new();
        let mut given = BTreeSet::new();
        for (name, value) in environment {
            if !name.starts_with("AWS_") || value.is_empty() {
                continue;
            }
            if let Ok(key) = name.to_ascii_lowercase().parse() {
                let unsigned = name == UNSIGNED && !value.eq_ignore_ascii_case("true");
                builder = builder.with_config(key, value);
                if !unsigned {
                    given.insert(name);
                }
            }
        }
        let whole = |all: &&[&str]| all.iter().all(|one| given.contains(*one));
        if !given.contains(UNSIGNED) && !CREDENTIALS.iter().any(whole) {
            return Err(ObjectsError(
                "this host has no keys for S3: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the \
                 environment of `wasmorch host`"
                    .to_owned(),
            ));
        }
        let mut builder = builder.with_bucket_name(&settings.bucket);
        // Where neither names one, the builder takes us-east-1.
        if let Some(region) = &settings.region {
            builder = builder.with_region(region);
        }
        if let Some(endpoint) = &settings.endpoint {
            let plain = endpoint.starts_with("http://");
            builder = builder.with_endpoint(endpoint).with_allow_http(plain);
        }
        let wrong = |error: &dyn std::fmt::Display| ObjectsError(error.to_string());
        let store = builder.build().map_err(|error| wrong(&error))?;
        let prefix = settings.prefix.as_deref().unwrap_or_default();
        Ok(Self {
            store: Arc::new(store),
            prefix: Path::parse(prefix).map_err(|error| wrong(&error))?,
            room: None,
        })
    }

    fn path(&self, name: &str) -> Result<Path, String> {
        let encoded = encode(name);
        let path = match self.prefix.as_ref() {
            "" => Path::parse(encoded),
            prefix => Path::parse(format!("{prefix}/{encoded}")),
        };
        path.map_err(|error| error.to_string())
    }
}

/// A name that is no path of an object store (or begins with `=`) is `=` and its base64url.
fn encode(name: &str) -> String {
    let is_path = !name.starts_with('=')
        // What object_store's folders add to names of uploads under way.
        && !name.contains('#')
        && Path::parse(name).is_ok_and(|path| path.as_ref() == name);
    if is_path {
        name.to_owned()
    } else {
        format!("={}", URL_SAFE_NO_PAD.encode(name))
    }
}

fn decode(path: &str) -> Option<String> {
    match path.strip_prefix('=') {
        None => Some(path.to_owned()),
        Some(rest) => String::from_utf8(URL_SAFE_NO_PAD.decode(rest).ok()?).ok(),
    }
}

fn failed(error: &Error) -> String {
    error.to_string()
}

#[async_trait]
impl BlobContainer for ObjectsContainer {
    async fn created(&self) -> Result<u64, String> {
        Ok(0)
    }

    async fn object(&self, name: &str) -> Result<Option<ObjectInfo>, String> {
        match self.store.head(&self.path(name)?).await {
            Ok(meta) => Ok(Some(ObjectInfo {
                size: meta.size,
                written: u64::try_from(meta.last_modified.timestamp()).unwrap_or(0),
            })),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(failed(&error)),
        }
    }

    async fn read(&self, name: &str, start: u64, length: u64) -> Result<BlobRead, String> {
        if length == 0 {
            return Ok(Box::pin(tokio::io::empty()));
        }
        let options = GetOptions {
            range: Some(GetRange::Bounded(start..start.saturating_add(length))),
            ..GetOptions::default()
        };
        let found = self.store.get_opts(&self.path(name)?, options).await;
        let bytes = found.map_err(|error| failed(&error))?.into_stream();
        let bytes = bytes.map_err(std::io::Error::other);
        Ok(Box::pin(StreamReader::new(bytes)))
    }

    async fn write(&self, name: &str, mut body: BlobRead) -> Result<(), String> {
        let path = self.path(name)?;
        let folders = path.as_ref().matches('/').count() as u64;
        let mut writer = BufWriter::with_capacity(self.store.clone(), path, PART_BYTES)
            .with_max_concurrency(PARTS);
        let copied = match &self.room {
            Some(room) => {
                room.copy(&mut body, &mut writer, folders, BEHIND_BYTES)
                    .await
            }
            None => tokio::io::copy(&mut body, &mut writer)
                .await
                .map(|_| Vec::new()),
        };
        match copied {
            // Shutting down is what makes the object; until then its end is in hand.
            Ok(_in_hand) => writer.shutdown().await.map_err(|error| error.to_string()),
            Err(error) => {
                // Parts that were sent are of no use.
                let _ = writer.abort().await;
                Err(error.to_string())
            }
        }
    }

    async fn delete(&self, name: &str) -> Result<(), String> {
        match self.store.delete(&self.path(name)?).await {
            Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(failed(&error)),
        }
    }

    async fn names(&self) -> Result<BoxStream<'static, Result<String, String>>, String> {
        let prefix = self.prefix.clone();
        let below = (!prefix.as_ref().is_empty()).then_some(&self.prefix);
        let names = self.store.list(below).filter_map(move |found| {
            let name = match found {
                Ok(meta) => {
                    let path = meta.location.as_ref();
                    let rest = path.strip_prefix(prefix.as_ref());
                    rest.map(|rest| rest.trim_start_matches('/'))
                        .and_then(decode)
                        .map(Ok)
                }
                Err(error) => Some(Err(failed(&error))),
            };
            std::future::ready(name)
        });
        Ok(names.boxed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_name_has_a_path_of_its_own_and_comes_back() {
        for (name, plain) in [
            ("cat.png", true),
            ("2026/cat.png", true),
            ("with space", true),
            ("../up", false),
            ("/etc/passwd", false),
            ("a//b", false),
            ("a/", false),
            ("a/./b", false),
            ("=", false),
            ("a#1", false),
        ] {
            let encoded = encode(name);
            assert_eq!(encoded == name, plain, "{name:?} {encoded}");
            assert!(Path::parse(&encoded).is_ok_and(|path| path.as_ref() == encoded));
            assert_eq!(decode(&encoded).as_deref(), Some(name));
        }
    }
}
