//! Secrets by `wasmcloud:secrets`: a handle that shows nothing, and what is behind it.
//!
//! | path | what it does |
//! | --- | --- |
//! | `/hold?NAME` | takes a handle, and lets it go unseen |
//! | `/reveal?NAME` | shows the secret: text as it is, bytes as their decimal numbers, a space between |
//! | `/keep?NAME` | takes the handle twice, lets one go, and shows the other |
//!
//! NAME is percent-encoded. 404: there is no such secret, 502: refused or failed, with the words for it.

use answer::{answer, decoded, target};
use wasip2::http::types::{IncomingRequest, ResponseOutparam};
use wasmcloud::secrets::reveal::reveal;
use wasmcloud::secrets::store::{self, Secret, SecretValue, SecretsError};

wit_bindgen::generate!({
    path: "../../wit/deps/wasmcloud-secrets",
    inline: "
        package wasmorch:samples;

        world secrets {
            import wasmcloud:secrets/store@0.1.0-draft;
            import wasmcloud:secrets/reveal@0.1.0-draft;
        }
    ",
    generate_all,
});

struct Secrets;

wasip2::http::proxy::export!(Secrets);

impl wasip2::exports::http::incoming_handler::Guest for Secrets {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let (path, query) = target(&request);
        let name = String::from_utf8_lossy(&decoded(&query)).into_owned();
        let told = match path.as_str() {
            "/" => Ok("try /reveal?NAME\n".to_owned()),
            "/hold" => store::get(&name).map(|_held| "held".to_owned()),
            "/reveal" => store::get(&name).map(|secret| shown(&secret)),
            "/keep" => keep(&name),
            _ => return answer(out, 404, "no such path\n"),
        };
        match told {
            Ok(text) => answer(out, 200, &text),
            Err(SecretsError::NotFound) => answer(out, 404, "no such secret\n"),
            Err(SecretsError::Upstream(why)) => answer(out, 502, &why),
            Err(SecretsError::Io(why)) => answer(out, 502, &format!("io: {why}")),
        }
    }
}

fn keep(name: &str) -> Result<String, SecretsError> {
    let first = store::get(name)?;
    let second = store::get(name)?;
    drop(first);
    Ok(shown(&second))
}

fn shown(secret: &Secret) -> String {
    match reveal(secret) {
        SecretValue::String(text) => text,
        SecretValue::Bytes(bytes) => {
            let numbers: Vec<String> = bytes.iter().map(u8::to_string).collect();
            numbers.join(" ")
        }
    }
}
