//! What must hold for all inputs of a kind, on inputs that are kept.

mod corpus;
