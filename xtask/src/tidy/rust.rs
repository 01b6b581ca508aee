//! Just enough of Rust's lexer: blanks comments and literals, so that the rules see code alone.

/// The code of `source` with every comment, string and character literal made spaces. Lines stay where they are.
pub(super) fn code(source: &str) -> String {
    let bytes = source.as_bytes();
    let mut code = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = blank_end(bytes, at);
        match end {
            Some(end) => {
                for byte in &mut code[at..end] {
                    if *byte != b'\n' {
                        *byte = b' ';
                    }
                }
                at = end;
            }
            None => at += 1,
        }
    }
    // Whole literals and comments were blanked, so what is left is still UTF-8.
    String::from_utf8_lossy(&code).into_owned()
}

/// Where the comment or literal that starts at `at` ends, if one starts there.
fn blank_end(bytes: &[u8], at: usize) -> Option<usize> {
    let rest = &bytes[at..];
    match rest {
        [b'/', b'/', ..] => Some(at + line_length(rest)),
        [b'/', b'*', ..] => Some(at + block_length(rest)),
        [b'"', ..] => Some(at + string_length(rest)),
        [b'\'', ..] => char_length(rest).map(|length| at + length),
        [b'r', ..] if !is_word_before(bytes, at) => {
            raw_length(&rest[1..]).map(|length| at + 1 + length)
        }
        [b'b' | b'c', b'r', ..] if !is_word_before(bytes, at) => {
            raw_length(&rest[2..]).map(|length| at + 2 + length)
        }
        _ => None,
    }
}

pub(super) fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || !byte.is_ascii()
}

fn is_word_before(bytes: &[u8], at: usize) -> bool {
    at > 0 && is_word(bytes[at - 1])
}

fn line_length(rest: &[u8]) -> usize {
    rest.iter()
        .position(|byte| *byte == b'\n')
        .unwrap_or(rest.len())
}

/// Block comments nest.
fn block_length(rest: &[u8]) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        match &rest[at..] {
            [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
            [b'*', b'/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            return at;
        }
    }
    rest.len()
}

fn string_length(rest: &[u8]) -> usize {
    let mut at = 1;
    while at < rest.len() {
        match rest[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    rest.len()
}

/// After the `r`: hashes, a quote, anything, a quote, as many hashes. `r#name` is no string.
fn raw_length(rest: &[u8]) -> Option<usize> {
    let hashes = rest.iter().take_while(|byte| **byte == b'#').count();
    if rest.get(hashes) != Some(&b'"') {
        return None;
    }
    let mut end = vec![b'"'];
    end.resize(hashes + 1, b'#');
    let body = &rest[hashes + 1..];
    let found = body.windows(end.len()).position(|window| window == end);
    Some(found.map_or(rest.len(), |at| hashes + 1 + at + end.len()))
}

/// A character, or nothing when the quote begins a lifetime.
fn char_length(rest: &[u8]) -> Option<usize> {
    if rest.get(1) == Some(&b'\\') {
        let close = rest.iter().skip(3).position(|byte| *byte == b'\'')?;
        return Some(close + 4);
    }
    let text = std::str::from_utf8(&rest[1..rest.len().min(6)])
        .or_else(|error| std::str::from_utf8(&rest[1..=error.valid_up_to()]))
        .ok()?;
    let length = text.chars().next()?.len_utf8();
    (rest.get(1 + length) == Some(&b'\'')).then_some(length + 2)
}

#[cfg(test)]
mod tests {
    use super::code;

    #[test]
    fn comments_and_literals_are_blanked() {
        for source in [
            "// gone",
            "//! gone",
            "/* gone /* nested gone */ gone */",
            "\"gone \\\" gone\"",
            "r\"gone\"",
            "r#\"gone \" gone\"#",
            "br##\"gone\"##",
        ] {
            let code = code(&format!("{source}\nkept"));
            assert!(!code.contains("gone"), "{source}: {code}");
            assert!(code.contains("\nkept"), "{source}: {code}");
        }
    }

    #[test]
    fn a_lifetime_is_no_character() {
        assert_eq!(code("fn f<'a>(x: &'a str)"), "fn f<'a>(x: &'a str)");
        assert_eq!(
            code("['\"', 'x', '\\'', '\\u{1F600}', 'é'] kept").trim_end(),
            { "[   ,    ,     ,            ,     ] kept" }
        );
        assert_eq!(code("r#type"), "r#type");
    }

    #[test]
    fn lines_stay_where_they_are() {
        assert_eq!(code("a /* 1\n2 */ b\n\"x\ny\"").lines().count(), 4);
    }
}
