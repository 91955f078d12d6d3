/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The module's tracepoints, `rvmm:rvmm_exit` and `rvmm:rvmm_entry`: a record of the recorder each (uapi/rvmm.h), as
 * eight words. Somebody who listens is counted in rvmm_listeners, which vCPUs look at.
 */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM rvmm

#if !defined(RVMM_EVENTS_H) || defined(TRACE_HEADER_MULTI_READ)
#define RVMM_EVENTS_H

#include <linux/tracepoint.h>

int rvmm_listen(void);
void rvmm_listen_no_more(void);

TRACE_EVENT_FN(rvmm_exit,
	TP_PROTO(u32 vcpu, const char *class, const u64 *words),
	TP_ARGS(vcpu, class, words),
	TP_STRUCT__entry(
		__field(u32, vcpu)
		__string(class, class)
		__field(u64, rip)
		__field(u64, address)
		__field(u64, value)
		__field(u32, detail)
		__field(u32, cycles)
		__field(u32, guest)
		__field(u8, decision)
		__field(u8, path)
		__field(u16, flags)
		__field(u32, inject)
		__field(u32, error_code)
		__field(u32, reason)
	),
	TP_fast_assign(
		__entry->vcpu = vcpu;
		__assign_str(class);
		__entry->rip = words[1];
		__entry->address = words[2];
		__entry->value = words[3];
		__entry->cycles = lower_32_bits(words[4]);
		__entry->guest = upper_32_bits(words[4]);
		__entry->decision = words[5] >> 16;
		__entry->path = words[5] >> 24;
		__entry->flags = words[5] >> 48;
		__entry->inject = lower_32_bits(words[6]);
		__entry->error_code = upper_32_bits(words[6]);
		__entry->reason = lower_32_bits(words[7]);
		__entry->detail = upper_32_bits(words[7]);
	),
	TP_printk("vcpu %u %s rip 0x%llx address 0x%llx value 0x%llx detail 0x%x %s by %s, reason %u, "
		  "%u cycles after %u in the guest, flags 0x%x inject 0x%x error 0x%x",
		  __entry->vcpu, __get_str(class), __entry->rip, __entry->address, __entry->value, __entry->detail,
		  __print_symbolic(__entry->decision, { 1, "again" }, { 2, "resume" }, { 3, "leave" }, { 4, "user" },
				   { 5, "fail" }),
		  __print_symbolic(__entry->path, { 1, "short" }, { 2, "stay" }, { 3, "outside" }),
		  __entry->reason, __entry->cycles, __entry->guest, __entry->flags, __entry->inject,
		  __entry->error_code),
	rvmm_listen, rvmm_listen_no_more
);

TRACE_EVENT_FN(rvmm_entry,
	TP_PROTO(u32 vcpu, const u64 *words),
	TP_ARGS(vcpu, words),
	TP_STRUCT__entry(
		__field(u32, vcpu)
		__field(u64, rip)
		__field(u32, cycles)
		__field(u16, flags)
		__field(u32, inject)
		__field(u32, error_code)
	),
	TP_fast_assign(
		__entry->vcpu = vcpu;
		__entry->rip = words[1];
		__entry->cycles = lower_32_bits(words[4]);
		__entry->flags = words[5] >> 48;
		__entry->inject = lower_32_bits(words[6]);
		__entry->error_code = upper_32_bits(words[6]);
	),
	TP_printk("vcpu %u rip 0x%llx, %u cycles after the last exit, flags 0x%x inject 0x%x error 0x%x",
		  __entry->vcpu, __entry->rip, __entry->cycles, __entry->flags, __entry->inject, __entry->error_code),
	rvmm_listen, rvmm_listen_no_more
);

#endif

#undef TRACE_INCLUDE_PATH
#define TRACE_INCLUDE_PATH .
#undef TRACE_INCLUDE_FILE
#define TRACE_INCLUDE_FILE events
#include <trace/define_trace.h>
