//! A messages workload: answers every message that asks for an answer with `echo: ` and the message's body. //!
//! What asks for none, as all that comes from a stream, is answered to `shop.seen` when its body begins with `tell`. A
//! message whose body is `trap` traps, one whose body is `sleep` takes a minute. Bindings are made from the WIT by `wit-bindgen`, as for any interface that no
//! crate carries ready-made.

use exports::wasmcloud::messaging::handler::Guest;
use wasmcloud::messaging::consumer;
use wasmcloud::messaging::types::BrokerMessage;

wit_bindgen::generate!({
    path: "../../wit/deps/wasmcloud-messaging",
    inline: "
        package wasmorch:samples;

        world echo-messages {
            import wasmcloud:messaging/consumer@0.2.0;
            export wasmcloud:messaging/handler@0.2.0;
        }
    ",
    generate_all,
});

struct Echo;

export!(Echo);

impl Guest for Echo {
    fn handle_message(message: BrokerMessage) -> Result<(), String> {
        if message.body == b"trap" {
            core::arch::wasm32::unreachable();
        }
        if message.body == b"sleep" {
            std::thread::sleep(std::time::Duration::from_secs(60));
        }
        let told = message
            .body
            .starts_with(b"tell")
            .then(|| "shop.seen".to_owned());
        let Some(subject) = message.reply_to.or(told) else {
            return Ok(());
        };
        consumer::publish(&BrokerMessage {
            subject,
            body: [b"echo: ", message.body.as_slice()].concat(),
            reply_to: None,
        })
    }
}
