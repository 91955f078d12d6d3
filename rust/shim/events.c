// SPDX-License-Identifier: GPL-2.0
/* The tracepoints of events.h. Kernels without tracing have none of it. */
#include "../bindings_helper.h"

unsigned int rvmm_listeners;

#ifdef CONFIG_TRACEPOINTS

#define CREATE_TRACE_POINTS
#include "events.h"

/* Both are called under the kernel's lock of tracepoints. */
int rvmm_listen(void)
{
	WRITE_ONCE(rvmm_listeners, rvmm_listeners + 1);
	return 0;
}

void rvmm_listen_no_more(void)
{
	WRITE_ONCE(rvmm_listeners, rvmm_listeners - 1);
}

void rvmm_tell_exit(u32 vcpu, const char *class, const u64 *words)
{
	trace_rvmm_exit(vcpu, class, words);
}

void rvmm_tell_entry(u32 vcpu, const u64 *words)
{
	trace_rvmm_entry(vcpu, words);
}

#else

void rvmm_tell_exit(u32 vcpu, const char *class, const u64 *words) {}
void rvmm_tell_entry(u32 vcpu, const u64 *words) {}

#endif
