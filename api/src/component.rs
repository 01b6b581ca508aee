//! (being written)

/// What a component is and needs, from its bytes.
#[derive(Debug, Clone)]
pub struct Inspection {}
/// Why bytes are no component that runs here.
#[derive(Debug, Clone)]
pub struct ComponentProblem {}
