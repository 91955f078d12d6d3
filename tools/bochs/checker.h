// SPDX-License-Identifier: LGPL-2.1-or-later
//
// What a host must never do around guests, checked while it runs: see checker.cc.

#ifndef BX_CHECKER_H
#define BX_CHECKER_H

// What is checked, by $BOCHS_CHECK; 0: nothing, and every hook is one test.
extern unsigned bx_checks;
// On some CPU a guest has left what branches go by: they are of interest.
extern unsigned bx_tainted;
// A VERW on some CPU has been the last thing so far: stores are of interest.
extern unsigned bx_buffers_clear;

enum bx_check_branch { BX_CHECK_JCC, BX_CHECK_JMP, BX_CHECK_CALL, BX_CHECK_RET, BX_CHECK_INDIRECT_JMP,
  BX_CHECK_INDIRECT_CALL };

void bx_check_init(void);
void bx_check_branch(unsigned cpu, enum bx_check_branch what, Bit64u from, Bit64u to);
void bx_check_user(unsigned cpu);
void bx_check_wrmsr(unsigned cpu, Bit32u msr, Bit64u value);
void bx_check_port(Bit16u port, Bit32u value);
void bx_check_store(unsigned cpu);
void bx_check_verw(unsigned cpu);
void bx_check_entry(unsigned cpu);
void bx_check_no_entry(unsigned cpu);
void bx_check_exit(unsigned cpu);
void bx_check_vmptrld(unsigned cpu, Bit64u vmcs);
void bx_check_vmclear(unsigned cpu, Bit64u vmcs);
void bx_check_vmxoff(unsigned cpu);
void bx_check_vmrun(unsigned cpu, Bit64u vmcb);
void bx_check_vmcb_cached(unsigned cpu, Bit64u vmcb);

#define BX_CHECK(call) { if (bx_checks) { call; } }
#define BX_CHECK_BRANCH(call) { if (bx_tainted) { call; } }

#endif
