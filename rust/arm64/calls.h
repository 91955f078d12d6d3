/* SPDX-License-Identifier: GPL-2.0 */
/* As ../shim/calls.h, for what is there on Arm64 only. */

/* The interrupt controller has its registers in the processor (GICv3), and the kernel uses them. */
SHIM(bool, has_gicv3_registers, (void), cpus_have_final_cap(ARM64_HAS_GICV3_CPUIF))
/* Processors are there whose branch predictor, or branch history, an EL1 can train for EL2. */
SHIM(bool, has_spectre_v2, (void), cpus_have_final_cap(ARM64_SPECTRE_V2))
SHIM(bool, has_spectre_bhb, (void), cpus_have_final_cap(ARM64_SPECTRE_BHB))
/* Processors are there that read memory ahead of writes to it. */
SHIM(bool, has_spectre_v4, (void), cpus_have_final_cap(ARM64_SPECTRE_V4))
/* Pointer authentication, of addresses and generic. */
SHIM(bool, has_pointer_authentication, (void), system_supports_address_auth() && system_supports_generic_auth())
/* CTR_EL0 of all processors; stage 2 can force write-back; instructions need no cache to be cleaned or invalidated. */
SHIM(u64, cache_type, (void), read_sanitised_ftr_reg(SYS_CTR_EL0))
SHIM(bool, has_stage2_fwb, (void), cpus_have_final_cap(ARM64_HAS_STAGE2_FWB))
SHIM(bool, has_cache_idc, (void), cpus_have_final_cap(ARM64_HAS_CACHE_IDC))
SHIM(bool, has_cache_dic, (void), cpus_have_final_cap(ARM64_HAS_CACHE_DIC))
/* Random numbers, in any context. */
SHIM(u64, random_word, (void), get_random_u64())
/* The kernel masks interrupts by their priority, not by PSTATE. */
SHIM(bool, masks_by_priority, (void), system_uses_irq_prio_masking())
