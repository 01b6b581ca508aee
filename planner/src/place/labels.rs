//! The six operators on labels: what passes them, and how they read.

use wasmorch_api::spec::LabelTest;

/// Whether a label's value (`None`: the host has no such label) passes.
pub(crate) fn passes(test: &LabelTest, value: Option<&str>) -> bool {
    match test {
        LabelTest::Eq(wanted) => value == Some(wanted),
        LabelTest::Ne(unwanted) => value != Some(unwanted),
        LabelTest::In(set) => value.is_some_and(|value| set.iter().any(|one| one == value)),
        LabelTest::NotIn(set) => !value.is_some_and(|value| set.iter().any(|one| one == value)),
        LabelTest::Matches(pattern) => value.is_some_and(|value| glob(pattern, value)),
        LabelTest::Exists(wanted) => value.is_some() == *wanted,
    }
}

/// `*` stands for any run of characters. Linear in text times stars: no backtracking blow-up.
fn glob(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else {
        return false;
    };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else {
        return rest.is_empty();
    };
    for part in parts {
        let Some(at) = rest.find(part) else {
            return false;
        };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

pub(super) fn words(name: &str, test: &LabelTest) -> String {
    match test {
        LabelTest::Eq(value) => format!("{name}={value}"),
        LabelTest::Ne(value) => format!("{name}!={value}"),
        LabelTest::In(set) => format!("{name} in {}", set.join("|")),
        LabelTest::NotIn(set) => format!("{name} not in {}", set.join("|")),
        LabelTest::Matches(pattern) => format!("{name} matches {pattern}"),
        LabelTest::Exists(true) => format!("{name} exists"),
        LabelTest::Exists(false) => format!("{name} does not exist"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs() {
        for (pattern, text, fits) in [
            ("eu-*", "eu-west", true),
            ("*", "", true),
            ("a*b*c", "aXbYc", true),
            ("a*b*c", "aXc", false),
            ("abc", "abcd", false),
            ("a*a", "a", false),
            ("*west", "eu-west", true),
        ] {
            assert_eq!(glob(pattern, text), fits, "{pattern} {text}");
        }
    }

    #[test]
    fn the_six_operators() {
        let set = || vec!["a".to_owned(), "b".to_owned()];
        for (test, a, c, none) in [
            (LabelTest::Eq("a".into()), true, false, false),
            (LabelTest::Ne("a".into()), false, true, true),
            (LabelTest::In(set()), true, false, false),
            (LabelTest::NotIn(set()), false, true, true),
            (LabelTest::Exists(true), true, true, false),
            (LabelTest::Exists(false), false, false, true),
        ] {
            assert_eq!(passes(&test, Some("a")), a, "{test:?}");
            assert_eq!(passes(&test, Some("c")), c, "{test:?}");
            assert_eq!(passes(&test, None), none, "{test:?}");
        }
    }
}
