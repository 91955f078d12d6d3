# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Which lines of a kernel's log fail a run, and samples of both kinds for `tools/bed --self-test`. Used by bed."""

import re

# Lines of the host kernel's log that fail a run. WARN and BUG both print the "cut here" line first.
COMPLAINT = re.compile(
    rb"-\[ cut here \]-|BUG: |Oops: |Kernel panic|general protection fault|double fault:|"
    rb"soft lockup|hard LOCKUP|rcu:? ?(?:INFO: )?rcu_\w+ (?:self-)?detected|detected stalls|"
    rb"INFO: task .* blocked for more than|list_(?:add|del) corruption|refcount_t: |UBSAN: |"
    rb"unchecked MSR access error|Slab cache still has objects|rvmm: .*leak|Unable to unload|"
    rb"\btraps: PANIC|scheduling while atomic|sleeping function called|Objects remaining in"
)
# After the first such line the rest of the report is awaited: until this, or a few seconds.
COMPLAINT_END = re.compile(rb"end Kernel panic|Rebooting in|end trace")

# Lines of real kernels, for --self-test: what has to be noticed, and what must not be.
COMPLAINTS = """
[    9.1] ------------[ cut here ]------------
[    9.1] watchdog: BUG: soft lockup - CPU#0 stuck for 26s! [rvmm:71]
[    9.1] rcu: INFO: rcu_preempt self-detected stall on CPU
[    9.1] rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:
[    9.1] rcu: INFO: rcu_preempt detected expedited stalls on CPUs/tasks: { 0-.... }
[    9.1] INFO: task rvmm:71 blocked for more than 120 seconds.
[    9.1] BUG: Bad page state in process rvmm  pfn:12345
[    9.1] BUG: kernel NULL pointer dereference, address: 0000000000000008
[    9.1] BUG: scheduling while atomic: rvmm/71/0x00000002
[    9.1] BUG: sleeping function called from invalid context at mm/gup.c:1
[    9.1] Oops: general protection fault, probably for non-canonical address 0xdead: 0000 [#1] SMP
[    9.1] Kernel panic - not syncing: Fatal exception
[    9.1] unchecked MSR access error: WRMSR to 0x48 (tried to write 0x1)
[    9.1] list_del corruption. prev->next should be ffff, but was dead
[    9.1] BUG rvmm_vcpu (Tainted: G           OE     ): Objects remaining in rvmm_vcpu on __kmem_cache_shutdown()
[    9.1] rvmm: 3 pages leaked
[    9.1] NMI watchdog: Watchdog detected hard LOCKUP on cpu 0
[    9.1] UBSAN: array-index-out-of-bounds in mm/gup.c:1
[    9.1] bed: Unable to unload rvmm: rmmod: can't unload module 'rvmm': Resource temporarily unavailable
"""
HARMLESS = """
[    0.0] Spectre V2 : WARNING: Unprivileged eBPF is enabled with eIBRS on, data leaks possible via Spectre v2 attacks!
[    0.0] Kernel command line: console=ttyS1 panic_on_warn=1 oops=panic
[    0.0] rcu: Preemptible hierarchical RCU implementation.
[    0.0] x86/mm: Checked W+X mappings: passed, no W+X pages found.
[    3.0] rvmm: loading out-of-tree module taints kernel.
[    3.0] rvmm: module verification failed: signature and/or required key missing - tainting kernel
[    3.0] rvmm: ready on svm, nested pages of 4 KiB, 2 MiB and 1 GiB
"""


def self_test():
    """The pattern against the sample lines; no machine is needed."""
    wrong = [f"not noticed: {l}" for l in COMPLAINTS.strip().splitlines() if not COMPLAINT.search(l.encode())]
    wrong += [f"wrongly noticed: {l}" for l in HARMLESS.strip().splitlines() if COMPLAINT.search(l.encode())]
    for line in wrong:
        print(line)
    return 1 if wrong else 0
