//! `--grant` and back.

use proptest::prelude::*;

use crate::manifest::{grant_flags, read_grant};
use crate::spec::Bindings;

fn read(grants: &[&str]) -> Bindings {
    let mut bindings = Bindings::default();
    for grant in grants {
        read_grant(grant, &mut bindings).unwrap();
    }
    bindings
}

#[test]
fn every_line_of_the_contract() {
    let grants = [
        "http=api.x.com",
        "http=*.x.com:8443",
        "workloads=orders",
        "publish=a.>",
        "subscribe=a.b",
        "keyvalue=cart",
        "blobstore=img",
        "volume=data:/data",
        "volume=ro:/ro:ro",
        "sockets=connect:db:5432",
        "sockets=listen:9000",
    ];
    let bindings = read(&grants);
    assert_eq!(
        read(&[grants, grants].concat()),
        bindings,
        "a second time changes nothing"
    );
    assert_eq!(bindings.keyvalue["cart"].backend, "jetstream");
    assert_eq!(bindings.volume["ro"].mode, "ro");
    insta::assert_snapshot!("grant-flags", grant_flags(&bindings).join("\n"));
}

#[test]
fn what_is_no_grant() {
    let mut shown = String::new();
    for bad in [
        "",
        "http",
        "http=",
        "htp=a.b",
        "xyz=1",
        "http=https://a.b",
        "workloads=a.b.c",
        "publish=>",
        "subscribe=a..b",
        "keyvalue=a b",
        "blobstore=",
        "volume=data",
        "volume=data:rel",
        "volume=data:/d:rx",
        "sockets=db:5432",
        "sockets=connect:db",
        "sockets=listen:+1",
        "sockets=listen:0",
        "\u{1b}[31m=x",
    ] {
        let problem = read_grant(bad, &mut Bindings::default()).unwrap_err();
        shown.push_str(&format!("{problem}\n"));
    }
    insta::assert_snapshot!("bad-grants", shown);
}

proptest! {
    #[test]
    fn flags_read_back(
        grants in proptest::collection::vec(prop_oneof![
            "http=(\\*\\.)?[a-z]{1,8}\\.[a-z]{2,3}(:[1-9][0-9]{0,3})?",
            "workloads=[a-z]{1,8}(\\.[a-z]{1,8})?",
            "(publish|subscribe)=[a-z]{1,8}(\\.([a-z'$]{1,4}|\\*)){0,3}(\\.>)?",
            "(keyvalue|blobstore)=[a-zA-Z_-]{1,8}",
            "volume=[a-z]{1,8}:(/[a-z]{1,4}){1,3}(:ro)?",
            "sockets=connect:[a-z]{1,8}:[1-9][0-9]{0,3}",
            "sockets=listen:[1-9][0-9]{0,3}",
        ], 0..12),
    ) {
        let mut bindings = Bindings::default();
        for grant in &grants {
            // Two volumes may have drawn the same path, which is refused.
            let _ = read_grant(grant, &mut bindings);
        }
        let mut again = Bindings::default();
        for flag in grant_flags(&bindings) {
            let value = flag.strip_prefix("--grant ").unwrap();
            // As a shell takes it: only a value with something to hide is in quotes.
            let quoted = value.strip_prefix('\'').and_then(|value| value.strip_suffix('\''));
            let value = quoted.map_or(value.to_owned(), |value| value.replace(r"'\''", "'"));
            read_grant(&value, &mut again).unwrap();
        }
        prop_assert_eq!(again, bindings);
    }

    #[test]
    fn no_text_panics(text in "\\PC{0,60}", known in "(http|volume|sockets|subscribe)=[a-z:/.*>\\[\\]0-9]{0,20}") {
        let _ = read_grant(&text, &mut Bindings::default());
        let _ = read_grant(&known, &mut Bindings::default());
    }
}
