//! A host that only speaks: it says that whatever it is given runs and is ready.

use std::sync::Arc;
use std::time::Duration;

use async_nats::Client;
use futures::StreamExt;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;
use wasmorch_api::status::Capacity;
use wasmorch_api::{
    ClusterId, Heartbeat, HostId, HostInfo, PlacementSet, ReplicaId, ReplicaState, ReplicaStatus,
    StatusReport, Term, Timestamp, subjects,
};

/// A host that says that whatever it is given runs and is ready.
pub(crate) struct FakeHost {
    pub(crate) set: Arc<Mutex<Option<PlacementSet>>>,
    /// The sequence that it says it holds, whatever it was given.
    pub(crate) claims: Arc<Mutex<Option<u64>>>,
    stop: CancellationToken,
}

struct Voice {
    client: Client,
    cluster: ClusterId,
    host: HostId,
    applied: u64,
    status_seq: u64,
    set: Arc<Mutex<Option<PlacementSet>>>,
    claims: Arc<Mutex<Option<u64>>>,
}

impl FakeHost {
    pub(crate) async fn start(client: &Client, cluster: ClusterId, id: &str) -> Self {
        let (set, claims) = (Arc::new(Mutex::new(None)), Arc::new(Mutex::new(None)));
        let voice = Voice {
            client: client.clone(),
            cluster,
            host: id.parse().unwrap(),
            applied: 0,
            status_seq: 0,
            set: set.clone(),
            claims: claims.clone(),
        };
        let placements = client
            .subscribe(subjects::placements(&voice.host))
            .await
            .unwrap();
        let questions = client
            .subscribe(subjects::host(&voice.host, "status"))
            .await
            .unwrap();
        let stop = CancellationToken::new();
        tokio::spawn(voice.live(placements, questions, stop.clone()));
        Self { set, claims, stop }
    }
}

impl Drop for FakeHost {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Voice {
    async fn live(
        mut self,
        mut placements: async_nats::Subscriber,
        mut questions: async_nats::Subscriber,
        stop: CancellationToken,
    ) {
        let mut beat = tokio::time::interval(Duration::from_millis(200));
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = beat.tick() => self.beat().await,
                message = placements.next() => {
                    let message = message.unwrap();
                    let sequence = message.headers.unwrap().get("Nats-Sequence").unwrap().as_str().parse();
                    self.applied = sequence.unwrap();
                    let set: PlacementSet = serde_json::from_slice(&message.payload).unwrap();
                    *self.set.lock().await = Some(set);
                    self.status_seq += 1;
                    let report = self.report(false).await;
                    self.client.publish(subjects::status(&self.host), report).await.unwrap();
                }
                question = questions.next() => {
                    let report = self.report(true).await;
                    self.client.publish(question.unwrap().reply.unwrap(), report).await.unwrap();
                }
            }
        }
    }

    async fn beat(&self) {
        let beat = Heartbeat {
            sequence: self.claims.lock().await.unwrap_or(self.applied),
            status_seq: self.status_seq,
            info: HostInfo {
                name: self.host.as_str().parse().unwrap(),
                arch: "x86_64".into(),
                capacity: Capacity {
                    memory_bytes: 1 << 30,
                    cpu_millis: 4_000,
                    replicas: 100,
                },
                ..HostInfo::default()
            },
            ..Heartbeat::new(
                self.cluster.clone(),
                self.host.clone(),
                "b1".parse().unwrap(),
                Term(1),
            )
        };
        let body = serde_json::to_vec(&beat).unwrap();
        self.client
            .publish(subjects::heartbeat(&self.host), body.into())
            .await
            .unwrap();
    }

    async fn report(&self, full: bool) -> bytes::Bytes {
        let set = self.set.lock().await;
        let groups = set.iter().flat_map(|set| &set.groups);
        let replicas = groups
            .flat_map(|group| group.slots.iter().map(move |slot| (group, slot)))
            .map(|(group, slot)| ReplicaStatus {
                ready: true,
                ..ReplicaStatus::new(
                    &group.key(),
                    ReplicaId {
                        slot: slot.slot,
                        placement: slot.placement,
                        start: 1,
                    },
                    group.revision,
                    (ReplicaState::Running, Timestamp(0)),
                )
            })
            .collect();
        let report = StatusReport {
            cluster: self.cluster.clone(),
            host: self.host.clone(),
            boot: "b1".parse().unwrap(),
            status_seq: self.status_seq,
            full,
            replicas,
            next: None,
        };
        serde_json::to_vec(&report).unwrap().into()
    }
}
