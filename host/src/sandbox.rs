//! What a child of the daemon gives up before it runs its first guest, or compiles the first.
//!
//! WebAssembly is the wall; this is the ditch behind it, for the day a wall has a hole:
//! - no new privileges, whatever is executed;
//! - landlock: of all files only the host's own folders and what the system libraries need;
//! - seccomp: none of the system calls by which a process leaves its place, looks into others or
//!   becomes another program. Denied, not deadly: whoever asks for one gets `EPERM`.
//!
//! What the kernel cannot give is said once at the start, and never a reason to fail: an old kernel
//! runs guests too. All of it is inherited by threads, so it is done before there are any.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// What it may still open.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Paths {
    /// To read.
    pub read: Vec<PathBuf>,
    /// To read, write, make and remove.
    pub write: Vec<PathBuf>,
}

/// What the system's libraries read: resolving names, certificates, time zones, the machine's own
/// limits, and shared libraries that are loaded late.
#[cfg(target_os = "linux")]
const SYSTEM: [&str; 12] = [
    "/etc",
    "/usr/lib",
    "/usr/lib64",
    "/lib",
    "/lib64",
    "/usr/share",
    "/usr/local/share",
    "/run/systemd/resolve",
    "/proc",
    "/sys",
    "/dev/null",
    "/dev/urandom",
];

/// Gives up what is not needed; says what could not be given up.
#[cfg(target_os = "linux")]
pub(crate) fn enter(paths: &Paths) {
    let mut missing = Vec::new();
    if let Err(error) = rustix::thread::set_no_new_privs(true) {
        missing.push(format!("no new privileges ({error})"));
    }
    match files(paths) {
        Ok(None) => {}
        Ok(Some(what)) => missing.push(what.to_owned()),
        Err(error) => missing.push(format!("landlock ({error})")),
    }
    if let Err(error) = calls() {
        missing.push(format!("seccomp ({error})"));
    }
    if missing.is_empty() {
        tracing::debug!("this process has given up what it does not need");
    } else {
        tracing::warn!(
            missing = missing.join(", "),
            "the kernel cannot confine this process fully: guests have WebAssembly's walls and the rest of these"
        );
    }
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn enter(_paths: &Paths) {
    tracing::warn!("processes are confined on Linux only: guests have WebAssembly's walls alone");
}

/// Restricts which files this thread, and those it makes, may open. Says what is missing.
#[cfg(target_os = "linux")]
fn files(paths: &Paths) -> Result<Option<&'static str>, landlock::RulesetError> {
    use landlock::{
        ABI, Access as _, AccessFs, Ruleset, RulesetAttr as _, RulesetCreatedAttr as _,
        RulesetStatus, path_beneath_rules,
    };
    // What is known of newer ones is asked for as far as the kernel has it.
    let abi = ABI::V5;
    let system = SYSTEM.iter().map(Path::new);
    // Where the user keeps certificates, when not there.
    let named = ["SSL_CERT_FILE", "SSL_CERT_DIR"].map(std::env::var_os);
    let named: Vec<_> = named.into_iter().flatten().map(PathBuf::from).collect();
    let read = paths.read.iter().chain(&named).map(PathBuf::as_path);
    // A path that is not there gives no rule, and nothing is lost.
    let status = Ruleset::default()
        .handle_access(AccessFs::from_all(abi))?
        .create()?
        .add_rules(path_beneath_rules(
            system.chain(read),
            AccessFs::from_read(abi),
        ))?
        .add_rules(path_beneath_rules(&paths.write, AccessFs::from_all(abi)))?
        .restrict_self()?;
    Ok(match status.ruleset {
        RulesetStatus::FullyEnforced => None,
        RulesetStatus::PartiallyEnforced => Some("some of landlock (Linux 6.10 has all)"),
        RulesetStatus::NotEnforced => Some("landlock (Linux 5.13 with it enabled has it)"),
    })
}

/// Denies system calls to this thread and those it makes.
#[cfg(target_os = "linux")]
fn calls() -> Result<(), String> {
    use seccompiler::{
        BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
        SeccompRule,
    };
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let own = u64::from(std::process::id());
    let elsewhere = || {
        SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, own)
            .and_then(|condition| SeccompRule::new(vec![condition]))
            .map_err(|error| text(&error))
    };
    let mut denied: std::collections::BTreeMap<_, _> =
        DENIED.iter().map(|call| (*call, Vec::new())).collect();
    for call in DENIED_ELSEWHERE {
        denied.insert(*call, vec![elsewhere()?]);
    }
    let filter = SeccompFilter::new(
        denied,
        SeccompAction::Allow,
        SeccompAction::Errno(libc::EPERM.unsigned_abs()),
        std::env::consts::ARCH
            .try_into()
            .map_err(|error| text(&error))?,
    )
    .map_err(|error| text(&error))?;
    let program: BpfProgram = filter
        .try_into()
        .map_err(|error: seccompiler::BackendError| text(&error))?;
    seccompiler::apply_filter(&program).map_err(|error| text(&error))
}

/// System calls that no runner needs and an attacker would.
#[cfg(target_os = "linux")]
const DENIED: &[libc::c_long] = &[
    // Becoming another program, or another user.
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setreuid,
    libc::SYS_setregid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_setgroups,
    libc::SYS_setfsuid,
    libc::SYS_setfsgid,
    libc::SYS_capset,
    libc::SYS_personality,
    // Looking into other processes, or ending them.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_pidfd_send_signal,
    libc::SYS_kill,
    libc::SYS_rt_sigqueueinfo,
    // By it alone musl ends itself; who has it cannot be told by its argument.
    #[cfg(not(target_env = "musl"))]
    libc::SYS_tkill,
    libc::SYS_kcmp,
    // Leaving its place.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_open_by_handle_at,
    libc::SYS_name_to_handle_at,
    // The machine itself.
    libc::SYS_reboot,
    libc::SYS_kexec_load,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_adjtimex,
    libc::SYS_acct,
    libc::SYS_syslog,
    libc::SYS_quotactl,
    // Wide doors into the kernel.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
];

/// Signals to threads: its own are how a process ends itself, others' how it ends them. The process
/// is the first argument.
#[cfg(target_os = "linux")]
const DENIED_ELSEWHERE: &[libc::c_long] = &[libc::SYS_tgkill, libc::SYS_rt_tgsigqueueinfo];

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    /// In a thread of its own: what it gives up is gone for good.
    fn confined<R: Send>(paths: &Paths, test: impl FnOnce() -> R + Send) -> R {
        std::thread::scope(|scope| {
            let confined = scope.spawn(|| {
                enter(paths);
                test()
            });
            confined.join().expect("the test itself does not panic")
        })
    }

    fn has(what: &str) -> bool {
        let path = format!("/sys/kernel/security/{what}");
        let listed = std::fs::read_to_string("/sys/kernel/security/lsm").unwrap_or_default();
        Path::new(&path).exists() || listed.contains(what)
    }

    #[test]
    fn files_outside_are_out_of_reach() {
        let (inside, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let secret = outside.path().join("secret");
        std::fs::write(&secret, "x").unwrap();
        let paths = Paths {
            read: Vec::new(),
            write: vec![inside.path().to_owned()],
        };
        let own = inside.path().join("own");
        let (foreign, written) = confined(&paths, || {
            (std::fs::read(&secret), std::fs::write(&own, "y"))
        });
        written.unwrap();
        assert!(
            foreign.is_err() || !has("landlock"),
            "landlock is there and lets it"
        );
    }

    #[test]
    fn it_cannot_become_another_program_or_signal_one() {
        let (spawned, signalled) = confined(&Paths::default(), || {
            let spawned = std::process::Command::new("/bin/true").status();
            let own = rustix::process::getpid();
            let held = rustix::process::pidfd_open(own, rustix::process::PidfdFlags::empty());
            let held = held.map(drop);
            (spawned, [rustix::process::test_kill_process(own), held])
        });
        assert!(spawned.is_err());
        assert_eq!(signalled, [Err(rustix::io::Errno::PERM); 2]);
    }
}
