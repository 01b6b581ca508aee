//! What compiled code runs on: an architecture and a system.
//!
//! Compiled code knows no C library, so there is one target for all Linux of an architecture.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use wasmorch_api::Digest;

use crate::engines::ENGINE;

/// Of files with compiled code.
pub(crate) const CODE_EXTENSION: &str = "cwasm";

/// A target of the compiler: `x86_64-linux`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// 64-bit x86, any processor.
    X8664Linux,
    /// 64-bit Arm, any processor.
    Aarch64Linux,
}

/// Not a target that can be compiled for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("code can be compiled for x86_64-linux and aarch64-linux")]
pub struct UnknownTarget;

impl Target {
    /// All that can be compiled for.
    pub const ALL: [Self; 2] = [Self::X8664Linux, Self::Aarch64Linux];

    /// This machine; `None`: it is none that can be compiled for from elsewhere.
    pub fn here() -> Option<Self> {
        here().parse().ok()
    }

    /// The name for it: of the folder with its code, and on the command line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::X8664Linux => "x86_64-linux",
            Self::Aarch64Linux => "aarch64-linux",
        }
    }

    /// The compiler's name for it.
    #[cfg(feature = "compiler")]
    pub(crate) const fn triple(self) -> &'static str {
        match self {
            Self::X8664Linux => "x86_64-unknown-linux-gnu",
            Self::Aarch64Linux => "aarch64-unknown-linux-gnu",
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Target {
    type Err = UnknownTarget;

    /// Takes the compiler's triples too, with any vendor and C library: `aarch64-unknown-linux-musl`.
    fn from_str(text: &str) -> Result<Self, UnknownTarget> {
        let mut parts = text.split('-');
        let architecture = parts.next();
        let is_linux = parts.any(|part| part == "linux");
        match architecture {
            Some("x86_64" | "amd64") if is_linux => Ok(Self::X8664Linux),
            Some("aarch64" | "arm64") if is_linux => Ok(Self::Aarch64Linux),
            _ => Err(UnknownTarget),
        }
    }
}

/// The folder of code for this machine, below one of compiled code: `<engine>/<target>`.
pub(crate) fn folder_here() -> PathBuf {
    Path::new(ENGINE).join(here())
}

/// Where code for a target lies, below a folder of compiled code: `<engine>/<target>/<digest>.cwasm`.
pub fn compiled_path(target: Target, digest: &Digest) -> PathBuf {
    let folder = Path::new(ENGINE).join(target.as_str());
    folder.join(file_name(digest))
}

/// The name of a file of compiled code.
pub(crate) fn file_name(digest: &Digest) -> String {
    format!("{}.{CODE_EXTENSION}", digest.hex())
}

/// This machine, whether it can be compiled for or not.
pub(crate) fn here() -> String {
    format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_known_by_its_name_and_by_the_triples_of_compilers() {
        for target in Target::ALL {
            assert_eq!(target.as_str().parse(), Ok(target));
        }
        assert_eq!(
            "aarch64-unknown-linux-musl".parse(),
            Ok(Target::Aarch64Linux)
        );
        assert_eq!("amd64-linux".parse(), Ok(Target::X8664Linux));
        for wrong in [
            "",
            "x86_64",
            "x86_64-windows",
            "linux",
            "riscv64-linux",
            "x86_64-linuxy",
        ] {
            assert_eq!(wrong.parse::<Target>(), Err(UnknownTarget), "{wrong}");
        }
    }
}
