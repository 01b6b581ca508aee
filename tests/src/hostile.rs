//! The attacks of `workloads/hostile` as requests to workloads of a cluster, for what runs them there.
//!
//! Each alone, and why it is ended, is a test of `runtime/tests/all/hostile`.

use crate::guest;

/// The samples that have attacks.
pub const SAMPLES: [&str; 2] = ["hostile", "hostile-p3"];

/// The sample, and its path. Addresses for documentation lead nowhere; what is read is what was written before.
pub const ATTACKS: [(&str, &str); 52] = [
    ("hostile", "/spin"),
    ("hostile", "/recurse"),
    ("hostile", "/memory-at-once"),
    ("hostile", "/memory-slowly"),
    ("hostile", "/fill"),
    ("hostile", "/host-calls"),
    ("hostile", "/panic"),
    ("hostile", "/exit"),
    ("hostile", "/poll"),
    ("hostile", "/fields"),
    ("hostile", "/headers"),
    ("hostile", "/long-method"),
    ("hostile", "/kept-answers?203.0.113.1"),
    ("hostile", "/pollables"),
    ("hostile", "/bodies"),
    ("hostile", "/disk"),
    ("hostile", "/files?file-0"),
    ("hostile", "/file-streams?file-0"),
    ("hostile", "/listings"),
    ("hostile", "/sockets"),
    ("hostile", "/values?value"),
    ("hostile", "/wait"),
    ("hostile", "/panic-after"),
    ("hostile", "/endless"),
    ("hostile", "/drip"),
    ("hostile", "/short"),
    ("hostile", "/long"),
    ("hostile", "/never-finished"),
    ("hostile", "/works-after?200"),
    ("hostile", "/unread"),
    ("hostile", "/spin-in-body"),
    ("hostile", "/trailers"),
    ("hostile", "/lines?100000"),
    ("hostile", "/long-line?67108864"),
    ("hostile", "/random"),
    ("hostile", "/control-characters"),
    ("hostile", "/large-header"),
    ("hostile", "/escape"),
    ("hostile", "/symlink?/etc/hostname"),
    ("hostile", "/connect?169.254.169.254:80"),
    ("hostile", "/lookup?localhost"),
    ("hostile", "/requests?203.0.113.1"),
    ("hostile-p3", "/spin"),
    ("hostile-p3", "/tasks"),
    ("hostile-p3", "/streams"),
    ("hostile-p3", "/long-method"),
    ("hostile-p3", "/dropped"),
    ("hostile-p3", "/after"),
    ("hostile-p3", "/waits-after"),
    ("hostile-p3", "/ignores"),
    ("hostile-p3", "/endless"),
    ("hostile-p3", "/panic"),
];

/// A manifest for a sample whose requests have so long. What it imports has to be granted.
pub fn manifest(sample: &str, name: &str, timeout: &str) -> String {
    let bindings = match sample {
        "hostile" => {
            "http = [\"203.0.113.1\"]\n\
             sockets = { connect = [\"203.0.113.1:9\"] }\n\
             blobstore.default = { backend = \"disk\", size = \"16MiB\" }\n\
             volume.data = { path = \"/data\", size = \"4MiB\" }\n"
        }
        _ => "http = [\"203.0.113.1\"]\n",
    };
    format!(
        "[workload]\nname = \"{name}\"\ncomponent = \"{}\"\nkind = \"http\"\n\
         [workload.health]\nready = {{ path = \"/ok\" }}\n\
         [workload.resources]\ntimeout = \"{timeout}\"\nmemory = \"128MiB\"\n\
         [workload.bindings]\n{bindings}",
        guest(sample).display()
    )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// What is there for the attacks, or is asked of one by one in the runtime's own tests: by several requests to one
    /// instance, or with a server of the test's.
    const OTHERS: [&str; 15] = [
        "/ok",
        "/count",
        "/denied",
        "/hold",
        "/wait",
        "/wait-long",
        "/works-after",
        "/in-two-pieces",
        "/call-self",
        "/line-and-wait",
        "/file-streams",
        "/list",
        "/listings",
        "/connections",
        "/receive",
    ];

    #[test]
    fn no_attack_is_left_out() {
        for sample in SAMPLES {
            // Cargo runs tests in their package's folder.
            let source = format!("../workloads/{sample}/src/lib.rs");
            let source = std::fs::read_to_string(source).expect("the sample is there");
            let lines = source.lines().map(str::trim_start);
            let paths = lines.filter_map(|line| line.strip_prefix("\"/")?.split_once("\" =>"));
            let paths: BTreeSet<_> = paths.map(|(path, _)| format!("/{path}")).collect();
            assert!(paths.len() > 10, "{paths:?}");
            let of_it = ATTACKS.iter().filter(|(of, _)| *of == sample);
            let run = of_it.map(|(_, path)| path.split('?').next().unwrap_or_default().to_owned());
            let run: BTreeSet<_> = run.collect();
            let unknown: Vec<_> = run.difference(&paths).collect();
            assert!(unknown.is_empty(), "{sample} has no {unknown:?}");
            let left_out = paths.difference(&run);
            let left_out: Vec<_> = left_out
                .filter(|path| !OTHERS.contains(&path.as_str()))
                .collect();
            assert!(left_out.is_empty(), "{sample}: {left_out:?}");
        }
    }
}
