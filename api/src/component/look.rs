//! What bytes that are not WebAssembly seem to be, so that the refusal can say what to do.

use super::ComponentProblem;

const MAGIC: &[u8] = b"\0asm";
/// The magic and the version.
const HEADER_BYTES: usize = 8;

/// Beginnings of files that people take for components.
const BEGINNINGS: [(&[u8], &str); 11] = [
    (
        b"\x7fELF",
        "it is a native program or a precompiled artifact (ELF); deploy the .wasm that it was made from",
    ),
    (b"MZ", "it is a Windows program"),
    (b"\xcf\xfa\xed\xfe", "it is a macOS program"),
    (
        b"\xca\xfe\xba\xbe",
        "it is a macOS program or Java class file",
    ),
    (b"\x1f\x8b", "it is compressed with gzip; unpack it first"),
    (
        b"\x28\xb5\x2f\xfd",
        "it is compressed with zstd; unpack it first",
    ),
    (b"BZh", "it is compressed with bzip2; unpack it first"),
    (b"PK\x03\x04", "it is a zip archive; unpack it first"),
    (
        b"!<arch>",
        "it is a static library; link it into a component first",
    ),
    (b"#!", "it is a script"),
    (
        b"BC\xc0\xde",
        "it is LLVM bitcode; link it into a component first",
    ),
];

pub(super) fn is_wasm(bytes: &[u8]) -> Result<(), ComponentProblem> {
    let not = |looks_like| Err(ComponentProblem::NotWasm { looks_like });
    if bytes.is_empty() {
        return not("it is empty");
    }
    let magic = &MAGIC[..MAGIC.len().min(bytes.len())];
    if bytes.starts_with(magic) {
        if bytes.len() < HEADER_BYTES {
            return Err(ComponentProblem::Truncated {
                bytes: bytes.len() as u64,
            });
        }
        return Ok(());
    }
    if let Some((_, what)) = BEGINNINGS
        .iter()
        .find(|(beginning, _)| bytes.starts_with(beginning))
    {
        return not(what);
    }
    let head = &bytes[..bytes.len().min(4_096)];
    // A character may be cut off at the end of the head.
    let text = match std::str::from_utf8(head) {
        Ok(text) => text,
        Err(error) if error.error_len().is_none() => {
            std::str::from_utf8(&head[..error.valid_up_to()]).unwrap_or_default()
        }
        Err(_) => return not("it is data of another kind"),
    };
    not(text_of(text))
}

fn text_of(text: &str) -> &'static str {
    let mut code = text.trim_start_matches('\u{feff}').trim_start();
    // Comments of WebAssembly text: `;;` to the end of the line. Block comments are rare in front.
    while let Some(comment) = code.strip_prefix(";;") {
        code = comment
            .split_once('\n')
            .map_or("", |(_, rest)| rest)
            .trim_start();
    }
    let lower = code.get(..200).unwrap_or(code).to_ascii_lowercase();
    if code.starts_with("(module") || code.starts_with("(component") || code.starts_with("(;") {
        return "it is WebAssembly text; compile it first, with `wasm-tools parse`";
    }
    if lower.starts_with("<!doctype") || lower.starts_with("<html") || lower.starts_with("<?xml") {
        return "it is a web page, perhaps the error page of a download";
    }
    if lower.starts_with("package ") && code.contains(';') || lower.starts_with("world ") {
        return "it is WIT, the description of interfaces; build a component that implements it";
    }
    if text.chars().any(|c| c.is_control() && !c.is_whitespace()) {
        return "it is data of another kind";
    }
    if lower.starts_with("version https://git-lfs") {
        return "it is a Git LFS pointer; run `git lfs pull`";
    }
    "it is text"
}
