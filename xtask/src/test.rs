//! `cargo xtask test`: sets up, then runs every test of the workspace, then the simulator, then what
//! needs planted bugs. CI calls exactly this.

use anyhow::{Context, Result};

use crate::project::Project;
use crate::{process, setup};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Passed to `cargo test`, for instance `-p wasmorch-planner` or `-- --nocapture`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    cargo_test: Vec<String>,
}

pub(crate) fn run(project: &Project, args: &Args) -> Result<()> {
    let ready = setup::run(project)?;
    if may_run(&args.cargo_test, DEVICE_TESTS) {
        setup::step("wasmorch", "building without a compiler");
        project.build_device_binary()?;
    }
    setup::step("wasmorch", "building");
    project.build_binary()?;

    let mut test = project.cargo();
    test.arg("test");
    if !names_package(&args.cargo_test) {
        test.arg("--workspace");
    }
    ready.apply(&mut test);
    if !args.cargo_test.is_empty() {
        return process::run(test.args(&args.cargo_test)).context("the tests did not pass");
    }
    // The simulator takes every core: beside it, real processes would miss their deadlines.
    test.args(["--", "--skip", "sim::"]);
    process::run(&mut test).context("the tests did not pass")?;
    let mut sim = project.cargo();
    sim.args(["test", "--workspace", "--test", "all", "--", "sim::"]);
    process::run(&mut sim).context("the simulator found a failure")?;
    planted(project)
}

/// The simulator must catch bugs that are planted in planner and agent: a build of its own, so that
/// no other test and no binary ever sees them.
fn planted(project: &Project) -> Result<()> {
    setup::step("wasmorch", "building with planted bugs");
    let mut test = project.cargo();
    test.args(["test", "--workspace", "--test", "all"]);
    test.args(["--features", "wasmorch-tests/planted"]);
    test.args(["--", "--nocapture", "sim::planted"]);
    process::run(&mut test).context("a planted bug was not caught")
}

/// Who runs the `wasmorch` without a compiler, which is a minute or two to build.
const DEVICE_TESTS: &str = "e2e::device::";

/// Whether tests of a module may run, with these filters.
fn may_run(args: &[String], module: &str) -> bool {
    let after = args.iter().skip_while(|arg| *arg != "--").skip(1);
    let mut filters = after.filter(|arg| !arg.starts_with('-')).peekable();
    filters.peek().is_none()
        || filters.any(|filter| module.contains(filter.as_str()) || filter.starts_with(module))
}

/// Whether the user chose packages, so that `--workspace` must not choose all.
fn names_package(args: &[String]) -> bool {
    args.iter()
        .take_while(|arg| *arg != "--")
        .any(|arg| arg.starts_with("-p") || arg.starts_with("--package"))
}

#[cfg(test)]
mod tests {
    use super::{DEVICE_TESTS, may_run, names_package};

    fn args(args: &[&str]) -> Vec<String> {
        args.iter().map(|arg| (*arg).to_owned()).collect()
    }

    #[test]
    fn a_package_is_chosen_before_the_dashes_only() {
        assert!(names_package(&args(&["-p", "wasmorch-api"])));
        assert!(names_package(&args(&["--package=wasmorch-api"])));
        assert!(!names_package(&args(&["rollout", "--", "-p"])));
    }

    #[test]
    fn a_module_is_left_out_only_by_filters_that_name_others() {
        let may = |list: &[&str]| may_run(&args(list), DEVICE_TESTS);
        assert!(may(&[]) && may(&["--test", "all"]) && may(&["--", "--nocapture"]));
        assert!(may(&["--", "e2e::"]) && may(&["--", "e2e::device::a_host", "--nocapture"]));
        assert!(!may(&["--", "e2e::zero"]) && !may(&["--", "sim::", "--nocapture"]));
    }
}
