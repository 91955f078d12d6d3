// SPDX-License-Identifier: GPL-2.0
/*
 * Functions for what the kernel offers on Arm64 only as inline function or macro; see ../shim/shim.c.
 */

#include "../bindings_helper.h"
#include <linux/smp.h>

#define SHIM(type, name, args, expression) type rvmm_##name args { return expression; }
#define SHIM_VOID(name, args, statement) void rvmm_##name args { statement; }
#include <calls.h>

/* --- errors ----------------------------------------------------------------------------------- */

/* An SError that came while a guest ran, and that the kernel's handler, which is not exported, does not get to see. */
void rvmm_host_error(u64 esr)
{
	panic("rvmm: SError in a guest, ESR %#llx", esr);
}

/* --- other CPUs ------------------------------------------------------------------------------- */

static void rvmm_interrupted(void *unused)
{
}

static DEFINE_PER_CPU(call_single_data_t, rvmm_interruption) = CSD_INIT(rvmm_interrupted, NULL);

/*
 * The reschedule interrupt itself is not exported. One call at a time is on its way to a CPU; it counts as taken before
 * the function runs, so that whoever is told that there is one already may rely on an interrupt that is still to come.
 */
void rvmm_send_reschedule(unsigned int cpu)
{
	smp_call_function_single_async(cpu, per_cpu_ptr(&rvmm_interruption, cpu));
}
