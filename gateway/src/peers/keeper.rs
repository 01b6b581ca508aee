//! Drives one connection to another host until it ends, is not used, or can be replaced by a direct one.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use hyper::client::conn::http2;
use tokio::time::timeout;
use wasmorch_api::error::chain;

use super::dial::direct;
use super::{Peer, Tasks};

/// Drives one connection.
pub(super) struct Keeper {
    pub(super) peer: Arc<Peer>,
    pub(super) turn: usize,
    pub(super) idle: Duration,
    /// For a tunnelled one.
    pub(super) redial: Option<Redial>,
}

/// How the host is dialled again.
pub(super) struct Redial {
    pub(super) builder: http2::Builder<Tasks>,
    /// How long it may take.
    pub(super) within: Duration,
    /// How often: from the first to the last.
    pub(super) pauses: (Duration, Duration),
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
                    if now == used && slot.is_idle() {
                        slot.set(None);
                    }
                    used = now;
                }
            }
        }
    }

    /// Returns once the host has answered on its own address, whoever asked there; never when it is reached
    /// there.
    async fn answers_directly(&self) {
        let (Some(redial), Some(address)) = (&self.redial, &self.peer.address) else {
            return std::future::pending().await;
        };
        let mut reached = self.peer.reached.subscribe();
        let dials = async {
            loop {
                tokio::time::sleep(self.peer.dials_in().max(redial.pauses.0)).await;
                let dialled = direct(&redial.builder, address, &self.peer.host);
                if matches!(timeout(redial.within, dialled).await, Ok(Ok(_))) {
                    return;
                }
                self.peer.went_through_tunnel(redial.pauses);
            }
        };
        tokio::select! {
            () = dials => {}
            // Another connection was faster, and its own next try may be half a minute away.
            Ok(()) = reached.changed() => {}
        }
    }
}
