// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A command of ours whose vCPUs are recorded from their first instruction on.
//!
//! The command runs under ptrace(2), but nothing of it stops except where a vCPU is made: a filter of seccomp(2)
//! reports KVM_CREATE_VCPU, and the new descriptor is copied before the command learns of it. So the rest of the
//! command runs at its own speed.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::ptr;

use crate::processes::copy;

/// KVM_CREATE_VCPU.
const CREATE_VCPU: u32 = 0xae41;
/// AUDIT_ARCH_X86_64 or AUDIT_ARCH_AARCH64.
const ARCH: u32 = if cfg!(target_arch = "aarch64") {
    0xc000_00b7
} else {
    0xc000_003e
};
/// PTRACE_GET_SYSCALL_INFO, and `op` of its answer.
const GET_SYSCALL_INFO: libc::c_uint = 0x420e;
const SYSCALL_EXIT: u8 = 2;

/// What the command has come to.
pub enum Event {
    /// A vCPU is there: its process, and a copy of its descriptor.
    Vcpu(u32, io::Result<File>),
    /// The command has ended with this status, as a shell would say it.
    Ended(u8),
}

/// A command under observation.
pub struct Traced {
    child: libc::pid_t,
    /// Threads that have been seen.
    known: HashSet<libc::pid_t>,
    /// The one that has made the vCPU that was told last, and does not know it yet.
    held: Option<libc::pid_t>,
}

impl Traced {
    /// Starts `command`.
    ///
    /// # Errors
    ///
    /// Those of starting it, of ptrace(2) and of seccomp(2).
    pub fn spawn(command: &[OsString]) -> io::Result<Self> {
        let (program, rest) = command.split_first().ok_or(io::ErrorKind::InvalidInput)?;
        let filter = filter();
        let mut command = Command::new(program);
        // SAFETY: what runs between fork and exec are system calls, on memory that has been allocated before.
        unsafe { command.args(rest).pre_exec(move || be_traced(&filter)) };
        let child = command.spawn()?.id() as libc::pid_t;
        let traced = Self {
            child,
            known: HashSet::from([child]),
            held: None,
        };
        // It stops when it has become the program.
        let mut status = 0;
        // SAFETY: the status is a local word.
        if unsafe { libc::waitpid(child, &mut status, 0) } != child || !libc::WIFSTOPPED(status) {
            return Err(io::Error::other("it ended before it began"));
        }
        let options = libc::PTRACE_O_EXITKILL
            | libc::PTRACE_O_TRACECLONE
            | libc::PTRACE_O_TRACEFORK
            | libc::PTRACE_O_TRACEVFORK
            | libc::PTRACE_O_TRACEEXEC
            | libc::PTRACE_O_TRACESECCOMP
            | libc::PTRACE_O_TRACESYSGOOD;
        request(libc::PTRACE_SETOPTIONS, child, options as usize)?;
        request(libc::PTRACE_CONT, child, 0)?;
        Ok(traced)
    }

    /// What has happened, if anything has. Who made the vCPU that was told last goes on now. The thread that started
    /// the command calls.
    pub fn next(&mut self) -> Option<Event> {
        if let Some(pid) = self.held.take() {
            let _ = request(libc::PTRACE_CONT, pid, 0);
        }
        loop {
            let mut status = 0;
            // SAFETY: the status is a local word.
            let pid = unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG | libc::__WALL) };
            if pid <= 0 {
                return None;
            }
            if libc::WIFSTOPPED(status) {
                if let Some(event) = self.stopped(pid, status) {
                    return Some(event);
                }
            } else {
                self.known.remove(&pid);
                if pid == self.child {
                    return Some(Event::Ended(match libc::WIFEXITED(status) {
                        true => libc::WEXITSTATUS(status) as u8,
                        false => 128 + libc::WTERMSIG(status) as u8,
                    }));
                }
            }
        }
    }

    /// Lets a thread go on that has stopped.
    fn stopped(&mut self, pid: libc::pid_t, status: i32) -> Option<Event> {
        let (signal, event) = (libc::WSTOPSIG(status), status >> 16);
        let new = self.known.insert(pid);
        let (how, deliver) = match (signal, event) {
            // It goes on to the end of the system call.
            (libc::SIGTRAP, libc::PTRACE_EVENT_SECCOMP) => (libc::PTRACE_SYSCALL, 0),
            (libc::SIGTRAP, 1..) => (libc::PTRACE_CONT, 0),
            (s, _) if s == libc::SIGTRAP | 0x80 => {
                if let Some(event) = self.made(pid) {
                    self.held = Some(pid);
                    return Some(event);
                }
                (libc::PTRACE_CONT, 0)
            }
            // A thread begins by this.
            (libc::SIGSTOP, _) if new => (libc::PTRACE_CONT, 0),
            (other, _) => (libc::PTRACE_CONT, other),
        };
        // It may have been killed.
        let _ = request(how, pid, deliver as usize);
        None
    }

    /// The vCPU that the system call of `pid` has made, which ends now.
    fn made(&self, pid: libc::pid_t) -> Option<Event> {
        let mut info = [0u64; 11];
        // SAFETY: the kernel writes no more than the size that it is given.
        let got = unsafe {
            libc::ptrace(
                GET_SYSCALL_INFO as _,
                pid,
                size_of_val(&info),
                info.as_mut_ptr(),
            )
        };
        // `struct ptrace_syscall_info`: the operation first, the result after three words.
        let fd = info[3] as i64;
        if got < 32 || info[0] as u8 != SYSCALL_EXIT || fd < 0 {
            return None;
        }
        let process = process_of(pid)?;
        Some(Event::Vcpu(process, copy(process, fd as i32)))
    }
}

/// The process of a thread.
fn process_of(thread: libc::pid_t) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{thread}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("Tgid:"))?;
    line.trim().parse().ok()
}

fn request(request: libc::c_uint, pid: libc::pid_t, data: usize) -> io::Result<()> {
    // SAFETY: these requests take numbers.
    match unsafe { libc::ptrace(request as _, pid, ptr::null_mut::<u8>(), data) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Reports `ioctl(fd, KVM_CREATE_VCPU, ...)` to the tracer, and lets everything else be.
fn filter() -> [libc::sock_filter; 8] {
    let load = |at| (0x20, 0, 0, at);
    let equal = |value, otherwise| (0x15, 0, otherwise, value);
    [
        // `struct seccomp_data`: the number, the architecture, the arguments after two words.
        load(4),
        equal(ARCH, 5),
        load(0),
        equal(libc::SYS_ioctl as u32, 3),
        load(24),
        equal(CREATE_VCPU, 1),
        (0x06, 0, 0, libc::SECCOMP_RET_TRACE),
        (0x06, 0, 0, libc::SECCOMP_RET_ALLOW),
    ]
    .map(|(code, jt, jf, k)| libc::sock_filter { code, jt, jf, k })
}

/// In the child: no signal is held back, and this process traces it.
fn be_traced(filter: &[libc::sock_filter; 8]) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: filter.len() as u16,
        filter: filter.as_ptr().cast_mut(),
    };
    let set = || {
        // SAFETY: the program and its instructions are there for the length of the call.
        unsafe {
            libc::syscall(
                libc::SYS_seccomp,
                libc::SECCOMP_SET_MODE_FILTER,
                0,
                &program,
            )
        }
    };
    // SAFETY: system calls on local memory.
    unsafe {
        let mut none = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, ptr::null_mut());
        if libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) == -1 {
            return Err(io::Error::last_os_error());
        }
    }
    if set() == 0 {
        return Ok(());
    }
    // Without privileges it takes the promise never to get more: programs that are setuid are not, below this.
    // SAFETY: the call takes numbers.
    if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } == 0 && set() == 0 {
        return Ok(());
    }
    Err(io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_runs_and_ends() {
        let command = ["sh", "-c", "sh -c 'exit 7' & wait $!"].map(OsString::from);
        let mut traced = match Traced::spawn(&command) {
            Ok(traced) => traced,
            // A container may forbid it.
            Err(error) => return assert!(error.raw_os_error().is_some(), "{error}"),
        };
        let ended = loop {
            match traced.next() {
                Some(Event::Ended(status)) => break status,
                Some(Event::Vcpu(..)) => panic!("there is no vCPU"),
                None => std::thread::sleep(std::time::Duration::from_millis(1)),
            }
        };
        assert_eq!(ended, 7);
    }
}
