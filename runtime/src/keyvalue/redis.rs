//! A store in Redis, or in whatever speaks its protocol.
//!
//! Keys are stored under a prefix, so that workloads share a server without meeting. One connection
//! per replica, made when it is first used and made anew when it breaks.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::{Client, Cmd, FromRedisValue, RedisError, Script, cmd};

use super::{KEYS_PAGE, KeyValueError, KeyValueStore, Keys, VALUE_BYTES_MAX, Version};
use crate::budget::MemoryShare;

/// For one answer.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(5);
/// For a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Tries of a connection before a call fails.
const CONNECT_RETRIES: usize = 1;
/// Calls of `SCAN` for one page: it may find nothing for a long time where others have many keys.
const SCANS_MAX: usize = 100;
/// A value up to here costs no more than the call itself; of a larger one it is known before it is
/// read.
const SMALL_BYTES: usize = 64 << 10;
/// Tries to read a value that grows meanwhile.
const READS_MAX: usize = 5;

/// Compares and sets in one step: the value is as it was read, or absent as it was.
const SWAP: &str = "\
    local held = redis.call('GET', KEYS[1]) \
    if (ARGV[1] == '1' and held == ARGV[2]) or (ARGV[1] == '0' and not held) then \
        redis.call('SET', KEYS[1], ARGV[3]) return 1 \
    end \
    return 0";

/// A store in Redis.
pub struct RedisStore {
    connection: ConnectionManager,
    prefix: String,
    swap: Script,
    share: MemoryShare,
}

impl RedisStore {
    /// A store under `prefix` at `url` (`redis://[user:password@]host[:port][/database]`), whose large values
    /// are read within this share. Connects when it is first used.
    ///
    /// # Errors
    ///
    /// Why the URL is none.
    pub fn new(url: &str, prefix: impl Into<String>, share: MemoryShare) -> Result<Self, String> {
        if url.starts_with("rediss:") {
            return Err("TLS to Redis (rediss://) is not in this version: use redis://".into());
        }
        let config = ConnectionManagerConfig::new()
            .set_number_of_retries(CONNECT_RETRIES)
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(RESPONSE_TIMEOUT));
        let connection = Client::open(url)
            .and_then(|client| ConnectionManager::new_lazy_with_config(client, config))
            .map_err(|error| error.to_string())?;
        Ok(Self {
            connection,
            prefix: prefix.into(),
            swap: Script::new(SWAP),
            share,
        })
    }

    fn key(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    async fn ask<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, KeyValueError> {
        let mut connection = self.connection.clone();
        command.query_async(&mut connection).await.map_err(failed)
    }
}

fn failed(error: RedisError) -> KeyValueError {
    KeyValueError::other(format!("redis: {error}"))
}

/// A prefix as a pattern of `SCAN`: what would be a wildcard stands for itself.
fn pattern(prefix: &str) -> String {
    let mut pattern = String::with_capacity(prefix.len() + 1);
    for c in prefix.chars() {
        if matches!(c, '*' | '?' | '[' | ']' | '\\' | '^') {
            pattern.push('\\');
        }
        pattern.push(c);
    }
    pattern.push('*');
    pattern
}

#[async_trait]
impl KeyValueStore for RedisStore {
    async fn get(&self, key: &str) -> Result<Option<Bytes>, KeyValueError> {
        for _ in 0..READS_MAX {
            // Whoever may write to the server wrote that many.
            let size: usize = self.ask(cmd("STRLEN").arg(self.key(key))).await?;
            if size > VALUE_BYTES_MAX {
                return Err(KeyValueError::other(format!(
                    "the value of this key has {size} bytes: at most {VALUE_BYTES_MAX} are read"
                )));
            }
            let held = if size > SMALL_BYTES {
                let held = self.share.hold(size).await;
                Some(held.map_err(KeyValueError::other)?)
            } else {
                None
            };
            let value: Option<Vec<u8>> = self.ask(cmd("GET").arg(self.key(key))).await?;
            match (value, held) {
                (None, _) => return Ok(None),
                // It is another one by now, and larger than what is held.
                (Some(value), _) if value.len() > size.max(SMALL_BYTES) => {}
                (Some(value), Some(held)) => return Ok(Some(held.keep(value))),
                (Some(value), None) => return Ok(Some(value.into())),
            }
        }
        Err(KeyValueError::other(
            "the value of this key grows while it is read; try again",
        ))
    }

    async fn set(&self, key: &str, value: Bytes) -> Result<(), KeyValueError> {
        self.ask(cmd("SET").arg(self.key(key)).arg(&value[..]))
            .await
    }

    async fn delete(&self, key: &str) -> Result<(), KeyValueError> {
        self.ask::<u64>(cmd("DEL").arg(self.key(key))).await?;
        Ok(())
    }

    async fn exists(&self, key: &str) -> Result<bool, KeyValueError> {
        self.ask(cmd("EXISTS").arg(self.key(key))).await
    }

    async fn keys(&self, cursor: Option<u64>) -> Result<Keys, KeyValueError> {
        let pattern = pattern(&self.prefix);
        let mut cursor = cursor.unwrap_or(0);
        let mut keys = Vec::new();
        for _ in 0..SCANS_MAX {
            let mut scan = cmd("SCAN");
            scan.arg(cursor).arg("MATCH").arg(&pattern);
            scan.arg("COUNT").arg(KEYS_PAGE);
            let (next, found): (u64, Vec<Vec<u8>>) = self.ask(&scan).await?;
            // A key that is no text is not one of ours.
            let texts = found.into_iter().filter_map(|k| String::from_utf8(k).ok());
            keys.extend(texts.filter_map(|k| k.strip_prefix(&self.prefix).map(str::to_owned)));
            cursor = next;
            if cursor == 0 || !keys.is_empty() {
                break;
            }
        }
        Ok(Keys {
            keys,
            cursor: (cursor != 0).then_some(cursor),
        })
    }

    async fn read(&self, key: &str) -> Result<(Option<Bytes>, Version), KeyValueError> {
        let value = self.get(key).await?;
        Ok((value.clone(), Version::Value(value)))
    }

    async fn swap(
        &self,
        key: &str,
        version: &Version,
        value: Bytes,
    ) -> Result<bool, KeyValueError> {
        let Version::Value(expected) = version else {
            return Ok(false);
        };
        let mut connection = self.connection.clone();
        let swapped: u8 = self
            .swap
            .key(self.key(key))
            .arg(u8::from(expected.is_some()))
            .arg(expected.as_deref().unwrap_or_default())
            .arg(&value[..])
            .invoke_async(&mut connection)
            .await
            .map_err(failed)?;
        Ok(swapped == 1)
    }

    async fn increment(&self, key: &str, delta: i64) -> Result<i64, KeyValueError> {
        self.ask(cmd("INCRBY").arg(self.key(key)).arg(delta)).await
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[test]
    fn a_prefix_is_no_pattern() {
        assert_eq!(pattern("shop_cart:"), "shop_cart:*");
        assert_eq!(pattern("a*[b]?\\"), "a\\*\\[b\\]\\?\\\\*");
    }

    /// A server that says of every value that it has `told` bytes, and gives this one.
    async fn server(told: usize, value: &'static [u8]) -> RedisStore {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("redis://{}/0", listener.local_addr().unwrap());
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = tokio::io::BufStream::new(stream);
            let mut line = String::new();
            // A command is `*<parts>`, and each part `$<bytes>`, then those.
            while stream.read_line(&mut line).await.unwrap() > 0 {
                let parts: usize = line[1..].trim().parse().unwrap();
                let mut command = Vec::new();
                for _ in 0..parts {
                    line.clear();
                    stream.read_line(&mut line).await.unwrap();
                    let mut part = vec![0; line[1..].trim().parse::<usize>().unwrap() + 2];
                    stream.read_exact(&mut part).await.unwrap();
                    command.push(part);
                }
                line.clear();
                let answer = match command[0].trim_ascii() {
                    b"STRLEN" => format!(":{told}\r\n").into_bytes(),
                    b"GET" => {
                        let head = format!("${}\r\n", value.len()).into_bytes();
                        [&head, value, b"\r\n"].concat()
                    }
                    _ => b"+OK\r\n".to_vec(),
                };
                stream.write_all(&answer).await.unwrap();
                stream.flush().await.unwrap();
            }
        });
        RedisStore::new(&url, "", MemoryShare::default()).unwrap()
    }

    #[tokio::test]
    async fn a_value_is_no_larger_than_it_may_be_and_than_it_was_said_to_be() {
        const LARGE: &[u8] = &[7; SMALL_BYTES + 2];
        let get = async |told, value| server(told, value).await.get("k").await;
        assert_eq!(get(5, b"value").await.unwrap().unwrap(), "value");
        assert_eq!(get(LARGE.len(), LARGE).await.unwrap().unwrap(), LARGE);
        let why = |error: KeyValueError| error.to_string();
        let error = why(get(VALUE_BYTES_MAX + 1, b"x").await.unwrap_err());
        assert!(error.contains("at most 33554432"), "{error}");
        let error = why(get(LARGE.len() - 1, LARGE).await.unwrap_err());
        assert!(error.contains("grows"), "{error}");
        // A small one may grow into another small one: it needs no room.
        assert_eq!(get(1, b"value").await.unwrap().unwrap(), "value");
    }

    #[tokio::test]
    async fn what_is_no_url_is_refused_before_anything_is_reached() {
        for bad in ["", "http://x", "rediss://x", "redis//"] {
            assert!(
                RedisStore::new(bad, "", MemoryShare::default()).is_err(),
                "{bad}"
            );
        }
        assert!(RedisStore::new("redis://127.0.0.1:1/0", "a:", MemoryShare::default()).is_ok());
    }
}
