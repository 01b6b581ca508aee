//! Components that no cluster has seen before: a sample with a custom section of random bytes.
//!
//! A custom section changes the digest and nothing else, so that compiling costs what it costs for
//! the sample itself.

use std::hash::{BuildHasher as _, RandomState};

/// The section's name, so that a reader of the file knows where it comes from.
const SECTION: &str = "wasmorch-bench";

/// `component` with a digest of its own.
pub(crate) fn unseen(component: &[u8]) -> Vec<u8> {
    // Std seeds each RandomState differently; two of them are more than enough to never repeat.
    let random = [
        RandomState::new().hash_one(0),
        RandomState::new().hash_one(1),
    ];
    let mut bytes = component.to_vec();
    let size = 1 + SECTION.len() + size_of_val(&random);
    bytes.push(0);
    // Both lengths stay under 128, so that LEB128 writes each as one byte.
    bytes.push(u8::try_from(size).expect("the section is short"));
    bytes.push(u8::try_from(SECTION.len()).expect("the name is short"));
    bytes.extend(SECTION.as_bytes());
    bytes.extend(random.iter().flat_map(|number| number.to_le_bytes()));
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_the_same_component_with_another_section_each_time() {
        let empty = b"\0asm\x0d\0\x01\0";
        let (one, two) = (unseen(empty), unseen(empty));
        assert_ne!(one, two);
        assert!(one.starts_with(empty));
        let section = &one[empty.len()..];
        assert_eq!(section[0], 0);
        assert_eq!(usize::from(section[1]), section.len() - 2);
        assert_eq!(&section[3..3 + usize::from(section[2])], SECTION.as_bytes());
    }
}
