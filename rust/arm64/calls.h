/* SPDX-License-Identifier: GPL-2.0 */
/* As ../shim/calls.h, for what is there on Arm64 only. */

/* The interrupt controller has its registers in the processor (GICv3), and the kernel uses them. */
SHIM(bool, has_gicv3_registers, (void), cpus_have_final_cap(ARM64_HAS_GICV3_CPUIF))
/* Processors are there whose branch predictor, or branch history, an EL1 can train for EL2. */
SHIM(bool, has_spectre_v2, (void), cpus_have_final_cap(ARM64_SPECTRE_V2))
SHIM(bool, has_spectre_bhb, (void), cpus_have_final_cap(ARM64_SPECTRE_BHB))
/* The kernel masks interrupts by their priority, not by PSTATE. */
SHIM(bool, masks_by_priority, (void), system_uses_irq_prio_masking())
