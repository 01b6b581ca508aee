//! Bindings to the interfaces of `wit/` that wasmtime's own crates do not provide.
//!
//! Generated; the worlds here are only the halves of them that the host side needs. All of `wit/`
//! is parsed for them, so a world there that is not valid fails this build.

/// `wasi:logging`, imported by guests.
pub(crate) mod logging {
    wasmtime::component::bindgen!({
        path: "../wit",
        inline: "package wasmorch:host-logging; world imports { import wasi:logging/logging@0.1.0-draft; }",
        imports: { default: trappable },
    });
}

/// `wasmcloud:messaging`: guests import the consumer, and export the handler.
pub(crate) mod messaging {
    wasmtime::component::bindgen!({
        path: "../wit",
        inline: "package wasmorch:host-messaging;
            world messages {
                import wasmcloud:messaging/consumer@0.2.0;
                export wasmcloud:messaging/handler@0.2.0;
            }",
        imports: { default: async | trappable },
        exports: { default: async },
        require_store_data_send: true,
    });
}
