//! The life of a service and of a job: one run of the guest, from its start to its end.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use wasmorch_api::Kind;
use wasmorch_runtime::{CommandReplica, Ended, Stdio};

use super::logs;
use super::orders::Orders;
use super::protocol::Outcome;
use super::replica::{End, Life};

/// Runs the guest. A service is ready once it has started and been alive for `update.min_ready`; a job
/// never is. A guest has no way to hear that it shall end, so a service is cut off by a drain at once,
/// and a job, which ends by itself, at the drain's deadline.
pub(super) async fn live(life: Life, guest: Arc<CommandReplica>) -> End {
    let stop = CancellationToken::new();
    // Nothing to read: a guest that reads finds the end of its input.
    let stdio = Stdio::Logs {
        stdin: Bytes::new(),
    };
    let service = life.launch.revision.kind == Kind::Service;
    let ended = {
        let (up, started) = oneshot::channel();
        let run = async {
            if service {
                let up = || _ = up.send(());
                guest.serve(stdio, stop.clone(), up).await
            } else {
                guest.run(stdio, stop.clone()).await
            }
        };
        tokio::pin!(run);
        let mut alive = std::pin::pin!(alive(&life, started));
        let mut cut_off = std::pin::pin!(cut_off(life.orders.clone(), service));
        let mut told = false;
        let mut stopping = false;
        loop {
            tokio::select! {
                biased;
                ended = &mut run => break ended,
                () = &mut cut_off, if !stopping => {
                    stopping = true;
                    stop.cancel();
                }
                () = &mut alive, if !told => told = true,
            }
        }
    };
    if let Err(ended) = &ended {
        logs::failed(&*life.logs, "the program", None, ended);
    }
    end_of(ended)
}

/// Tells that a service is ready, in time. Nobody tells that a job has started.
async fn alive(life: &Life, started: oneshot::Receiver<()>) {
    if started.await.is_ok() {
        tokio::time::sleep(life.launch.revision.spec.update.min_ready.0).await;
        life.health(true, None).await;
    }
}

async fn cut_off(mut orders: Orders, service: bool) {
    if service {
        orders.ending().await;
    } else {
        orders.cut_off().await;
    }
}

/// How a run's result is told. The agent decides by policy what comes of it.
fn end_of(ended: Result<i32, Ended>) -> End {
    match ended {
        Ok(0) => End::Ended(Outcome::Completed { exit_code: 0 }),
        Ok(code) => End::Ended(Outcome::Failed {
            exit_code: Some(code),
            reason: format!("it ended with exit code {code}"),
        }),
        Err(Ended::Stopped) => End::Stopped,
        Err(ended) => End::failed(ended.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_decide() {
        assert_eq!(
            end_of(Ok(0)),
            End::Ended(Outcome::Completed { exit_code: 0 })
        );
        assert!(matches!(
            end_of(Ok(3)),
            End::Ended(Outcome::Failed { exit_code: Some(3), reason }) if reason.contains('3')
        ));
        assert_eq!(end_of(Err(Ended::Stopped)), End::Stopped);
        assert!(matches!(
            end_of(Err(Ended::NoResponse)),
            End::Ended(Outcome::Failed {
                exit_code: None,
                ..
            })
        ));
    }
}
