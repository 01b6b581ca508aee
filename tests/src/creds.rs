//! A NATS server that lets in only who has credentials: an operator, two accounts and a user, minted
//! here.
//!
//! Owns the least of NATS' JWT claims (version 2) that a server in operator mode takes.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use nkeys::KeyPair;
use serde_json::{Value, json};

/// What was minted.
pub struct Authority {
    /// Lines for the server's configuration.
    pub config: String,
    /// The user's credentials file.
    pub creds: PathBuf,
}

impl Authority {
    /// Mints one; the credentials go into `folder`.
    pub fn mint(folder: &Path) -> Self {
        let operator = KeyPair::new_operator();
        let (system, account) = (KeyPair::new_account(), KeyPair::new_account());
        let user = KeyPair::new_user();
        let limits = json!({
            "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "conn": -1,
            "leaf": -1, "wildcards": true,
        });
        let mut jetstream = limits.clone();
        for name in ["mem_storage", "disk_storage", "streams", "consumer"] {
            jetstream[name] = json!(-1);
        }
        let operator_jwt = jwt(&operator, &operator, json!({"type": "operator"}));
        let system_jwt = jwt(
            &operator,
            &system,
            json!({"type": "account", "limits": limits}),
        );
        let account_jwt = jwt(
            &operator,
            &account,
            json!({"type": "account", "limits": jetstream}),
        );
        let may =
            json!({"type": "user", "pub": {}, "sub": {}, "subs": -1, "data": -1, "payload": -1});
        let user_jwt = jwt(&account, &user, may);
        let seed = user.seed().expect("a new key has its seed");
        let creds = folder.join("user.creds");
        let text = format!(
            "-----BEGIN NATS USER JWT-----\n{user_jwt}\n------END NATS USER JWT------\n\n\
             -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
        );
        std::fs::write(&creds, text).expect("the test's own folder is writable");
        let config = format!(
            "operator: {operator_jwt}\nsystem_account: {system}\nresolver: MEMORY\n\
             resolver_preload: {{ {system}: {system_jwt}, {account}: {account_jwt} }}\n",
            system = system.public_key(),
            account = account.public_key(),
        );
        Self { config, creds }
    }
}

fn jwt(issuer: &KeyPair, subject: &KeyPair, mut nats: Value) -> String {
    nats["version"] = json!(2);
    let claims = json!({
        "jti": "test", "iat": 1_700_000_000, "name": "test",
        "iss": issuer.public_key(), "sub": subject.public_key(), "nats": nats,
    });
    let header = json!({"typ": "JWT", "alg": "ed25519-nkey"});
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", part(&header), part(&claims));
    let signature = issuer.sign(signed.as_bytes()).expect("a new key signs");
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}
