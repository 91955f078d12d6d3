// SPDX-License-Identifier: GPL-2.0
//! What the VMX instructions cost on this CPU (RVMM_MEASURE_ROOT): each in rounds of its own, in a stay.
//!
//! The vCPU's nested page table is empty and the guest has been stopped by it: no entry gets as far as an instruction,
//! so that general registers keep the host's values across one.

use super::active::Cpu;
use super::entry::deliver_nmi;
use super::insn::{self, Current, InveptType, InvvpidType};
use super::vcpu::VmxVcpu;
use super::vmcs::*;
use super::{bits::reason, decode};
use crate::linux::cost::{time, Samples};
use crate::linux::irqflags::ThisCpu;
use core::arch::asm;

/// What a row's function is given.
struct Stage<'a> {
    vcpu: &'a mut VmxVcpu,
    vm: Current<'a>,
    /// This CPU's VMXON region.
    region: u64,
}

/// An instruction, and how it is timed.
type Row = (&'static str, fn(&mut Stage<'_>, &mut Samples<'_>));

const ROWS: &[Row] = &[
    ("VMXON", |g, s| g.root(s, |_, on| on)),
    ("VMXOFF", |g, s| g.root(s, |off, _| off)),
    ("VMPTRST", |_, s| {
        s.take(|| {
            let _ = insn::vmptrst();
        });
    }),
    ("VMPTRLD", |g, s| g.region(s, |_, load| load)),
    ("VMCLEAR", |g, s| g.region(s, |clear, _| clear)),
    ("VMREAD", |g, s| {
        s.take(|| {
            g.vm.read(GUEST_RIP);
        });
    }),
    ("VMWRITE", |g, s| {
        let rip = g.vm.read(GUEST_RIP);
        s.take(|| g.vm.write(GUEST_RIP, rip));
    }),
    ("VMLAUNCH and exit", |g, s| {
        s.rounds(|| {
            g.reload();
            g.round_trip()
        });
    }),
    ("VMRESUME and exit", |g, s| {
        // The first one launches, if another row has cleared the VMCS.
        if g.round_trip().is_some() {
            s.rounds(|| g.round_trip());
        }
    }),
    ("INVEPT", |g, s| {
        let eptp = g.vm.read(EPT_POINTER);
        if g.vcpu.config().invept_single() {
            s.take(|| {
                // SAFETY: A VMCS is current.
                let _ = unsafe { insn::invept(InveptType::SingleContext, eptp) };
            });
        }
    }),
    ("INVVPID", |g, s| {
        let config = g.vcpu.config();
        if config.vpid() && config.invvpid_single() {
            let vpid = g.vm.read(VPID);
            s.take(|| {
                // SAFETY: A VMCS is current.
                let _ = unsafe { insn::invvpid(InvvpidType::SingleContext, vpid) };
            });
        }
    }),
];

impl VmxVcpu {
    /// As [`Backend::measure`](crate::x86::vendor::choose::Backend::measure).
    pub(crate) fn measure(
        &mut self,
        n: usize,
        this_cpu: ThisCpu<'_>,
        samples: &mut Samples<'_>,
    ) -> Option<&'static str> {
        let (name, row) = ROWS.get(n)?;
        let cpu = self.shared.cpus.of(this_cpu.number());
        if let (Some(vm), Some(region)) = (self.current(), cpu.map(Cpu::vmxon_region)) {
            let vcpu = self;
            row(&mut Stage { vcpu, vm, region }, samples);
        }
        Some(name)
    }
}

impl Stage<'_> {
    /// VMXOFF and VMXON, where root operation is ours, of which `which` gives one.
    fn root(&mut self, samples: &mut Samples<'_>, which: fn(u64, u64) -> u64) {
        if !self.vcpu.region.is_private() {
            return;
        }
        samples.rounds(|| {
            self.clear()?;
            let mut done = Ok(());
            // SAFETY: VMX operation is a VMXON's of ours; the only VMCS of ours has been cleared.
            let off = time(|| done = unsafe { insn::vmxoff() });
            done.ok()?;
            // SAFETY: The region is this CPU's, and was in use for the same until now. Interrupts are off until the end
            // of the stay, which leaves VMX operation.
            let on = time(|| done = unsafe { insn::vmxon(self.region) });
            done.ok()?;
            self.load()?;
            Some(which(off, on))
        });
    }

    /// VMCLEAR and VMPTRLD, of which `which` gives one.
    fn region(&mut self, samples: &mut Samples<'_>, which: fn(u64, u64) -> u64) {
        samples.rounds(|| {
            // What the VMCS held in the processor has to be written back.
            self.round_trip()?;
            let mut done = None;
            let clear = time(|| done = self.clear());
            done?;
            let load = time(|| done = self.load());
            done.map(|()| which(clear, load))
        });
    }

    /// VMCLEAR and VMPTRLD: the next entry has to launch.
    fn reload(&mut self) -> Option<()> {
        self.clear()?;
        self.load()
    }

    #[inline(always)]
    fn clear(&mut self) -> Option<()> {
        self.vcpu.launched = false;
        // SAFETY: The VMCS is ours and active here only.
        unsafe { insn::vmclear(self.vcpu.region.phys()) }.ok()
    }

    #[inline(always)]
    fn load(&mut self) -> Option<()> {
        // SAFETY: The VMCS has been set up, and is active nowhere: it was cleared just now.
        unsafe { insn::vmptrld(self.vcpu.region.phys()) }.ok()
    }

    /// An entry and the exit that stops the guest before its first instruction: the ticks, by the two instructions
    /// alone. `None` when something else made it exit, or the entry failed.
    #[inline(never)]
    fn round_trip(&mut self) -> Option<u64> {
        let vm = self.vm;
        // The vCPU remembers what it has written.
        let (rsp, rip) = (vm.read(HOST_RSP), vm.read(HOST_RIP));
        let (start, end): (u64, u64);
        // SAFETY: The stay has set the host's state up but for RSP and RIP, which the block does; `launched` follows
        // the launch state. The guest executes nothing, so that an exit finds every register that it does not load as
        // the entry left it: those that the block changes are declared. RFLAGS have DF clear (SDM 3C 28.5.3). VMfail
        // leaves CF or ZF set, so that the JBE is always taken when reached from the two; label 4 is HOST_RIP.
        unsafe {
            asm!(
                "mov eax, {host_rsp}",
                "vmwrite rax, rsp",
                "mov eax, {host_rip}",
                "lea rdx, [rip + 4f]",
                "vmwrite rax, rdx",
                "lfence",
                "rdtsc",
                "shl rdx, 32",
                "or rdx, rax",
                "mov {start}, rdx",
                "test {launched:e}, {launched:e}",
                "jnz 2f",
                "vmlaunch",
                "jmp 3f",
                "2: vmresume",
                "3: jbe 5f",
                "4: endbr64",
                "lfence",
                "rdtsc",
                "shl rdx, 32",
                "or rdx, rax",
                "jmp 6f",
                "5: xor edx, edx",
                "6:",
                host_rsp = const HOST_RSP.encoding(),
                host_rip = const HOST_RIP.encoding(),
                launched = in(reg) u32::from(self.vcpu.launched),
                start = out(reg) start,
                out("rax") _,
                out("rdx") end,
            );
        }
        // SAFETY: What was there before, which fits the code of the vCPU's own entries.
        unsafe {
            vm.write_host(HOST_RSP, rsp);
            vm.write_host(HOST_RIP, rip);
        }
        if end == 0 {
            return None;
        }
        self.vcpu.launched = true;
        match vm.read(EXIT_REASON) {
            reason::EPT_VIOLATION => Some(end.wrapping_sub(start)),
            reason::EXCEPTION_OR_NMI => {
                if matches!(decode::exception(vm), decode::Exceptional::Nmi) {
                    // SAFETY: This was an NMI exit; `probe` refused FRED.
                    unsafe { deliver_nmi(vm) };
                }
                None
            }
            // An interrupt waits: for the end of the stay.
            _ => None,
        }
    }
}
