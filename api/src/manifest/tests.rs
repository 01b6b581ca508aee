//! The corpus of manifests with all their messages, and what must hold for every text.

mod corpus;
mod grants;
mod properties;
