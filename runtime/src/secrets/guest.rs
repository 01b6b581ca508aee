//! `wasmcloud:secrets` on what a replica is granted: handles, and what is behind them.

use std::sync::Arc;

use wasmtime::StoreContextMut;
use wasmtime::component::{ComponentType, HasSelf, Linker, Lower, Resource};

use super::{Held, Refused, SecretError, SecretValue};
use crate::bindings::secrets::wasmcloud::secrets::store;
use crate::refusals;
use crate::state::GuestState;

/// As `wit/` names it; a test of `link` holds the two equal.
const REVEAL: &str = "wasmcloud:secrets/reveal@0.1.0-draft";

/// Adds both interfaces.
pub(crate) fn add_to_linker(linker: &mut Linker<GuestState>) -> wasmtime::Result<()> {
    store::add_to_linker::<_, HasSelf<_>>(linker, |state| state)?;
    // Generated, it would take an owned `String`, which nobody overwrites.
    linker.instance(REVEAL)?.func_wrap("reveal", reveal)
}

/// A secret that a guest holds unseen.
pub struct Secret(SecretValue);

impl Secret {
    /// The bytes that the host keeps for it.
    pub(crate) fn size(&self) -> u64 {
        self.0.len() as u64
    }
}

/// `secret-value`, shared with the handle that it is shown for.
#[derive(ComponentType, Lower)]
#[component(variant)]
enum Shown {
    #[component(name = "string")]
    Text(Arc<str>),
    #[component(name = "bytes")]
    Bytes(Arc<[u8]>),
}

fn reveal(
    store: StoreContextMut<'_, GuestState>,
    (secret,): (Resource<Secret>,),
) -> wasmtime::Result<(Shown,)> {
    let secret = store.data().table.get(&secret)?;
    Ok((match &*secret.0.0 {
        Held::Text(text) => Shown::Text(text.clone()),
        Held::Bytes(bytes) => Shown::Bytes(bytes.clone()),
    },))
}

impl store::HostSecret for GuestState {
    async fn drop(&mut self, secret: Resource<Secret>) -> wasmtime::Result<()> {
        self.table.delete(secret)?;
        Ok(())
    }
}

impl store::Host for GuestState {
    async fn get(
        &mut self,
        key: String,
    ) -> wasmtime::Result<Result<Resource<Secret>, store::SecretsError>> {
        let secrets = self.shared.config.secrets.clone();
        Ok(match secrets.get(&key).await {
            Ok(value) => Ok(self.table.push(Secret(value))?),
            Err(refused) => {
                if matches!(refused, Refused::NoStore | Refused::NotGranted) {
                    self.shared.refusals.tell(refusals::Refused::Secret(&key));
                }
                Err(meaning(refused))
            }
        })
    }
}

fn meaning(refused: Refused) -> store::SecretsError {
    match refused {
        Refused::NotFound => store::SecretsError::NotFound,
        Refused::Store(SecretError::Unreachable(why)) => store::SecretsError::Io(why),
        other => store::SecretsError::Upstream(other.to_string()),
    }
}
