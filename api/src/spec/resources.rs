//! `resources` and `instance`: the limits of a replica, what placement books for it, and how its instances are used.

use serde::{Deserialize, Serialize};

use crate::units::{ByteSize, Cpu, HumanDuration};

/// Limits of one replica, and what placement books for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Resources {
    /// Memory over all instances of a replica together.
    pub memory: ByteSize,
    /// Share of a core.
    pub cpu: Cpu,
    /// Requests or messages at once.
    pub concurrency: u32,
    /// Requests that may wait beyond that.
    pub queue: u32,
    /// Per request, message or start.
    pub timeout: HumanDuration,
    /// A request's or response's body.
    pub body: ByteSize,
    /// What placement books: limits are enforced on the host, so that idle replicas pack densely.
    pub reserve: Reserve,
}

impl Default for Resources {
    fn default() -> Self {
        Self {
            memory: ByteSize::mib(64),
            cpu: Cpu(1000),
            concurrency: 100,
            queue: 100,
            timeout: HumanDuration::secs(30),
            body: ByteSize::mib(16),
            reserve: Reserve::default(),
        }
    }
}

/// What placement books for a replica.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Reserve {
    /// Memory.
    pub memory: ByteSize,
    /// Cpu.
    pub cpu: Cpu,
}

impl Default for Reserve {
    fn default() -> Self {
        Self {
            memory: ByteSize::mib(1),
            cpu: Cpu(0),
        }
    }
}

/// How often an instance is used again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct InstanceReuse {
    /// Requests that one instance may serve; 1 is a fresh instance for each.
    pub reuse: u32,
    /// Requests that one instance may serve at the same time; other than 1 for WASI 0.3 alone.
    pub concurrency: u32,
    /// An unused one is dropped after this.
    pub idle: HumanDuration,
}

impl Default for InstanceReuse {
    fn default() -> Self {
        Self {
            reuse: 1,
            concurrency: 1,
            idle: HumanDuration::secs(10),
        }
    }
}
