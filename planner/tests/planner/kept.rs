//! Every input that fuzzing has kept for the target `plan`, and those of `deploy`.

#[path = "../../../fuzz/planned.rs"]
mod planned;

#[test]
fn every_kept_deploy_is_planned_or_refused() {
    for (target, least) in [("plan", 13), ("deploy", 5)] {
        // Cargo runs tests in their package's folder.
        let folder = std::path::Path::new("../fuzz/corpus").join(target);
        let files = std::fs::read_dir(&folder).unwrap();
        let paths = files.map(|file| file.unwrap().path());
        let mut count = 0;
        for path in paths {
            let bytes = std::fs::read(&path).unwrap();
            let outcome = std::panic::catch_unwind(|| planned::plan(&bytes));
            assert!(outcome.is_ok(), "{} broke it", path.display());
            count += 1;
        }
        assert!(count >= least, "the corpus of {target} is thin");
    }
}
