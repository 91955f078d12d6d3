// SPDX-License-Identifier: GPL-2.0
/*
 * Functions for what the kernel offers on x86 only as inline function or macro; see ../shim/shim.c.
 */

#include "../bindings_helper.h"
#include <linux/cpu.h>
#include <asm/apic.h>
#include <asm/gsseg.h>
#include <asm/mce.h>

#define SHIM(type, name, args, expression) type rvmm_##name args { return expression; }
#define SHIM_VOID(name, args, statement) void rvmm_##name args { statement; }
#include <calls.h>

/* --- user memory without faults --------------------------------------------------------------- */

/* As the accesses in ../shim/shim.c. */
/* 0: exchanged, 1: *old differed and now holds what was found, -EFAULT: not accessible. */
#define RVMM_CMPXCHG_USER(bits)							\
int rvmm_cmpxchg_user_u##bits(unsigned long addr, u##bits *old, u##bits new)	\
{										\
	u##bits __user *p = (u##bits __user *)addr;				\
	bool done = false;							\
										\
	if (!access_ok(p, sizeof(*p)))						\
		return -EFAULT;							\
	pagefault_disable();							\
	__uaccess_begin_nospec();						\
	done = unsafe_try_cmpxchg_user(p, old, new, efault);			\
	__uaccess_end();							\
	pagefault_enable();							\
	return done ? 0 : 1;							\
efault:										\
	__uaccess_end();							\
	pagefault_enable();							\
	return -EFAULT;								\
}

RVMM_CMPXCHG_USER(8)
RVMM_CMPXCHG_USER(16)
RVMM_CMPXCHG_USER(32)
RVMM_CMPXCHG_USER(64)

/* --- interrupts ------------------------------------------------------------------------------- */

/*
 * The vector whose handler does nothing but count: hypervisors notify a processor of posted interrupts by it. The
 * kernel has it when KVM is at least a module. 0: there is none.
 */
unsigned int rvmm_posted_vector(void)
{
#if IS_ENABLED(CONFIG_KVM)
	return POSTED_INTR_VECTOR;
#else
	return 0;
#endif
}

void rvmm_send_posted(unsigned int cpu)
{
#if IS_ENABLED(CONFIG_KVM)
	__apic_send_IPI_mask(cpumask_of(cpu), POSTED_INTR_VECTOR);
#endif
}

/* Interrupts are off, and the processor has acknowledged the interrupt. They are on when it returns. */
void rvmm_host_interrupt(u8 vector)
{
	struct desc_ptr idt;

	store_idt(&idt);
	rvmm_call_gate(gate_offset((const gate_desc *)idt.address + vector));
}

/* The registers tell no more than user mode, which is what the kernel asks them for. Interrupts are off. */
void rvmm_machine_check_from_user(void)
{
#ifdef CONFIG_X86_MCE
	struct pt_regs regs = { .cs = __USER_CS, .flags = X86_EFLAGS_IF };

	do_machine_check(&regs);
#endif
}

/* --- CPU state -------------------------------------------------------------------------------- */

unsigned long rvmm_tss_from_gdt(u16 tr)
{
	const struct ldttss_desc *desc;
	struct desc_ptr gdt;

	native_store_gdt(&gdt);
	if ((tr | 7) + 8ul > gdt.size)
		return 0;
	desc = (const struct ldttss_desc *)(gdt.address + (tr & ~7));
	return desc->base0 | desc->base1 << 16 | desc->base2 << 24 | (unsigned long)desc->base3 << 32;
}

/*
 * force_reload_TR(). Where the kernel has no PARAVIRT_XXL, its load_TR_desc() wants load_direct_gdt(), which is
 * exported for KVM alone. LTR writes to the descriptor, and the GDT in use is mapped read-only. Interrupts are off.
 */
static __no_stack_protector void rvmm_reload_tss(void)
{
	struct desc_struct *gdt = get_current_gdt_rw();
	struct desc_ptr in_use, writable = { .size = GDT_SIZE - 1, .address = (unsigned long)gdt };
	tss_desc tss;

	memcpy(&tss, &gdt[GDT_ENTRY_TSS], sizeof(tss));
	tss.type = DESC_TSS;
	native_write_gdt_entry(gdt, GDT_ENTRY_TSS, &tss, DESC_TSS);
	native_store_gdt(&in_use);
	native_load_gdt(&writable);
	asm volatile("ltr %w0" : : "q" (GDT_ENTRY_TSS * 8));
	native_load_gdt(&in_use);
	this_cpu_write(__tss_limit_invalid, false);
}

/* The TSS limit of this CPU no longer covers the I/O bitmap; the kernel reloads TR when it matters. */
__no_stack_protector void rvmm_invalidate_tss_limit(void)
{
	if (unlikely(test_thread_flag(TIF_IO_BITMAP)))
		rvmm_reload_tss();
	else
		this_cpu_write(__tss_limit_invalid, true);
}

/*
 * EAX, EBX, ECX, EDX of a CPUID leaf without the features that the kernel does not use: those that it keeps a
 * word for.
 */
void rvmm_cpuid_mask(u32 leaf, u32 subleaf, u32 r[4])
{
	const u32 *caps = boot_cpu_data.x86_capability;

	if (leaf == 1) {
		r[2] &= caps[CPUID_1_ECX];
		r[3] &= caps[CPUID_1_EDX];
	} else if (leaf == 7 && subleaf == 0) {
		r[1] &= caps[CPUID_7_0_EBX];
		r[2] &= caps[CPUID_7_ECX];
		r[3] &= caps[CPUID_7_EDX];
	} else if (leaf == 7 && subleaf == 1) {
		r[0] &= caps[CPUID_7_1_EAX];
	} else if (leaf == 0xd && subleaf == 1) {
		r[0] &= caps[CPUID_D_1_EAX];
	} else if (leaf == 0x80000001) {
		r[2] &= caps[CPUID_8000_0001_ECX];
		r[3] &= caps[CPUID_8000_0001_EDX];
	} else if (leaf == 0x80000008) {
		r[1] &= caps[CPUID_8000_0008_EBX];
	} else if (leaf == 0x80000021) {
		r[0] &= caps[CPUID_8000_0021_EAX];
	}
}

/*
 * CLOCK_MONOTONIC_RAW with the time that the machine was suspended, CLOCK_REALTIME and TSC, at one moment if
 * possible.
 */
void rvmm_read_clocks(struct rvmm_clocks *c)
{
	struct system_time_snapshot s = {};

	ktime_get_snapshot_id(CLOCK_REALTIME, &s);
	c->base_ns = ktime_to_ns(s.monoraw) + ktime_to_ns(ktime_mono_to_any(0, TK_OFFS_BOOT));
	c->real_ns = ktime_to_ns(s.systime);
	c->tsc_based = s.valid && (s.cs_id == CSID_X86_TSC || s.cs_id == CSID_X86_TSC_EARLY);
	c->tsc = c->tsc_based ? s.cycles : rdtsc_ordered();
}

/* --- extended state ---------------------------------------------------------------------------- */

int rvmm_xrstor64(const void *area, u64 mask)
{
	int err = 0;

	asm volatile("1: xrstor64 (%[area])\n"
		     "2:\n"
		     _ASM_EXTABLE_TYPE_REG(1b, 2b, EX_TYPE_EFAULT_REG, %[err])
		     : [err] "+r" (err)
		     : [area] "r" (area), "a" ((u32)mask), "d" ((u32)(mask >> 32))
		     : "memory");
	return err;
}

int rvmm_fxrstor64(const void *area)
{
	int err = 0;

	asm volatile("1: fxrstor64 (%[area])\n"
		     "2:\n"
		     _ASM_EXTABLE_TYPE_REG(1b, 2b, EX_TYPE_EFAULT_REG, %[err])
		     : [err] "+r" (err)
		     : [area] "r" (area)
		     : "memory");
	return err;
}
