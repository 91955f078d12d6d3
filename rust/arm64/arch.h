/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What ../bindings_helper.h and ../shim/shim.c have of Arm64: headers, constants, prototypes, entries of page tables.
 */
#ifndef RVMM_ARCH_H
#define RVMM_ARCH_H

#include <linux/random.h>
#include <asm/memory.h>
#include <asm/neon.h>

#ifdef __BINDGEN__
/* Constants that bindgen cannot evaluate from their macros. */
static const unsigned int RVMM_VA_BITS = VA_BITS;
#endif

/*
 * Flags of the host's entries: of one that is there, of one that user space may write, and those that say so. Whether
 * the entry is dirty (PTE_RDONLY clear) does not matter.
 */
#define RVMM_ENTRY_PRESENT	PTE_VALID
#define RVMM_ENTRY_WRITABLE	(PTE_VALID | PTE_USER | PTE_WRITE)
#define RVMM_ENTRY_SEEN		(RVMM_ENTRY_WRITABLE | PTE_SPECIAL | PTE_PO_IDX_MASK)
#define rvmm_pte_flags(pte)	pte_val(pte)
#define rvmm_pmd_flags(pmd)	pmd_val(pmd)
#define rvmm_pud_flags(pud)	pud_val(pud)

void rvmm_send_reschedule(unsigned int cpu);
bool rvmm_firmware_offers(u32 function);
bool rvmm_read_clock(u64 *real_ns, u64 *counter);
void rvmm_host_error(u64 esr) __noreturn;

unsigned int rvmm_firmware_irq(u32 which);
unsigned long rvmm_irq_hardware_number(unsigned int irq);
bool rvmm_irq_is_taken(unsigned int irq);
int rvmm_take_percpu_irq(unsigned int irq);
void rvmm_give_percpu_irq(unsigned int irq);
void rvmm_enable_percpu_irq(unsigned int irq);
void rvmm_disable_percpu_irq(unsigned int irq);
int rvmm_set_irq_active(unsigned int irq, bool active);

#endif /* RVMM_ARCH_H */
