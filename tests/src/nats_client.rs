//! A blocking NATS client: what another service would send, in one line of a test.

use std::time::Duration;

use async_nats::HeaderMap;
use serde_json::Value;
use tokio::runtime::{Builder, Runtime};

/// A connection with a little runtime of its own.
pub struct Client {
    runtime: Runtime,
    client: async_nats::Client,
}

impl Client {
    /// Connects.
    pub fn connect(url: &str) -> Self {
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime starts");
        let client = runtime
            .block_on(
                async_nats::ConnectOptions::new()
                    .request_timeout(Some(Duration::from_secs(30)))
                    .connect(url),
            )
            .unwrap_or_else(|error| panic!("cannot connect to {url}: {error}"));
        Self { runtime, client }
    }

    /// Request and reply.
    #[track_caller]
    pub fn request(&self, subject: &str, body: &[u8]) -> Vec<u8> {
        let body = bytes::Bytes::copy_from_slice(body);
        let asked = self.client.request(subject.to_owned(), body);
        let reply = self.runtime.block_on(asked);
        reply
            .unwrap_or_else(|error| panic!("{subject}: {error}"))
            .payload
            .to_vec()
    }

    /// Request and reply in JSON; `None` while nobody answers.
    pub fn try_json(&self, subject: &str, body: &Value) -> Option<Value> {
        let body = bytes::Bytes::from(body.to_string());
        let asked = self.client.request(subject.to_owned(), body);
        let reply = self.runtime.block_on(asked).ok()?;
        serde_json::from_slice(&reply.payload).ok()
    }

    /// Request and reply in JSON.
    #[track_caller]
    pub fn json(&self, subject: &str, body: &Value) -> Value {
        let reply = self.request(subject, body.to_string().as_bytes());
        serde_json::from_slice(&reply).unwrap_or_else(|error| {
            panic!("{subject}: {error}: {}", String::from_utf8_lossy(&reply))
        })
    }

    /// A request with headers; the reply's `Wasmorch-Status` and body.
    #[track_caller]
    pub fn invoke(
        &self,
        subject: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> (Option<String>, Vec<u8>) {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, *value);
        }
        let body = bytes::Bytes::copy_from_slice(body);
        let asked = self
            .client
            .request_with_headers(subject.to_owned(), map, body);
        let reply = self
            .runtime
            .block_on(asked)
            .unwrap_or_else(|error| panic!("{subject}: {error}"));
        let status = reply
            .headers
            .as_ref()
            .and_then(|headers| headers.get("Wasmorch-Status"))
            .map(|value| value.as_str().to_owned());
        (status, reply.payload.to_vec())
    }

    /// Publishes and flushes.
    pub fn publish(&self, subject: &str, body: &[u8]) {
        let body = bytes::Bytes::copy_from_slice(body);
        self.runtime.block_on(async {
            self.client
                .publish(subject.to_owned(), body)
                .await
                .expect("publishes");
            self.client.flush().await.expect("flushes");
        });
    }
}

impl Client {
    /// Puts an object in place of what is there.
    pub fn put_object(&self, bucket: &str, name: &str, bytes: &[u8]) {
        self.runtime.block_on(async {
            let context = async_nats::jetstream::new(self.client.clone());
            let store = context
                .get_object_store(bucket)
                .await
                .expect("the bucket is there");
            store
                .put(name, &mut &bytes[..])
                .await
                .expect("the object is stored");
        });
    }
}
