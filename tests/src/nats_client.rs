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
        let servers: Vec<&str> = url.split(',').collect();
        let client = runtime
            .block_on(
                async_nats::ConnectOptions::new()
                    .request_timeout(Some(Duration::from_secs(30)))
                    .connect(servers),
            )
            .unwrap_or_else(|error| panic!("cannot connect to {url}: {error}"));
        Self { runtime, client }
    }

    /// Request and reply.
    #[track_caller]
    pub fn request(&self, subject: &str, body: &[u8]) -> Vec<u8> {
        let reply = self.requested(subject, body);
        reply.unwrap_or_else(|error| panic!("{subject}: {error}"))
    }

    /// Request and reply; `None` when nobody listens. Whoever listens has to answer.
    #[track_caller]
    pub fn try_request(&self, subject: &str, body: &[u8]) -> Option<Vec<u8>> {
        match self.requested(subject, body) {
            Err(error) if error.kind() == async_nats::RequestErrorKind::NoResponders => None,
            reply => Some(reply.unwrap_or_else(|error| panic!("{subject}: {error}"))),
        }
    }

    fn requested(&self, subject: &str, body: &[u8]) -> Result<Vec<u8>, async_nats::RequestError> {
        let body = bytes::Bytes::copy_from_slice(body);
        let asked = self.client.request(subject.to_owned(), body);
        let reply = self.runtime.block_on(asked)?;
        Ok(reply.payload.to_vec())
    }

    /// Request and reply in JSON; `None` while nobody answers.
    pub fn try_json(&self, subject: &str, body: &Value) -> Option<Value> {
        let reply = self.requested(subject, body.to_string().as_bytes()).ok()?;
        serde_json::from_slice(&reply).ok()
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
        (status(&reply), reply.payload.to_vec())
    }

    /// A call without headers; the reply's `Wasmorch-Status` and body, or why there is none.
    pub fn try_invoke(
        &self,
        subject: &str,
        patience: Duration,
    ) -> Result<(Option<String>, Vec<u8>), String> {
        let request = async_nats::Request::new().timeout(Some(patience));
        let asked = self.client.send_request(subject.to_owned(), request);
        let reply = self.runtime.block_on(asked);
        let reply = reply.map_err(|error| error.to_string())?;
        Ok((status(&reply), reply.payload.to_vec()))
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

fn status(reply: &async_nats::Message) -> Option<String> {
    let headers = reply.headers.as_ref()?;
    let status = headers.get("Wasmorch-Status")?;
    Some(status.as_str().to_owned())
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

/// A subscription.
pub struct Messages<'a> {
    client: &'a Client,
    messages: async_nats::Subscriber,
}

impl Messages<'_> {
    /// The next message, as JSON.
    pub fn next(&mut self, patience: Duration) -> Option<Value> {
        serde_json::from_slice(&self.next_body(patience)?).ok()
    }

    /// The next message, as it came.
    pub fn next_body(&mut self, patience: Duration) -> Option<Vec<u8>> {
        use futures::StreamExt as _;
        let next = async { tokio::time::timeout(patience, self.messages.next()).await };
        let message = self.client.runtime.block_on(next).ok()??;
        Some(message.payload.to_vec())
    }
}

/// A value of the state bucket.
#[derive(Debug, Clone, PartialEq)]
pub struct Kept {
    /// The value.
    pub value: Value,
    /// Its sequence.
    pub sequence: u64,
}

impl Client {
    /// Request and reply in JSON, once: `None` when there is nobody, or no answer within `patience`.
    pub fn ask(&self, subject: &str, body: &Value, patience: Duration) -> Option<Value> {
        let request = async_nats::Request::new()
            .payload(body.to_string().into())
            .timeout(Some(patience));
        let asked = self.client.send_request(subject.to_owned(), request);
        let reply = self.runtime.block_on(asked).ok()?;
        serde_json::from_slice(&reply.payload).ok()
    }

    /// A key of the state bucket; `None`: there is none.
    pub fn kept(&self, key: &str) -> Option<Kept> {
        self.runtime.block_on(async {
            let context = async_nats::jetstream::new(self.client.clone());
            let bucket = context.get_key_value("wasmorch_state").await.ok()?;
            let entry = bucket.entry(key).await.ok()??;
            let value = serde_json::from_slice(&entry.value).ok()?;
            let sequence = entry.revision;
            Some(Kept { value, sequence })
        })
    }

    /// Every key of the state bucket that begins with one of these, with its sequence.
    #[track_caller]
    pub fn keys(&self, prefixes: &[&str]) -> Vec<(String, u64)> {
        use futures::TryStreamExt as _;
        self.runtime.block_on(async {
            let context = async_nats::jetstream::new(self.client.clone());
            let bucket = context
                .get_key_value("wasmorch_state")
                .await
                .expect("the bucket is there");
            let keys = bucket.keys().await.expect("its keys are listed");
            let mut keys: Vec<String> = keys.try_collect().await.expect("its keys are listed");
            keys.retain(|key| prefixes.iter().any(|prefix| key.starts_with(prefix)));
            keys.sort();
            let mut found = Vec::new();
            for key in keys {
                let entry = bucket.entry(&key).await.expect("a key is read");
                found.extend(entry.map(|entry| (key, entry.revision)));
            }
            found
        })
    }

    /// A raw write to a stream with headers: its acknowledgement, or the stream's refusal.
    #[track_caller]
    pub fn put(&self, subject: &str, headers: &[(&str, &str)], body: &[u8]) -> Value {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, *value);
        }
        let body = bytes::Bytes::copy_from_slice(body);
        let asked = self
            .client
            .request_with_headers(subject.to_owned(), map, body);
        let reply = self.runtime.block_on(asked).expect("the stream answers");
        serde_json::from_slice(&reply.payload).expect("an acknowledgement is JSON")
    }

    /// Publishes with headers and flushes.
    pub fn say(&self, subject: &str, headers: &[(&str, &str)], body: &[u8]) {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, *value);
        }
        let body = bytes::Bytes::copy_from_slice(body);
        self.runtime.block_on(async {
            self.client
                .publish_with_headers(subject.to_owned(), map, body)
                .await
                .expect("publishes");
            self.client.flush().await.expect("flushes");
        });
    }

    /// Follows a subject from now on.
    #[track_caller]
    pub fn subscribe(&self, subject: &str) -> Messages<'_> {
        let messages = self.runtime.block_on(async {
            let messages = self.client.subscribe(subject.to_owned()).await;
            self.client.flush().await.expect("flushes");
            messages.expect("subscribes")
        });
        Messages {
            client: self,
            messages,
        }
    }

    /// What a stream says of itself.
    pub fn stream(&self, name: &str) -> Option<Value> {
        let subject = format!("$JS.API.STREAM.INFO.{name}");
        let info = self.ask(&subject, &Value::Null, Duration::from_secs(2))?;
        info["error"].is_null().then_some(info)
    }

    /// The last event of a kind about the whole cluster.
    pub fn last_event(&self, kind: &str) -> Option<Value> {
        self.runtime.block_on(async {
            let context = async_nats::jetstream::new(self.client.clone());
            let stream = context.get_stream("wasmorch_events").await.ok()?;
            let subject = format!("wasmorch.v1.events._.{kind}");
            let message = stream
                .get_last_raw_message_by_subject(&subject)
                .await
                .ok()?;
            serde_json::from_slice(&message.payload).ok()
        })
    }
}
