// SPDX-License-Identifier: LGPL-2.1-or-later
//
// What instructions and transitions cost on a processor, by a table: see costs.cc.

#ifndef BX_COSTS_H
#define BX_COSTS_H

// There is a table, by $BOCHS_COSTS. Without one nothing is charged, and every hook is one test.
extern bool bx_costing;
// With several processors: the cycles that each has still to let pass.
extern Bit32u bx_owed[BX_MAX_SMP_THREADS_SUPPORTED];

enum bx_transition { BX_COST_VMEXIT, BX_COST_DELIVERY, BX_COST_TRANSITIONS };

class bxInstruction_c;

void bx_costs_init(void);
bool bx_is_charged(const bxInstruction_c *i);
void bx_charge_instruction(unsigned cpu, const bxInstruction_c *i);
void bx_charge_transition(unsigned cpu, enum bx_transition what);
void bx_pay(unsigned cpu, Bit32u most);

#define BX_COST(call) { if (bx_costing) { call; } }

#endif
