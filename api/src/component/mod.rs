//! What a component is and needs, from its bytes; and whether a spec grants it.
//!
//! Owns the inspection (kind, imports, exports) and the check of imports against bindings. The same
//! code runs in the command line, before anything is uploaded, and in the leader. It must not run or
//! compile anything.
//!
//! Invariants: no bytes panic; time and memory are proportional to their length; only the outermost
//! component's imports and exports count.

mod check;
mod interfaces;
mod look;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use wasmparser::{
    Chunk, ComponentTypeRef, Encoding, ExternalKind, Parser, Payload, TypeBounds, Validator,
    WasmFeatures,
};

use crate::ARTIFACT_BYTES_MAX;
use crate::error::{ApiError, ErrorCode};
use crate::spec::Kind;
use crate::units::ByteSize;

pub use self::check::{CapabilityCheck, MissingGrant, Remedy, check};
pub use self::interfaces::{GRANTED, PREVIEW1_MODULES, PROVIDED};

/// Components within components within components: toolchains nest two or three deep.
const NESTING_MAX: usize = 100;
/// Functions of all modules together: the validator keeps a note of each until it is done.
const FUNCTIONS_MAX: u64 = 1_000_000;

/// Whether these bytes are a component or a core module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// A component.
    Component,
    /// A core module, run through preview 1.
    CoreModule,
}

impl Shape {
    /// The words for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Component => "component",
            Self::CoreModule => "core module",
        }
    }
}

/// What a component is and needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inspection {
    /// Component or core module.
    pub shape: Shape,
    /// What it exports, sorted: `wasi:http/incoming-handler@0.2.4`, or a core module's names.
    pub exports: Vec<String>,
    /// What it imports, sorted: interfaces, or a core module's modules.
    pub imports: Vec<String>,
    /// What it does, when its exports say; the most specific, when it can be several.
    pub kind: Option<Kind>,
    /// How large it is.
    pub size_bytes: u64,
}

impl Inspection {
    /// Whether it can be run as this kind: a command is a service, a job or a cron workload.
    pub fn runs_as(&self, kind: Kind) -> bool {
        let wanted = match kind {
            Kind::Http | Kind::Messages => kind,
            Kind::Service | Kind::Job | Kind::Cron => Kind::Service,
        };
        self.kinds().any(|kind| kind == wanted)
    }

    /// Every kind that its exports allow, the most specific first; commands as service.
    fn kinds(&self) -> impl Iterator<Item = Kind> {
        [Kind::Http, Kind::Messages, Kind::Service]
            .into_iter()
            .filter(|kind| match self.shape {
                Shape::CoreModule => *kind == Kind::Service,
                Shape::Component => self
                    .exports
                    .iter()
                    .any(|name| interfaces::makes(name) == Some(*kind)),
            })
    }
}

/// Why bytes are no component that runs here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ComponentProblem {
    /// Something else.
    #[error("not WebAssembly: {looks_like}")]
    NotWasm {
        /// What it seems to be.
        looks_like: &'static str,
    },
    /// The beginning of WebAssembly.
    #[error(
        "WebAssembly that ends too early, after {bytes} bytes: it was not written or copied whole"
    )]
    Truncated {
        /// Its length.
        bytes: u64,
    },
    /// WebAssembly with a mistake.
    #[error("invalid WebAssembly at byte {offset}: {reason}")]
    Invalid {
        /// Where.
        offset: u64,
        /// What is wrong.
        reason: String,
    },
    /// A core module that imports what no host gives.
    #[error("a core module that imports from `{module}`, which no host provides")]
    ForeignImport {
        /// The module that it imports from.
        module: String,
    },
    /// A core module without a start.
    #[error("a core module without the export `_start`: a library, or not built as a command")]
    NoStart,
    /// Over the limit.
    #[error("{} large; at most {} is accepted", ByteSize(*.bytes).approximate(), ByteSize(*.limit).approximate())]
    TooLarge {
        /// Its length.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
}

impl ComponentProblem {
    /// What would help.
    pub const fn fix(&self) -> &'static str {
        match self {
            Self::NotWasm { .. } => {
                "Name a .wasm file: a component, or a core module built for WASI."
            }
            Self::Truncated { .. } => "Build or copy it again.",
            Self::Invalid { .. } => "Build it again; `wasm-tools validate` shows the same mistake.",
            Self::ForeignImport { .. } | Self::NoStart => {
                "Build it as a component (wasm32-wasip2), or as a command for wasm32-wasip1."
            }
            Self::TooLarge { .. } => "Strip debug information, or leave data out of the component.",
        }
    }

    /// The refusal; `what` names the file or the workload.
    pub fn refusal(&self, what: &str) -> ApiError {
        let code = match self {
            Self::TooLarge { .. } => ErrorCode::TooLarge,
            _ => ErrorCode::Invalid,
        };
        ApiError::new(
            code,
            format!("{what} cannot be deployed"),
            self.to_string(),
            self.fix(),
        )
    }
}

impl From<wasmparser::Error> for ComponentProblem {
    fn from(error: wasmparser::Error) -> Self {
        Self::Invalid {
            offset: error.offset() as u64,
            reason: error.message().to_owned(),
        }
    }
}

/// Reads and validates a component or core module.
pub fn inspect(bytes: &[u8]) -> Result<Inspection, ComponentProblem> {
    inspect_within(bytes, ARTIFACT_BYTES_MAX)
}

/// The same with another limit on the size.
pub fn inspect_within(bytes: &[u8], limit: u64) -> Result<Inspection, ComponentProblem> {
    let size_bytes = bytes.len() as u64;
    if size_bytes > limit {
        return Err(ComponentProblem::TooLarge {
            bytes: size_bytes,
            limit,
        });
    }
    look::is_wasm(bytes)?;
    let mut outermost = Outermost::default();
    walk(bytes, &mut outermost)?;
    // The whole at once: function by function would be compiled unoptimised in a debug build of
    // this crate, and take twenty times as long.
    Validator::new_with_features(WasmFeatures::default()).validate_all(bytes)?;
    let mut inspection = Inspection {
        shape: outermost.shape.unwrap_or(Shape::CoreModule),
        exports: outermost.exports.into_iter().collect(),
        imports: outermost.imports.into_iter().collect(),
        kind: None,
        size_bytes,
    };
    if inspection.shape == Shape::CoreModule {
        let foreign = inspection
            .imports
            .iter()
            .find(|module| !PREVIEW1_MODULES.contains(&module.as_str()));
        if let Some(module) = foreign {
            let module = module
                .chars()
                .take(100)
                .flat_map(char::escape_debug)
                .collect();
            return Err(ComponentProblem::ForeignImport { module });
        }
        if !outermost.start {
            return Err(ComponentProblem::NoStart);
        }
    }
    let kind = inspection.kinds().next();
    inspection.kind = kind;
    Ok(inspection)
}

/// What the outermost level imports and exports, by name; nothing of bytes that are damaged. Much
/// cheaper than an inspection: the rest is skipped, and nothing is validated.
pub fn names(bytes: &[u8]) -> BTreeSet<String> {
    let mut outermost = Outermost::default();
    match walk(bytes, &mut outermost) {
        Ok(()) => outermost
            .imports
            .into_iter()
            .chain(outermost.exports)
            .collect(),
        Err(_) => BTreeSet::new(),
    }
}

/// What the outermost component or module shows.
#[derive(Default)]
struct Outermost {
    shape: Option<Shape>,
    exports: BTreeSet<String>,
    imports: BTreeSet<String>,
    start: bool,
}

/// Parses all bytes and notes what the outermost level holds. What is inside functions and whether
/// it all fits together is the validator's to say, after this.
fn walk(bytes: &[u8], outermost: &mut Outermost) -> Result<(), ComponentProblem> {
    let features = WasmFeatures::default();
    let mut parser = Parser::new(0);
    parser.set_features(features);
    // The levels around the current one, and where each ends.
    let mut outer: Vec<(Parser, usize)> = Vec::new();
    let mut end = bytes.len();
    let mut rest = bytes;
    let mut functions = 0u64;
    let beyond = |parser: &Parser, reason| {
        Err(ComponentProblem::Invalid {
            offset: parser.offset(),
            reason,
        })
    };
    loop {
        // Said only at the end: else a section that is cut off would look like a wrong one.
        let ended = bytes.len() - rest.len() == end;
        let (payload, consumed) = match parser.parse(rest, ended)? {
            Chunk::Parsed { consumed, payload } => (payload, consumed),
            Chunk::NeedMoreData(_) => {
                return Err(ComponentProblem::Truncated {
                    bytes: bytes.len() as u64,
                });
            }
        };
        rest = &rest[consumed..];
        match payload {
            Payload::ModuleSection {
                parser: inner,
                unchecked_range: range,
            }
            | Payload::ComponentSection {
                parser: inner,
                unchecked_range: range,
            } => {
                if outer.len() == NESTING_MAX {
                    let reason = format!("components are nested more than {NESTING_MAX} deep");
                    return beyond(&parser, reason);
                }
                outer.push((std::mem::replace(&mut parser, inner), end));
                parser.set_features(features);
                end = range.end;
            }
            Payload::CodeSectionStart { count, .. } => {
                functions += u64::from(count);
                if functions > FUNCTIONS_MAX {
                    return beyond(&parser, format!("more than {FUNCTIONS_MAX} functions"));
                }
            }
            Payload::End(_) => match outer.pop() {
                Some(level) => (parser, end) = level,
                None => return Ok(()),
            },
            payload if outer.is_empty() => note(payload, outermost)?,
            _ => {}
        }
    }
}

fn note(payload: Payload<'_>, outermost: &mut Outermost) -> Result<(), ComponentProblem> {
    match payload {
        Payload::Version { encoding, .. } => {
            outermost.shape = Some(match encoding {
                Encoding::Component => Shape::Component,
                Encoding::Module => Shape::CoreModule,
            });
        }
        Payload::ComponentImportSection(section) => {
            for import in section {
                let import = import?;
                // An import of a type that equals another needs nothing from a host.
                if !matches!(import.ty, ComponentTypeRef::Type(TypeBounds::Eq(_))) {
                    outermost.imports.insert(import.name.name.to_owned());
                }
            }
        }
        Payload::ComponentExportSection(section) => {
            for export in section {
                outermost.exports.insert(export?.name.name.to_owned());
            }
        }
        Payload::ImportSection(section) => {
            for import in section.into_imports() {
                outermost.imports.insert(import?.module.to_owned());
            }
        }
        Payload::ExportSection(section) => {
            for export in section {
                let export = export?;
                outermost.start |= export.name == "_start" && export.kind == ExternalKind::Func;
                outermost.exports.insert(export.name.to_owned());
            }
        }
        _ => {}
    }
    Ok(())
}
