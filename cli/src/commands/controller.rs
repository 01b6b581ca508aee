//! `controller`: a daemon, until a signal.

use serde_json::json;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use wasmorch_controller::{ControllerConfig, ControllerError, ControllerStarted};

use super::host::{STOP_MAX, denied_or, split, until_signal};
use super::{Context, Interrupt};
use crate::args::ControllerArgs;
use crate::cluster;
use crate::error::{CliError, Exit};
use crate::out::table::pairs;

/// `controller`.
pub(crate) async fn run(ctx: &Context, args: ControllerArgs) -> Result<Exit, CliError> {
    let mut interrupt = Interrupt::listen()?;
    let nats = cluster::find(&ctx.global)?;
    let (sender, started) = oneshot::channel();
    let config = ControllerConfig {
        nats,
        admin: args.admin,
        dead_after: args.dead_after,
        started: Some(sender),
    };
    let stop = CancellationToken::new();
    let running = wasmorch_controller::run(config, stop.clone());
    let signals = (&stop, &mut interrupt, STOP_MAX);
    let ended = until_signal(ctx, running, signals, async {
        let ControllerStarted { leader, admin } = started.await.ok()?;
        let mut lines = vec![("controller", leader.to_string())];
        lines.extend(admin.map(|admin| ("admin", format!("http://{admin}"))));
        Some((
            pairs(&lines),
            json!({ "controller": leader, "admin": admin }),
        ))
    });
    match Box::pin(ended).await? {
        Some(ended) => ended
            .map_err(|error| controller_error(&error))
            .map(|()| Exit::OK),
        None => Ok(Exit::OK),
    }
}

/// Why a controller ended, with its exit code.
pub(crate) fn controller_error(error: &ControllerError) -> CliError {
    let exit = match error {
        ControllerError::Denied { .. } => Exit::DENIED,
        ControllerError::Credentials { source, .. } => denied_or(source, Exit::NOT_FOUND),
        ControllerError::Admin { source, .. } => denied_or(source, Exit::BLOCKED),
        _ => Exit::UNAVAILABLE,
    };
    split(exit, "the controller cannot run", error)
}
