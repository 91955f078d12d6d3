/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What ../bindings_helper.h and ../shim/shim.c have of x86: headers, constants, prototypes, entries of page tables.
 */
#ifndef RVMM_ARCH_H
#define RVMM_ARCH_H

#include <asm/desc.h>
#include <asm/fpu/api.h>
#include <asm/mem_encrypt.h>
#include <asm/msr.h>
#include <asm/tsc.h>

#ifdef __BINDGEN__
/* Constants that bindgen cannot evaluate from their macros. */
static const unsigned int RVMM_BUG_CPU_MELTDOWN = X86_BUG_CPU_MELTDOWN;
static const unsigned int RVMM_BUG_SPECTRE_V2 = X86_BUG_SPECTRE_V2;
static const unsigned int RVMM_BUG_SPEC_STORE_BYPASS = X86_BUG_SPEC_STORE_BYPASS;
static const unsigned int RVMM_BUG_L1TF = X86_BUG_L1TF;
static const unsigned int RVMM_BUG_MDS = X86_BUG_MDS;
static const unsigned int RVMM_BUG_TAA = X86_BUG_TAA;
static const unsigned int RVMM_BUG_ITLB_MULTIHIT = X86_BUG_ITLB_MULTIHIT;
static const unsigned int RVMM_BUG_GDS = X86_BUG_GDS;
static const unsigned int RVMM_BUG_RFDS = X86_BUG_RFDS;
static const unsigned int RVMM_BUG_ITS = X86_BUG_ITS;
static const unsigned int RVMM_BUG_SMT_RSB = X86_BUG_SMT_RSB;
static const unsigned int RVMM_BUG_NULL_SEG = X86_BUG_NULL_SEG;
#endif

/* Flags of the host's entries: of one that is there, of one that user space may write, and those that say so. */
#define RVMM_ENTRY_PRESENT	_PAGE_PRESENT
#define RVMM_ENTRY_WRITABLE	(_PAGE_PRESENT | _PAGE_RW | _PAGE_USER)
#define RVMM_ENTRY_SEEN		(RVMM_ENTRY_WRITABLE | _PAGE_SPECIAL | _PAGE_PKEY_MASK)
#define rvmm_pte_flags(pte)	pte_flags(pte)
#define rvmm_pmd_flags(pmd)	pmd_flags(pmd)
#define rvmm_pud_flags(pud)	pud_flags(pud)

int rvmm_cmpxchg_user_u8(unsigned long addr, u8 *old, u8 new_val);
int rvmm_cmpxchg_user_u16(unsigned long addr, u16 *old, u16 new_val);
int rvmm_cmpxchg_user_u32(unsigned long addr, u32 *old, u32 new_val);
int rvmm_cmpxchg_user_u64(unsigned long addr, u64 *old, u64 new_val);

unsigned long rvmm_tss_from_gdt(u16 tr);
void rvmm_invalidate_tss_limit(void);
void rvmm_cpuid_mask(u32 leaf, u32 subleaf, u32 r[4]);

struct rvmm_clocks {
	u64 base_ns, real_ns, tsc;
	bool tsc_based;
};

void rvmm_read_clocks(struct rvmm_clocks *c);

int rvmm_xrstor64(const void *area, u64 mask);
int rvmm_fxrstor64(const void *area);
void rvmm_ibpb(void);
unsigned int rvmm_posted_vector(void);
void rvmm_send_posted(unsigned int cpu);
void rvmm_host_interrupt(u8 vector);
void rvmm_machine_check_from_user(void);
void rvmm_call_gate(unsigned long handler);

#endif /* RVMM_ARCH_H */
