// SPDX-License-Identifier: Apache-2.0 OR MIT
//! System calls by kind of thread (seccomp).

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io::{self, Write};

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use super::Kind;
use crate::sys;

/// What every thread needs: memory, locks, signals, its end; and what it does with files that are open.
const DEVICE: &[libc::c_long] = &[
    libc::SYS_brk,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_close,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_wait,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_fallocate,
    libc::SYS_fcntl,
    libc::SYS_fdatasync,
    libc::SYS_fstat,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_lseek,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_nanosleep,
    libc::SYS_newfstatat,
    libc::SYS_poll,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_sigaltstack,
    libc::SYS_statx,
    libc::SYS_tgkill,
    libc::SYS_write,
    libc::SYS_writev,
];

/// What a CPU's thread needs beside: to make threads, which limit themselves further, and events; to speak with a
/// program that serves a device.
const CPU: &[libc::c_long] = &[
    libc::SYS_clone3,
    libc::SYS_dup,
    libc::SYS_epoll_create1,
    libc::SYS_eventfd2,
    libc::SYS_recvmsg,
    libc::SYS_seccomp,
    libc::SYS_sendmsg,
];

/// What a thread needs beside that takes commands and saves machines.
const COMMANDS: &[libc::c_long] = &[
    libc::SYS_accept4,
    libc::SYS_getcwd,
    libc::SYS_kill,
    libc::SYS_openat,
    libc::SYS_readlink,
    libc::SYS_recvfrom,
    libc::SYS_rename,
    libc::SYS_sendto,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    libc::SYS_unlink,
];

/// What the thread needs beside that makes machines.
const MAIN: &[libc::c_long] = &[
    libc::SYS_bind,
    libc::SYS_connect,
    libc::SYS_flock,
    libc::SYS_getppid,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_geteuid,
    libc::SYS_getuid,
    libc::SYS_landlock_add_rule,
    libc::SYS_landlock_create_ruleset,
    libc::SYS_landlock_restrict_self,
    libc::SYS_listen,
    libc::SYS_memfd_create,
    libc::SYS_ppoll,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_sched_setaffinity,
    libc::SYS_socket,
    libc::SYS_symlink,
    libc::SYS_umask,
];

impl Kind {
    /// The numbers of the system calls that a thread of this kind makes, whatever their arguments.
    pub fn listed(self) -> Vec<libc::c_long> {
        let some = [
            libc::SYS_ioctl,
            libc::SYS_mmap,
            libc::SYS_mprotect,
            libc::SYS_openat,
            libc::SYS_prctl,
        ];
        [self.calls(), some.to_vec()].concat()
    }

    fn calls(self) -> Vec<libc::c_long> {
        let lists: &[&[libc::c_long]] = match self {
            Self::Device => &[DEVICE],
            Self::Cpu => &[DEVICE, CPU],
            Self::Commands => &[DEVICE, CPU, COMMANDS],
            Self::Main => &[DEVICE, CPU, COMMANDS, MAIN],
        };
        lists.concat()
    }

    /// The types of ioctls: of KVM and rvmm; those of tap interfaces and terminals for who makes machines.
    fn ioctls(self) -> &'static [u64] {
        match self {
            Self::Main => &[0xae, 0xaf, 0xbb, 0x54],
            Self::Device => &[],
            Self::Cpu | Self::Commands => &[0xae, 0xaf, 0xbb],
        }
    }

    fn filter(self) -> Result<BpfProgram, seccompiler::BackendError> {
        let all = |call| (call, Vec::new());
        let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
            self.calls().into_iter().map(all).collect();
        let one = |argument, is, value| {
            let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Dword, is, value);
            SeccompRule::new(vec![condition?])
        };
        let kinds = self.ioctls().iter();
        let kinds = kinds.map(|kind| one(1, SeccompCmpOp::MaskedEq(0xff00), kind << 8));
        let kinds: Vec<_> = kinds.collect::<Result<_, _>>()?;
        // The terminal's settings come back, whoever ends the process; and devices tell what they write to.
        let exact = [libc::TCSETS, sys::RVMM_TOUCH()];
        let exact = exact.map(|call| one(1, SeccompCmpOp::Eq, call));
        let kinds = kinds
            .into_iter()
            .chain(exact.into_iter().collect::<Result<Vec<_>, _>>()?);
        rules.insert(libc::SYS_ioctl, kinds.collect());
        // Memory is not to be executed.
        let exec = libc::PROT_EXEC as u64;
        for call in [libc::SYS_mmap, libc::SYS_mprotect] {
            rules.insert(call, vec![one(2, SeccompCmpOp::MaskedEq(exec), 0)?]);
        }
        // A thread's name, and its own limits.
        let options = [
            libc::PR_SET_NAME,
            libc::PR_SET_NO_NEW_PRIVS,
            libc::PR_SET_SECCOMP,
        ];
        let options = options.into_iter();
        let options = options.map(|option| one(0, SeccompCmpOp::Eq, option as u64));
        rules.insert(libc::SYS_prctl, options.collect::<Result<_, _>>()?);
        if !self.opens_files() {
            rules.insert(libc::SYS_openat, Vec::new());
        }
        let (other, listed) = (SeccompAction::Trap, SeccompAction::Allow);
        SeccompFilter::new(rules, other, listed, TargetArch::x86_64)?.try_into()
    }

    /// The C library looks at files by itself, such as for the number of CPUs, and does without: that fails where
    /// files are not opened.
    fn no_files() -> Result<BpfProgram, seccompiler::BackendError> {
        let rules = [(libc::SYS_openat, Vec::new())];
        let (other, listed) = (
            SeccompAction::Allow,
            SeccompAction::Errno(libc::EACCES as u32),
        );
        SeccompFilter::new(rules.into(), other, listed, TargetArch::x86_64)?.try_into()
    }
}

thread_local! {
    /// Whose thread it is, for the handler.
    static WHOSE: Cell<&'static str> = const { Cell::new("a thread") };
}

pub(super) fn try_enter(kind: Kind) -> Result<(), seccompiler::Error> {
    WHOSE.set(kind.name());
    let filter = kind.filter().map_err(seccompiler::Error::Backend)?;
    if !kind.opens_files() {
        let no_files = Kind::no_files().map_err(seccompiler::Error::Backend)?;
        seccompiler::apply_filter(&no_files)?;
    }
    seccompiler::apply_filter(&filter)
}

/// Has a call beside the list end the process.
pub(super) fn install_handler() -> io::Result<()> {
    vmm_sys_util::signal::register_signal_handler(libc::SIGSYS, on_refused)
        .map_err(|error| io::Error::from_raw_os_error(error.errno()))
}

extern "C" fn on_refused(_: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let context = context.cast::<libc::ucontext_t>();
    // SAFETY: the kernel gives a signal's handler a context; RAX is the number of the call (seccomp(2),
    // SECCOMP_RET_TRAP).
    let number = unsafe { (*context).uc_mcontext.gregs[libc::REG_RAX as usize] };
    let whose = WHOSE.try_with(Cell::get).unwrap_or("a thread");
    // Nothing may be allocated here.
    let mut text = [0; 160];
    let mut rest = &mut text[..];
    let _ = writeln!(
        rest,
        "\rrvmm: {whose} wants system call {number}, which is none of its: the launcher ends"
    );
    let length = 160 - rest.len();
    // SAFETY: the bytes live; neither call needs what another thread may hold.
    unsafe {
        libc::write(libc::STDERR_FILENO, text.as_ptr().cast(), length);
        crate::console::restore_from_handler();
        libc::_exit(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KINDS: [Kind; 4] = Kind::ALL;

    /// A program of its own: the variable says which kind of thread tries what.
    #[test]
    fn one_thread() {
        let Some(order) = std::env::var_os("RVMM_SANDBOX_TEST") else {
            return;
        };
        let order = order.into_string().unwrap();
        let (kind, call) = order.split_once(' ').unwrap();
        let kind = KINDS[kind.parse::<usize>().unwrap()];
        let call: i32 = call.parse().unwrap();
        install_handler().unwrap();
        let limited = move || {
            try_enter(kind).unwrap();
            // SAFETY: calls with numbers, which are refused or change nothing.
            unsafe {
                match call {
                    0 => libc::syscall(libc::SYS_ptrace, libc::PTRACE_TRACEME, 0, 0, 0),
                    1 => libc::ioctl(0, 0x1234_5678).into(),
                    2 => libc::mprotect(std::ptr::null_mut(), 0, libc::PROT_EXEC).into(),
                    3 => libc::syscall(libc::SYS_execve, 0, 0, 0),
                    _ => 0,
                }
            };
            let opened = std::fs::File::open("/dev/null");
            assert_eq!(opened.is_ok(), kind.opens_files());
        };
        std::thread::spawn(limited).join().unwrap();
    }

    #[test]
    fn a_call_beside_the_list_ends_the_process() {
        let calls = [libc::SYS_ptrace, libc::SYS_ioctl, libc::SYS_mprotect];
        let calls = calls.into_iter().chain([libc::SYS_execve]);
        for (number, call) in (0..).zip(calls.map(Some).chain([None])) {
            for (index, kind) in KINDS.into_iter().enumerate() {
                let mut program = std::process::Command::new(std::env::current_exe().unwrap());
                program.args([
                    "--exact",
                    "sandbox::calls::tests::one_thread",
                    "--nocapture",
                ]);
                program.env("RVMM_SANDBOX_TEST", format!("{index} {number}"));
                let done = program.output().unwrap();
                let said = String::from_utf8_lossy(&done.stderr);
                match call {
                    Some(call) => {
                        let wanted = format!("{} wants system call {call},", kind.name());
                        assert!(said.contains(&wanted), "{kind:?}: {said}");
                        assert_eq!(done.status.code(), Some(1));
                    }
                    None => assert!(done.status.success(), "{kind:?}: {said}"),
                }
            }
        }
    }
}
