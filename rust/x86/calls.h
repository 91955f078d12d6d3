/* SPDX-License-Identifier: GPL-2.0 */
/* As ../shim/calls.h, for what is there on x86 only. */

SHIM(int, rdmsr_safe, (u32 msr, u64 *val), rdmsrq_safe(msr, val))
/* Loads the user's GS and with it the hidden base that SWAPGS exchanges. A bad selector becomes null. */
SHIM_VOID(load_gs_index, (u16 sel), load_gs_index(sel))
SHIM(bool, boot_cpu_has, (unsigned int bit),
      bit < (NCAPINTS + NBUGINTS) * 32 && test_bit(bit, (unsigned long *)boot_cpu_data.x86_capability))
SHIM(unsigned int, phys_bits, (void), boot_cpu_data.x86_phys_bits)
SHIM(unsigned int, virt_bits, (void), boot_cpu_data.x86_virt_bits)
SHIM(bool, mitigations_off, (void), cpu_mitigations_off())
/* Something is to be done on this CPU when it returns to user space (linux/user-return-notifier.h). Not preemptible. */
SHIM(bool, user_return_pending, (void),
      IS_ENABLED(CONFIG_USER_RETURN_NOTIFIER) && test_thread_flag(TIF_USER_RETURN_NOTIFY))
SHIM_VOID(ibpb_exit_to_user, (void), this_cpu_write(x86_ibpb_exit_to_user, true))
/* What the kernel runs with, alternatives and command line applied. */
SHIM(bool, fred_enabled, (void), cpu_feature_enabled(X86_FEATURE_FRED))
SHIM(bool, la57_enabled, (void), pgtable_l5_enabled())
/* SME, or a guest with encrypted memory: physical addresses in page tables need the encryption bit. */
SHIM(bool, memory_encrypted, (void), sme_get_me_mask() != 0)
/* Waits for all CPUs. */
SHIM_VOID(write_back_caches, (void), wbinvd_on_all_cpus())
SHIM(bool, smt_possible, (void), cpu_smt_possible())
SHIM(bool, tsc_stable, (void), !check_tsc_unstable())
SHIM_VOID(send_reschedule, (unsigned int cpu), arch_smp_send_reschedule(cpu))
