//! (being written)

/// A whole manifest.
#[derive(Debug, Clone)]
pub struct Manifest {}
