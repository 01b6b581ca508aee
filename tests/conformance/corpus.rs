//! Every input that fuzzing has kept (`fuzz/corpus`), through what the fuzz targets do.

#[path = "../../fuzz/inputs.rs"]
mod inputs;

/// Gives every file of a corpus to its target; how many there were.
fn run(target: &str, check: fn(&[u8])) -> usize {
    // Cargo runs tests in their package's folder.
    let folder = std::path::Path::new("../fuzz/corpus").join(target);
    let files = std::fs::read_dir(&folder).expect("the corpus is part of the checkout");
    let mut count = 0;
    for file in files {
        let path = file.expect("a folder that is read").path();
        let bytes = std::fs::read(&path).expect("a file of the checkout");
        let outcome = std::panic::catch_unwind(|| check(&bytes));
        assert!(outcome.is_ok(), "{} broke it", path.display());
        count += 1;
    }
    count
}

#[test]
fn every_kept_input_is_read_or_refused() {
    for (target, check) in [
        ("manifest", inputs::manifest as fn(&[u8])),
        ("deploy", inputs::deploy),
        ("subject", inputs::subject),
        ("component", inputs::component),
    ] {
        assert!(run(target, check) >= 5, "the corpus of {target} is thin");
    }
}
