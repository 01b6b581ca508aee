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

/// `wasmcloud:secrets`, but for `reveal` (`secrets/guest.rs`).
pub(crate) mod secrets {
    wasmtime::component::bindgen!({
        path: "../wit",
        inline: "package wasmorch:host-secrets; world imports { import wasmcloud:secrets/store@0.1.0-draft; }",
        imports: { default: async | trappable },
        with: { "wasmcloud:secrets/store.secret": crate::secrets::guest::Secret },
        require_store_data_send: true,
    });
}

/// `wasi:keyvalue`, in the draft that wasmtime and wasmCloud have.
pub(crate) mod keyvalue {
    wasmtime::component::bindgen!({
        path: "../wit",
        inline: "package wasmorch:host-keyvalue;
            world imports {
                import wasi:keyvalue/store@0.2.0-draft;
                import wasi:keyvalue/atomics@0.2.0-draft;
                import wasi:keyvalue/batch@0.2.0-draft;
            }",
        imports: { default: async | trappable },
        with: { "wasi:keyvalue/store.bucket": crate::keyvalue::guest::Bucket },
        trappable_error_type: { "wasi:keyvalue/store.error" => crate::keyvalue::guest::GuestError },
        require_store_data_send: true,
    });
}

/// `wasi:keyvalue`, in the second draft.
pub(crate) mod keyvalue2 {
    wasmtime::component::bindgen!({
        path: "../wit",
        inline: "package wasmorch:host-keyvalue2;
            world imports {
                import wasi:keyvalue/store@0.2.0-draft2;
                import wasi:keyvalue/atomics@0.2.0-draft2;
                import wasi:keyvalue/batch@0.2.0-draft2;
            }",
        imports: { default: async | trappable },
        with: {
            "wasi:keyvalue/store.bucket": crate::keyvalue::guest::Bucket,
            "wasi:keyvalue/atomics.cas": crate::keyvalue::guest::Cas,
        },
        trappable_error_type: { "wasi:keyvalue/store@0.2.0-draft2.error" => crate::keyvalue::guest::GuestError },
        require_store_data_send: true,
    });
}

/// `wasi:blobstore`, in the draft that wasmCloud has.
pub(crate) mod blobstore {
    wasmtime::component::bindgen!({
        path: "../wit",
        inline: "package wasmorch:host-blobstore;
            world imports {
                import wasi:blobstore/types@0.2.0-draft;
                import wasi:blobstore/container@0.2.0-draft;
                import wasi:blobstore/blobstore@0.2.0-draft;
            }",
        imports: { default: async | trappable },
        with: {
            "wasi:io": wasmtime_wasi::p2::bindings::io,
            "wasi:blobstore/types.outgoing-value": crate::blobstore::guest::OutgoingValue,
            "wasi:blobstore/types.incoming-value": crate::blobstore::guest::IncomingValue,
            "wasi:blobstore/container.container": crate::blobstore::guest::Container,
            "wasi:blobstore/container.stream-object-names": crate::blobstore::guest::Names,
        },
        require_store_data_send: true,
    });
}
