// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `rvmm exec`: runs a program for which /dev/kvm is rvmm's device, and for nobody else.
//!
//! The program gets a mount namespace of its own, where the device lies over /dev/kvm. That takes CAP_SYS_ADMIN, or a
//! user namespace in which the caller is who they are.

use std::ffi::{CStr, CString, OsString};
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{symlink, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::ptr;

use rvmm_vm::DEFAULT_DEVICE;

use crate::status::{report, say, Status};

/// For `--help`.
const STATUSES: &str = "\
Exit status: the program's; 127 if there is none, 126 if it cannot be run, 4 if the device is
missing or refused, 1 if there is no way to a namespace.";

/// Options of `rvmm exec`.
#[derive(clap::Args)]
#[command(after_help = STATUSES)]
pub struct Args {
    /// Hypervisor's device node, which the program sees as /dev/kvm.
    #[arg(long, value_name = "NODE", default_value = DEFAULT_DEVICE)]
    device: PathBuf,
    /// Program and its arguments.
    #[arg(required = true, trailing_var_arg = true, value_name = "CMD")]
    command: Vec<OsString>,
}

const KVM: &str = "/dev/kvm";

/// What went wrong, and what to do about it.
struct Failure {
    what: String,
    remedy: &'static str,
}

/// Runs the command. Returns only if that fails.
pub fn main(args: &Args) -> std::process::ExitCode {
    if let Err(error) = rvmm_vm::vm::open(&args.device) {
        return report(&error).into();
    }
    if let Err(failure) = separate().and_then(|()| cover(&args.device)) {
        say!("rvmm: {}\n      {}", failure.what, failure.remedy);
        return Status::Other.into();
    }
    let Some((program, rest)) = args.command.split_first() else {
        return Status::Other.into();
    };
    // The signal that ends `rvmm ... | head` is the program's affair again.
    let error = Command::new(program).args(rest).exec();
    say!("rvmm: {}: {error}", Path::new(program).display());
    match error.kind() {
        io::ErrorKind::NotFound => 127.into(),
        _ => 126.into(),
    }
}

/// Leaves the caller's mount namespace.
fn separate() -> Result<(), Failure> {
    let failed = |what: &str, error: io::Error| Failure {
        what: format!("{what}: {error}"),
        remedy: "this takes root, or a kernel that lets users make namespaces (sysctl \
                 user.max_user_namespaces, kernel.unprivileged_userns_clone, \
                 kernel.apparmor_restrict_unprivileged_userns); insmod rvmm.ko kvm_node=1 does \
                 without",
    };
    match unshare(libc::CLONE_NEWNS) {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
            // SAFETY: the calls only ask who the process is.
            let (uid, gid) = unsafe { (libc::geteuid(), libc::getegid()) };
            unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNS)
                .map_err(|error| failed("no user namespace", error))?;
            identity(uid, gid).map_err(|error| failed("user namespace", error))?;
        }
        result => result.map_err(|error| failed("no mount namespace", error))?,
    }
    // Nothing that is mounted from here on gets out.
    mount(None, Path::new("/"), None, libc::MS_REC | libc::MS_SLAVE)
        .map_err(|error| failed("mount namespace", error))
}

/// Makes the caller itself in a new user namespace; its other groups keep what they allow.
fn identity(uid: u32, gid: u32) -> io::Result<()> {
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("{uid} {uid} 1"))?;
    fs::write("/proc/self/gid_map", format!("{gid} {gid} 1"))
}

/// Puts the device over /dev/kvm, which has to be made where there is none.
fn cover(device: &Path) -> Result<(), Failure> {
    let device = fs::canonicalize(device).unwrap_or_else(|_| device.into());
    let failed = |error| Failure {
        what: format!("cannot put {} over {KVM}: {error}", device.display()),
        remedy: "something keeps mounts from this process: a container's or a security module's \
                 rules; run it outside of them",
    };
    if !Path::new(KVM).exists() {
        furnish(Path::new("/dev")).map_err(failed)?;
        File::create(KVM).map_err(failed)?;
        // The device's own name still leads to it.
    }
    mount(Some(&device), Path::new(KVM), None, libc::MS_BIND).map_err(failed)
}

/// Gives the namespace a directory in the place of `place`, with everything that is in that one. Unlike it, it can be
/// added to without anyone else's notice.
fn furnish(place: &Path) -> io::Result<()> {
    let old = File::options()
        .read(true)
        .custom_flags(libc::O_DIRECTORY)
        .open(place)?;
    let entries: Vec<_> = fs::read_dir(place)?.collect::<io::Result<_>>()?;
    mount(None, place, Some(c"tmpfs"), libc::MS_NOSUID)?;
    let old = PathBuf::from(format!("/proc/self/fd/{}", old.as_raw_fd()));
    for entry in entries {
        let (from, to) = (old.join(entry.file_name()), place.join(entry.file_name()));
        let kind = entry.file_type()?;
        if kind.is_symlink() {
            symlink(fs::read_link(&from)?, &to)?;
            continue;
        }
        if kind.is_dir() {
            fs::create_dir(&to)?;
        } else {
            File::create(&to)?;
        }
        mount(Some(&from), &to, None, libc::MS_BIND | libc::MS_REC)?;
    }
    Ok(())
}

fn unshare(flags: libc::c_int) -> io::Result<()> {
    // SAFETY: the call takes a number, and this process has one thread.
    done(unsafe { libc::unshare(flags) })
}

fn mount(
    from: Option<&Path>,
    to: &Path,
    kind: Option<&CStr>,
    flags: libc::c_ulong,
) -> io::Result<()> {
    let name = |path: &Path| CString::new(path.as_os_str().as_bytes()).map_err(io::Error::from);
    let from = from.map(name).transpose()?;
    let to = name(to)?;
    // SAFETY: each pointer is null or to a zero-terminated string that outlives the call.
    done(unsafe {
        libc::mount(
            from.as_ref().map_or(ptr::null(), |name| name.as_ptr()),
            to.as_ptr(),
            kind.map_or(ptr::null(), CStr::as_ptr),
            flags,
            ptr::null(),
        )
    })
}

fn done(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
