//! Certificates that pass, and everything that does not.

use rcgen::{CertificateParams, KeyPair};

use super::*;

const DAY: Duration = Duration::from_secs(86_400);

/// A certificate for these names, valid from so many days before now to so many after.
fn pair(from: &str, names: &[&str], days: (i64, i64)) -> PemPair {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    let now = time::OffsetDateTime::now_utc();
    params.not_before = now + time::Duration::days(days.0);
    params.not_after = now + time::Duration::days(days.1);
    let key = KeyPair::generate().unwrap();
    PemPair {
        from: from.into(),
        chain: params.self_signed(&key).unwrap().pem().into_bytes(),
        key: key.serialize_pem().into_bytes(),
    }
}

fn refusals(pairs: &[PemPair]) -> Vec<String> {
    let bad = Certificates::read(pairs, SystemTime::now()).unwrap_err();
    bad.iter().map(ToString::to_string).collect()
}

#[test]
fn everything_that_is_wrong_is_told_at_once() {
    let good = pair("good", &["a.example"], (-1, 90));
    let other = pair("other", &["b.example"], (-1, 90));
    let crossed = PemPair {
        from: "crossed".into(),
        key: other.key.clone(),
        ..good.clone()
    };
    let no_pem = PemPair {
        from: "no-pem".into(),
        chain: b"hello".to_vec(),
        ..good.clone()
    };
    let no_key = PemPair {
        from: "no-key".into(),
        key: good.chain.clone(),
        ..good.clone()
    };
    let damaged = PemPair {
        from: "damaged".into(),
        chain: b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".to_vec(),
        ..good.clone()
    };
    let told = refusals(&[
        crossed,
        pair("old", &["a.example"], (-90, -3)),
        pair("early", &["a.example"], (3, 90)),
        pair("nameless", &[], (-1, 90)),
        good,
        no_pem,
        no_key,
        damaged,
    ]);
    let begins = [
        "crossed: the key belongs to another certificate: give the key that",
        "old: it expired 3 days ago: renew it",
        "early: it is not valid before 2 days from now: wait",
        "nameless: it names no host: give one with",
        "no-pem: there is no certificate in it: give PEM",
        "no-key: the key cannot be read (",
        "damaged: the certificate is damaged (",
    ];
    assert_eq!(told.len(), begins.len(), "{told:#?}");
    for (told, begins) in told.iter().zip(begins) {
        assert!(told.starts_with(begins), "{told}");
    }
    assert_eq!(refusals(&[]).len(), 1);
}

#[test]
fn a_client_is_shown_the_certificate_for_the_name_it_asks_for() {
    let now = SystemTime::now();
    let mut by_name = ByName::default();
    let mut keys = Vec::new();
    for names in [
        &["Shop.example"][..],
        &["*.example", "example"],
        &["*.shop.example"],
    ] {
        let one = one(&pair("", names, (-1, 90)), now).unwrap();
        by_name.add(&one);
        keys.push(one.key);
    }
    let found = |name: &str| {
        let found = by_name.find(name)?;
        keys.iter().position(|key| Arc::ptr_eq(key, found))
    };
    assert_eq!(found("shop.example"), Some(0), "exact before wildcard");
    assert_eq!(found("SHOP.example"), Some(0));
    assert_eq!(found("other.example"), Some(1));
    assert_eq!(found("a.shop.example"), Some(2));
    assert_eq!(found("a.b.example"), None, "a wildcard is one label wide");
    assert_eq!(found("example"), Some(1));
    assert_eq!(found("localhost"), None);
    assert!(Arc::ptr_eq(by_name.first.as_ref().unwrap(), &keys[0]));
}

#[test]
fn a_certificate_that_ends_soon_is_told_of() {
    let now = SystemTime::now();
    let pairs = [
        pair("soon", &["a.example"], (-80, 10)),
        pair("later", &["b.example"], (-1, 90)),
    ];
    let read = Certificates::read(&pairs, now).unwrap();
    assert_eq!(
        read.ending(now),
        ["soon (a.example) ends in 9 days: renew it"]
    );
    assert_eq!(read.ending(now + 80 * DAY).len(), 2);
    assert!(
        format!("{:?}", pairs[0]).len() < 30,
        "no key in what is printed"
    );
}
