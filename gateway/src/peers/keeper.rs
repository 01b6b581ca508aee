//! Drives one connection to another host until it ends, is not used, or can be replaced by a direct one.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::timeout;
use wasmorch_api::error::chain;

use super::Peer;
use crate::socket;
use crate::tunnel::Pipe;

/// Dials.
pub(super) async fn direct(address: &str) -> Result<Pipe, String> {
    let stream = TcpStream::connect(address)
        .await
        .map_err(|e| e.to_string())?;
    socket::prepare(&stream).map_err(|e| e.to_string())?;
    Ok(Pipe::new(stream))
}

/// Drives one connection.
pub(super) struct Keeper {
    pub(super) peer: Arc<Peer>,
    pub(super) turn: usize,
    pub(super) idle: Duration,
    /// For a tunnelled one: how long dialling may take, and how often it is tried.
    pub(super) redial: Option<(Duration, (Duration, Duration))>,
}

impl Keeper {
    /// Until the connection ends; lets it end when it is not used for a while, or when the host can
    /// be dialled again. Without a sender it ends by itself, after what is in hand.
    pub(super) async fn keep(self, connection: impl Future<Output = hyper::Result<()>>) {
        let slot = &self.peer.slots[self.turn];
        let mut connection = pin!(connection);
        let mut answers = pin!(self.answers_directly());
        let mut direct = false;
        let mut used = slot.used.load(Relaxed);
        loop {
            tokio::select! {
                ended = &mut connection => {
                    if let Err(error) = ended {
                        let (peer, error) = (self.peer.name(), chain(&error));
                        tracing::debug!(peer, error, "connection ended");
                    }
                    return;
                }
                () = &mut answers, if !direct => {
                    direct = true;
                    self.peer.went_directly();
                    slot.set(None);
                }
                () = tokio::time::sleep(self.idle) => {
                    let now = slot.used.load(Relaxed);
                    if now == used && self.peer.in_flight() == 0 {
                        slot.set(None);
                    }
                    used = now;
                }
            }
        }
    }

    /// Returns once the host has answered on its own address; never when it is reached there.
    async fn answers_directly(&self) {
        let (Some((connect, pauses)), Some(address)) = (self.redial, &self.peer.address) else {
            return std::future::pending().await;
        };
        loop {
            tokio::time::sleep(self.peer.dials_in().max(pauses.0)).await;
            if matches!(timeout(connect, direct(address)).await, Ok(Ok(_))) {
                return;
            }
            self.peer.went_through_tunnel(pauses);
        }
    }
}
