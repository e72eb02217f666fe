//! The system calls that the daemon may make once it serves.
//!
//! The lists are data: what is not in them ends the daemon, or whatever else
//! [`Action`] says. Nothing here starts a program, opens a socket, mounts,
//! traces, loads code, or makes a process; a thread may be started, but not
//! with a namespace of its own. The syslog needs no line: its socket is
//! connected before the filter is there.
//!
//! `tests/seccomp.rs` runs every operation under the filter, and tries calls
//! that must not get through.

/// What happens at a call that is in no list.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Action {
    /// The process ends.
    Kill,
    /// The thread gets SIGSYS, which ends the process too.
    Trap,
    /// The kernel's log names it, and it is carried out.
    Log,
}

#[cfg(not(any(
    target_arch = "x86_64",
    target_arch = "aarch64",
    target_arch = "riscv64"
)))]
mod filter {
    /// There are no lists for this machine.
    pub fn install(_: super::Action) -> anyhow::Result<()> {
        anyhow::bail!(
            "there is no seccomp filter for {} machines; start with --seccomp=none",
            std::env::consts::ARCH
        );
    }
}

#[cfg(any(
    target_arch = "x86_64",
    target_arch = "aarch64",
    target_arch = "riscv64"
))]
mod filter {
    use std::collections::BTreeMap;

    use anyhow::Context as _;
    use libc::c_long;
    use seccompiler::{
        BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
        SeccompRule, TargetArch, apply_filter_all_threads,
    };

    use super::Action;
    use crate::sys::ioctl;

    /// The same on all machines; not every C library has a name for it.
    const FCHMODAT2: c_long = 452;

    /// `renameat`, likewise.
    #[cfg(target_arch = "aarch64")]
    const RENAMEAT: c_long = 38;

    /// Calls that are allowed whatever their arguments.
    const ALLOWED: &[c_long] = &[
        // Memory.
        libc::SYS_brk,
        libc::SYS_madvise,
        libc::SYS_mremap,
        libc::SYS_munmap,
        // Threads and their end, that of the process included.
        libc::SYS_clock_nanosleep,
        libc::SYS_exit,
        libc::SYS_exit_group,
        libc::SYS_futex,
        libc::SYS_getpid,
        libc::SYS_gettid,
        libc::SYS_nanosleep,
        libc::SYS_restart_syscall,
        libc::SYS_rseq,
        libc::SYS_sched_getaffinity,
        libc::SYS_sched_yield,
        libc::SYS_set_robust_list,
        libc::SYS_set_tid_address,
        // Signals.
        libc::SYS_rt_sigaction,
        libc::SYS_rt_sigprocmask,
        libc::SYS_rt_sigreturn,
        libc::SYS_sigaltstack,
        // Time and random numbers, where they are not had without a call.
        libc::SYS_clock_getres,
        libc::SYS_clock_gettime,
        libc::SYS_getrandom,
        libc::SYS_gettimeofday,
        // Who a thread is, for the duration of a request.
        libc::SYS_capget,
        libc::SYS_capset,
        libc::SYS_fchdir,
        libc::SYS_getegid,
        libc::SYS_geteuid,
        libc::SYS_getgid,
        libc::SYS_getgroups,
        libc::SYS_getuid,
        libc::SYS_setgroups,
        libc::SYS_setresgid,
        libc::SYS_setresuid,
        libc::SYS_umask,
        // The front end's connection and the events of the queues.
        libc::SYS_accept4,
        libc::SYS_dup,
        libc::SYS_dup3,
        libc::SYS_epoll_create1,
        libc::SYS_epoll_ctl,
        libc::SYS_epoll_pwait,
        libc::SYS_eventfd2,
        libc::SYS_ppoll,
        libc::SYS_recvfrom,
        libc::SYS_recvmsg,
        libc::SYS_sendmsg,
        libc::SYS_shutdown,
        // Descriptors.
        libc::SYS_close,
        libc::SYS_fcntl,
        libc::SYS_fdatasync,
        libc::SYS_fsync,
        libc::SYS_lseek,
        libc::SYS_pread64,
        libc::SYS_preadv,
        libc::SYS_preadv2,
        libc::SYS_pwrite64,
        libc::SYS_pwritev,
        libc::SYS_pwritev2,
        libc::SYS_read,
        libc::SYS_readv,
        libc::SYS_write,
        libc::SYS_writev,
        // Files of the guest.
        libc::SYS_copy_file_range,
        libc::SYS_faccessat,
        libc::SYS_faccessat2,
        libc::SYS_fallocate,
        libc::SYS_fchmod,
        libc::SYS_fchmodat,
        FCHMODAT2,
        libc::SYS_fchown,
        libc::SYS_fchownat,
        libc::SYS_flock,
        libc::SYS_fstat,
        libc::SYS_fstatfs,
        libc::SYS_ftruncate,
        libc::SYS_getdents64,
        libc::SYS_linkat,
        libc::SYS_mkdirat,
        libc::SYS_mknodat,
        libc::SYS_name_to_handle_at,
        libc::SYS_newfstatat,
        libc::SYS_open_by_handle_at,
        libc::SYS_openat,
        libc::SYS_openat2,
        libc::SYS_readlinkat,
        libc::SYS_renameat2,
        libc::SYS_statx,
        libc::SYS_symlinkat,
        libc::SYS_syncfs,
        libc::SYS_unlinkat,
        libc::SYS_utimensat,
        // Extended attributes.
        libc::SYS_fgetxattr,
        libc::SYS_flistxattr,
        libc::SYS_fremovexattr,
        libc::SYS_fsetxattr,
        libc::SYS_getxattr,
        libc::SYS_lgetxattr,
        libc::SYS_listxattr,
        libc::SYS_llistxattr,
        libc::SYS_lremovexattr,
        libc::SYS_lsetxattr,
        libc::SYS_removexattr,
        libc::SYS_setxattr,
    ];

    /// Older names of calls above, which only this machine has.
    #[cfg(target_arch = "x86_64")]
    const OF_THIS_MACHINE: &[c_long] = &[
        libc::SYS_dup2,
        libc::SYS_epoll_wait,
        libc::SYS_poll,
        libc::SYS_readlink,
        libc::SYS_renameat,
        libc::SYS_time,
    ];
    #[cfg(target_arch = "aarch64")]
    const OF_THIS_MACHINE: &[c_long] = &[RENAMEAT];
    #[cfg(target_arch = "riscv64")]
    const OF_THIS_MACHINE: &[c_long] = &[];

    /// A call that is allowed where the bits `mask` of an argument are `value`.
    struct Checked {
        call: c_long,
        argument: u8,
        mask: u64,
        value: u64,
    }

    const fn bits(call: c_long, argument: u8, mask: u64, value: u64) -> Checked {
        Checked {
            call,
            argument,
            mask,
            value,
        }
    }

    /// All bits of an argument that is an `int`: the kernel ignores the others.
    const INT: u64 = u32::MAX as u64;

    const EXECUTABLE: u64 = libc::PROT_EXEC as u64;

    const NAMESPACES: u64 = (libc::CLONE_NEWNS
        | libc::CLONE_NEWCGROUP
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUSER
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNET) as u64;

    /// What makes a thread of what would otherwise be a process.
    const THREAD: u64 = (libc::CLONE_VM | libc::CLONE_THREAD) as u64;

    /// `PR_SET_VMA`, with which the C library may name a part of its heap.
    const PR_SET_VMA: u64 = 0x5356_4d41;

    // The same on all machines here; C libraries differ in the type.
    const TCGETS: u64 = 0x5401;
    const FIONBIO: u64 = 0x5421;
    const FIOCLEX: u64 = 0x5451;

    /// Calls that are allowed with certain arguments only. A call with several
    /// lines is allowed where one of them fits.
    const CHECKED: &[Checked] = &[
        bits(libc::SYS_mmap, 2, EXECUTABLE, 0),
        bits(libc::SYS_mprotect, 2, EXECUTABLE, 0),
        bits(libc::SYS_clone, 0, THREAD | NAMESPACES, THREAD),
        // A file-system context for each thread that serves, and nothing else.
        bits(libc::SYS_unshare, 0, u64::MAX, libc::CLONE_FS as u64),
        bits(libc::SYS_prctl, 0, INT, libc::PR_SET_NAME as u64),
        bits(libc::SYS_prctl, 0, INT, PR_SET_VMA),
        // Limits are read, not set.
        bits(libc::SYS_prlimit64, 2, u64::MAX, 0),
        // Sockets that are connected already: no address is given.
        bits(libc::SYS_sendto, 4, u64::MAX, 0),
        // What kind of socket the front end sent.
        bits(libc::SYS_getsockopt, 1, INT, libc::SOL_SOCKET as u64),
        // Is this a terminal; wait or do not wait; keep from other programs.
        bits(libc::SYS_ioctl, 1, INT, TCGETS),
        bits(libc::SYS_ioctl, 1, INT, FIONBIO),
        bits(libc::SYS_ioctl, 1, INT, FIOCLEX),
        // Flags, generation and digest of the guest's files.
        bits(libc::SYS_ioctl, 1, INT, ioctl::GET_FLAGS as u64),
        bits(libc::SYS_ioctl, 1, INT, ioctl::SET_FLAGS as u64),
        bits(libc::SYS_ioctl, 1, INT, ioctl::GET_VERSION as u64),
        bits(libc::SYS_ioctl, 1, INT, ioctl::GET_XFLAGS as u64),
        bits(libc::SYS_ioctl, 1, INT, ioctl::SET_XFLAGS as u64),
        bits(libc::SYS_ioctl, 1, INT, ioctl::MEASURE_VERITY as u64),
    ];

    /// Calls with which a process sends itself a signal; the first argument is
    /// its number.
    const TO_ITSELF: &[c_long] = &[libc::SYS_tgkill, libc::SYS_kill];

    /// Puts all threads of the process under the filter.
    pub fn install(action: Action) -> anyhow::Result<()> {
        let programs = programs(action).context("cannot build the seccomp filter")?;
        for program in &programs {
            apply_filter_all_threads(program).context(
                "cannot install the seccomp filter; a kernel without seccomp, or a container \
                 that forbids it, needs --seccomp=none",
            )?;
        }
        Ok(())
    }

    fn programs(action: Action) -> Result<Vec<BpfProgram>, seccompiler::BackendError> {
        let mut rules: BTreeMap<c_long, Vec<SeccompRule>> = ALLOWED
            .iter()
            .chain(OF_THIS_MACHINE)
            .map(|&call| (call, Vec::new()))
            .collect();
        let itself = u64::from(std::process::id());
        let to_itself = TO_ITSELF.iter().map(|&call| bits(call, 0, INT, itself));
        for line in CHECKED.iter().map(Checked::copy).chain(to_itself) {
            rules.entry(line.call).or_default().push(line.rule()?);
        }
        // The flags of clone3 are out of a filter's sight. That it is not
        // there is what the C library has an answer for: it takes clone.
        rules.insert(libc::SYS_clone3, Vec::new());
        let not_there = [(libc::SYS_clone3, Vec::new())].into();
        let errno = SeccompAction::Errno(libc::ENOSYS as u32);

        let lists = program(rules, action.into(), SeccompAction::Allow)?;
        if action == Action::Log {
            return Ok(vec![lists]);
        }
        // This one is first: the other one allows no further filter.
        Ok(vec![
            program(not_there, SeccompAction::Allow, errno)?,
            lists,
        ])
    }

    fn program(
        rules: BTreeMap<c_long, Vec<SeccompRule>>,
        otherwise: SeccompAction,
        listed: SeccompAction,
    ) -> Result<BpfProgram, seccompiler::BackendError> {
        let machine = TargetArch::try_from(std::env::consts::ARCH)?;
        SeccompFilter::new(rules, otherwise, listed, machine)?.try_into()
    }

    impl Checked {
        const fn copy(&self) -> Self {
            bits(self.call, self.argument, self.mask, self.value)
        }

        fn rule(&self) -> Result<SeccompRule, seccompiler::BackendError> {
            SeccompRule::new(vec![SeccompCondition::new(
                self.argument,
                SeccompCmpArgLen::Qword,
                SeccompCmpOp::MaskedEq(self.mask),
                self.value,
            )?])
        }
    }

    impl From<Action> for SeccompAction {
        fn from(action: Action) -> Self {
            match action {
                Action::Kill => Self::KillProcess,
                Action::Trap => Self::Trap,
                Action::Log => Self::Log,
            }
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn no_call_is_both_checked_and_allowed_unchecked() {
            // Its check would be for nothing, or it would never be allowed.
            let unchecked: Vec<_> = ALLOWED.iter().chain(OF_THIS_MACHINE).collect();
            for line in CHECKED {
                assert!(!unchecked.contains(&&line.call), "call {}", line.call);
            }
            for call in TO_ITSELF {
                assert!(!unchecked.contains(&call), "call {call}");
            }
        }

        #[test]
        fn every_action_makes_programs_that_the_kernel_takes_in_length() {
            for action in [Action::Kill, Action::Trap, Action::Log] {
                for program in programs(action).unwrap() {
                    assert!((1..4096).contains(&program.len()), "{}", program.len());
                }
            }
        }
    }
}

/// Puts every thread of the process, now and later, under the filter, and
/// keeps it from ever gaining privileges by starting a program.
///
/// # Errors
/// When there is no filter for this machine, or the kernel takes none.
pub fn install(action: Action) -> anyhow::Result<()> {
    filter::install(action)
}
