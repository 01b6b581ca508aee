//! Paths of one machine and host names of package registries have no place in a tracked file: the first break on
//! every other machine, the second are chosen by each machine's own configuration.

use super::Finding;
use super::rust::is_word;

/// Written in two parts, so that this file passes its own rule.
const FOLDERS: &[(&str, &str)] = &[("/ro", "ot"), ("/wo", "rk"), ("/ho", "me")];

const HOSTS: &[(&str, &str)] = &[
    ("index.crates", ".io"),
    ("static.crates", ".io"),
    ("static.rust-lang", ".org"),
    ("pypi", ".org"),
    ("files.pythonhosted", ".org"),
    ("registry.npmjs", ".org"),
    ("proxy.golang", ".org"),
    ("deb.debian", ".org"),
];

pub(super) fn check(path: &str, text: &str) -> Vec<Finding> {
    if path.ends_with(".lock") {
        return Vec::new(); // cargo's own
    }
    let mut findings = Vec::new();
    for (index, line) in text.lines().enumerate() {
        for (start, end) in FOLDERS {
            let folder = format!("{start}{end}");
            if names_folder(line, &folder) {
                let what = format!("`{folder}/..` is a path of one machine");
                findings.push(Finding::error(path, index + 1, what));
            }
        }
        for (start, end) in HOSTS {
            let host = format!("{start}{end}");
            if line.contains(&host) {
                let what = format!("`{host}`: which registry is used is for each machine to say");
                findings.push(Finding::error(path, index + 1, what));
            }
        }
    }
    findings
}

/// Whether `folder` stands at the start of a path, followed by something inside it.
fn names_folder(line: &str, folder: &str) -> bool {
    line.match_indices(folder).any(|(at, _)| {
        let starts = !line[..at].bytes().next_back().is_some_and(goes_on);
        let inside = line[at + folder.len()..].strip_prefix('/');
        starts
            && inside
                .and_then(|rest| rest.bytes().next())
                .is_some_and(is_word)
    })
}

/// What stands before a slash in the middle of a path, as in `a/b`, `../b`, `$HOME/b`, `{x}/b`.
fn goes_on(byte: u8) -> bool {
    is_word(byte) || b".-/})]>~*".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::check;

    fn count(line: &str) -> usize {
        check("docs/page.md", line).len()
    }

    #[test]
    fn a_path_of_one_machine_is_found() {
        let root = ["/ro", "ot"].concat();
        assert_eq!(count(&format!("cd {root}/project")), 1);
        assert_eq!(count(&format!("\"{root}/project\"")), 1);
        assert_eq!(check("a.toml", &format!("\n\npath={root}/x"))[0].line, 3);
        assert_eq!(count(&format!("a route {root} of a server")), 0);
        assert_eq!(count(&format!("../x{root}/y")), 0);
        assert_eq!(check("Cargo.lock", &format!("{root}/x")), []);
    }

    #[test]
    fn a_registry_is_found() {
        let host = ["py", "pi.org"].concat();
        assert_eq!(count(&format!("see {host}")), 1);
        assert_eq!(count("see PyPI"), 0);
    }
}
