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

/// What the system's libraries read: certificates, time zones, the machine's own limits, and shared
/// libraries that are loaded late.
#[cfg(target_os = "linux")]
const SYSTEM: [&str; 11] = [
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

/// And of `/etc`, where whoever runs this machine keeps secrets too.
#[cfg(target_os = "linux")]
const ETC: [&str; 18] = [
    "ca-certificates",
    "gai.conf",
    "host.conf",
    "hosts",
    "ld-musl-aarch64.path",
    "ld-musl-x86_64.path",
    "ld.so.cache",
    "localtime",
    "nsswitch.conf",
    "pki/ca-trust",
    "pki/tls/cert.pem",
    "pki/tls/certs",
    "resolv.conf",
    "services",
    "ssl/ca-bundle.pem",
    "ssl/cert.pem",
    "ssl/certs",
    "timezone",
];

/// Gives up what is not needed; says what could not be given up.
#[cfg(target_os = "linux")]
pub(crate) fn enter(paths: &Paths) {
    let missing = confine(paths);
    if missing.is_empty() {
        tracing::debug!("this process has given up what it does not need");
    } else {
        tracing::warn!(
            missing = missing.join(", "),
            "the kernel cannot confine this process fully: guests have WebAssembly's walls and the rest of these"
        );
    }
}

/// What could not be given up.
#[cfg(target_os = "linux")]
fn confine(paths: &Paths) -> Vec<String> {
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
    missing
}

/// What to open of `/etc`. A rule is for a file, not for its name, and who has one is not let into another
/// that is put in its place. Whoever configures a network does that with `resolv.conf`: where it is a link, the
/// folder that it leads to is opened; where it is a file that can be replaced, all is, since a runner that
/// cannot resolve names any more is worse.
#[cfg(target_os = "linux")]
fn etc(folder: &Path) -> Vec<PathBuf> {
    let mut named: Vec<_> = ETC.iter().map(|name| folder.join(name)).collect();
    let Ok(resolver) = folder.join("resolv.conf").canonicalize() else {
        return named;
    };
    let beside = folder.canonicalize().ok();
    let own = resolver.parent().map(Path::to_owned);
    if own != beside {
        named.extend(own);
        return named;
    }
    // What is mounted, as containers have it, stays the same file.
    let device = |path: &Path| rustix::fs::stat(path).map(|about| about.st_dev);
    if device(&resolver) == device(folder) {
        tracing::debug!("all of /etc stays readable: its resolv.conf may be replaced by another");
        return vec![folder.to_owned()];
    }
    named
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
    let etc = etc(Path::new("/etc"));
    let read = paths.read.iter().chain(&named).chain(&etc);
    let read = read.map(PathBuf::as_path);
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
    seccompiler::apply_filter(&program()?).map_err(|error| error.to_string())
}

/// From here on the numbers are those of x32: the same calls once more, with other numbers.
#[cfg(target_os = "linux")]
const X32: u32 = 0x4000_0000;

/// What the kernel asks at every call.
#[cfg(target_os = "linux")]
fn program() -> Result<seccompiler::BpfProgram, String> {
    use seccompiler::{
        BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
        SeccompRule,
    };
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let own = u64::from(std::process::id());
    let errno = libc::EPERM.unsigned_abs();
    let refusal = libc::SECCOMP_RET_ERRNO | errno;
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
        SeccompAction::Errno(errno),
        std::env::consts::ARCH
            .try_into()
            .map_err(|error| text(&error))?,
    )
    .map_err(|error| text(&error))?;
    let filter: BpfProgram = filter
        .try_into()
        .map_err(|error: seccompiler::BackendError| text(&error))?;
    let step = |code: u32, jf, k| seccompiler::sock_filter {
        code: code as u16,
        jt: 0,
        jf,
        k,
    };
    // seccompiler knows single numbers only. The number is what lies first.
    let mut program = vec![
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0),
        step(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, 1, X32),
        step(libc::BPF_RET | libc::BPF_K, 0, refusal),
    ];
    program.extend(filter);
    Ok(program)
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
    libc::SYS_mount_setattr,
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
    #[cfg(any(target_env = "gnu", target_arch = "x86_64"))]
    libc::SYS_kexec_file_load,
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
    libc::SYS_clock_adjtime,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
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
    use std::fs::File;

    use super::*;
    use crate::files::DataDir;

    /// In a thread of its own: what it gives up is gone for good. And what the kernel could not take.
    fn confined<R: Send>(paths: &Paths, test: impl FnOnce() -> R + Send) -> (R, Vec<String>) {
        std::thread::scope(|scope| {
            let confined = scope.spawn(|| {
                let missing = confine(paths);
                (test(), missing)
            });
            confined.join().expect("the test itself does not panic")
        })
    }

    /// What may be read of these, and written; nothing where the kernel has no landlock.
    fn reach(paths: &Paths, files: &[PathBuf]) -> Option<Vec<(bool, bool)>> {
        let (found, missing) = confined(paths, || {
            let each = files.iter().map(|file| {
                let read = std::fs::read(file).is_ok();
                (read, File::options().append(true).open(file).is_ok())
            });
            each.collect()
        });
        let is_there = !missing.iter().any(|what| what.contains("landlock"));
        is_there.then_some(found)
    }

    #[test]
    fn a_child_reaches_its_own_files_and_no_others() {
        let folder = tempfile::tempdir().unwrap();
        let data = DataDir::open(&folder.path().join("data")).unwrap();
        let root = folder.path().canonicalize().unwrap();
        let files = [
            "data/artifacts/a",
            "data/compiled/c",
            "data/volumes/v",
            "data/host.json",
            "data/logs/l",
            "data/lock",
            "data/endpoints/e",
            "keys/host.creds",
            "keys/tls.key",
            "given/code",
        ];
        let files = files.map(|name| root.join(name));
        for file in &files {
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, "x").unwrap();
        }
        let (none, read, write) = ((false, false), (true, false), (true, true));
        let runner = data.for_runners(Some(&root.join("keys/host.creds")));
        if let Some(found) = reach(&runner, &files) {
            let wanted = [read, read, write, none, none, none, none, read, none, none];
            assert_eq!(found, wanted);
        }
        let compiler = data.for_compiler(Some(&root.join("given")));
        if let Some(found) = reach(&compiler, &files) {
            let wanted = [read, write, none, none, none, none, none, none, none, read];
            assert_eq!(found, wanted);
        }
    }

    #[test]
    fn of_etc_what_is_needed_is_opened() {
        let folder = tempfile::tempdir().unwrap();
        let (etc_of, run) = (folder.path().join("etc"), folder.path().join("run"));
        for folder in [&etc_of, &run] {
            std::fs::create_dir(folder).unwrap();
        }
        let has = |name: &str| etc(&etc_of).contains(&etc_of.join(name));
        assert!(has("hosts") && !has(""), "there is no resolver");
        let resolver = etc_of.join("resolv.conf");
        std::fs::write(run.join("resolv.conf"), "x").unwrap();
        std::os::unix::fs::symlink(run.join("resolv.conf"), &resolver).unwrap();
        let linked = etc(&etc_of);
        assert!(linked.contains(&run.canonicalize().unwrap()), "{linked:?}");
        assert!(has("hosts") && !has(""));
        std::fs::remove_file(&resolver).unwrap();
        std::fs::write(&resolver, "x").unwrap();
        assert_eq!(
            etc(&etc_of),
            std::slice::from_ref(&etc_of),
            "it may be replaced"
        );
    }

    #[test]
    fn it_cannot_become_another_program_or_signal_one() {
        let ((spawned, signalled), _) = confined(&Paths::default(), || {
            let spawned = std::process::Command::new("/bin/true").status();
            let own = rustix::process::getpid();
            let held = rustix::process::pidfd_open(own, rustix::process::PidfdFlags::empty());
            let held = held.map(drop);
            (spawned, [rustix::process::test_kill_process(own), held])
        });
        assert!(spawned.is_err());
        assert_eq!(signalled, [Err(rustix::io::Errno::PERM); 2]);
    }

    /// What the filter says of a call, as the kernel reads it.
    fn verdict(number: libc::c_long, first: u32) -> u32 {
        #[cfg(target_arch = "x86_64")]
        const ARCH: u32 = 0xc000_003e;
        #[cfg(target_arch = "aarch64")]
        const ARCH: u32 = 0xc000_00b7;
        let (mut at, mut held) = (0, 0);
        let program = program().expect("a filter");
        loop {
            let step = &program[at];
            let (code, k) = (u32::from(step.code), step.k);
            at += 1;
            let jump = |is_so: bool| usize::from(if is_so { step.jt } else { step.jf });
            // A load, three jumps, an operation and the end.
            match code {
                0x20 => {
                    held = match k {
                        0 => u32::try_from(number).expect("a number"),
                        4 => ARCH,
                        16 => first,
                        _ => 0,
                    }
                }
                0x05 => at += k as usize,
                0x15 => at += jump(held == k),
                0x35 => at += jump(held >= k),
                0x54 => held &= k,
                0x06 => return k,
                other => panic!("an instruction that is not known: {other:#x}"),
            }
        }
    }

    #[test]
    fn each_denied_call_is_refused_in_all_its_numbers() {
        let refused = libc::SECCOMP_RET_ERRNO | libc::EPERM.unsigned_abs();
        for call in DENIED {
            for number in [*call, *call | libc::c_long::from(X32)] {
                assert_eq!(verdict(number, 0), refused, "{number}");
            }
        }
        let own = std::process::id();
        for call in DENIED_ELSEWHERE {
            assert_eq!(verdict(*call, own + 1), refused, "{call}");
            assert_eq!(verdict(*call, own), libc::SECCOMP_RET_ALLOW, "{call}");
        }
        for call in [libc::SYS_read, libc::SYS_openat, libc::SYS_futex] {
            assert_eq!(verdict(call, 0), libc::SECCOMP_RET_ALLOW, "{call}");
            let x32 = call | libc::c_long::from(X32);
            assert_eq!(verdict(x32, 0), refused, "{call}");
        }
    }
}
