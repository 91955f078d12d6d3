# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Programs run inside the build root. Used by setup, which makes it, and by bed, guest and imports.

Mounts are made by buildroot.sh in a private mount namespace: when the command ends, they are gone, however it ended.
"""

import os
import re
import subprocess

from .paths import BUILD, LIB, LOGS, REPO, ROOT
from .report import Failure

# Passed through into the build root; everything else of the caller's environment stays outside.
ENV_THROUGH = re.compile(
    r"^(TERM|LANG|LC_.*|.*_proxy|.*_PROXY|V|MAKEFLAGS|MFLAGS|CARGO_NET_.*|CARGO_HTTP_.*|CARGO_REGISTRIES_.*|"
    r"CARGO_INCREMENTAL|CARGO_PROFILE_.*|CARGO_TERM_.*|RUST_BACKTRACE|RUSTFLAGS|KBUILD_.*|PROPTEST_.*|RVMM_.*)$"
)


def require_root():
    """Fails unless the caller is root."""
    if os.geteuid() != 0:
        raise Failure(
            "this needs root: it unpacks a Debian tree and uses chroot",
            "run it with sudo (nothing outside build/ is changed, apart from installing mmdebstrap by apt-get)",
        )


def require_namespaces():
    """Fails unless this machine lets us have a mount namespace."""
    probe = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "true"], capture_output=True, text=True
    )
    if probe.returncode:
        raise Failure(
            f"a private mount namespace was refused: {probe.stderr.strip()}",
            "in a container, start it with --privileged (or --cap-add SYS_ADMIN --security-opt seccomp=unconfined)",
        )


def root_argv(argv, cwd=None, env=None):
    """The argument vector that runs argv inside the build root.

    Runs as one process from start to end (unshare, sh and chroot exec each other), so that the caller's
    signals reach the command itself.
    """
    environment = {k: v for k, v in os.environ.items() if ENV_THROUGH.match(k)}
    environment.update(
        PATH="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        HOME="/root",
        CARGO_HOME=str(BUILD / "cargo"),
        CARGO_TARGET_DIR=str(BUILD / "target"),
        SSL_CERT_FILE="/etc/ssl/certs/ca-certificates.crt",
        CARGO_HTTP_CAINFO="/etc/ssl/certs/ca-certificates.crt",
    )
    environment.setdefault("LANG", "C.UTF-8")
    environment.update(env or {})
    pairs = [f"{k}={v}" for k, v in environment.items()]
    enter = ["unshare", "--mount", "--propagation", "private", "--", "/bin/sh", LIB / "buildroot.sh"]
    return [str(word) for word in [*enter, ROOT, REPO, cwd or REPO, *pairs, *argv]]


def logged(argv, log, shown=None, **kw):
    """Run argv, output into build/log/<log> below the command (or what is shown for it); return the exit status."""
    LOGS.mkdir(parents=True, exist_ok=True)
    with open(LOGS / log, "ab") as out:
        out.write(("\n$ " + " ".join(map(str, shown or argv)) + "\n").encode())
        out.flush()
        return subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, **kw).returncode


def in_root(argv, log, env=None, cwd="/"):
    """Run argv in the build root, output into build/log/<log>; return the exit status."""
    return logged(root_argv(argv, cwd=cwd, env=env), log, shown=["(in the build root)", *argv])


def root_output(argv):
    """(exit status, output) of argv in the build root."""
    done = subprocess.run(root_argv(argv, cwd="/"), stdin=subprocess.DEVNULL, capture_output=True, text=True)
    return done.returncode, done.stdout
