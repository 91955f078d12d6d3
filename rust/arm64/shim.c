// SPDX-License-Identifier: GPL-2.0
/*
 * Functions for what the kernel offers on Arm64 only as inline function or macro; see ../shim/shim.c.
 */

#include "../bindings_helper.h"
#include <linux/acpi.h>
#include <linux/arm-smccc.h>
#include <linux/interrupt.h>
#include <linux/irq.h>
#include <linux/irqdesc.h>
#include <linux/of.h>
#include <linux/of_irq.h>
#include <linux/percpu.h>
#include <linux/smp.h>
#include <linux/timekeeping.h>

#define SHIM(type, name, args, expression) type rvmm_##name args { return expression; }
#define SHIM_VOID(name, args, statement) void rvmm_##name args { statement; }
#include <calls.h>

/* --- errors ----------------------------------------------------------------------------------- */

/* An SError that came while a guest ran, and that the kernel's handler, which is not exported, does not get to see. */
void rvmm_host_error(u64 esr)
{
	panic("rvmm: SError in a guest, ESR %#llx", esr);
}

/* The firmware has the call `function` of SMCCC's architecture range, and it is needed. */
bool rvmm_firmware_offers(u32 function)
{
	struct arm_smccc_res res;

	if (arm_smccc_1_1_get_conduit() != SMCCC_CONDUIT_SMC)
		return false;
	arm_smccc_1_1_smc(ARM_SMCCC_ARCH_FEATURES_FUNC_ID, function, &res);
	return (int)res.a0 == 0;
}

/* --- time ------------------------------------------------------------------------------------- */

/* CLOCK_REALTIME and the counter at one moment, if that is the kernel's clock. */
bool rvmm_read_clock(u64 *real_ns, u64 *counter)
{
	struct system_time_snapshot s = {};

	ktime_get_snapshot_id(CLOCK_REALTIME, &s);
	*real_ns = ktime_to_ns(s.systime);
	*counter = s.cycles;
	return s.cs_id == CSID_ARM_ARCH_COUNTER;
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

/* --- interrupts that each CPU has of its own --------------------------------------------------- */

/* The kernel's number of interrupt `index` of the first node that is `compatible`; 0: there is none. */
static unsigned int device_tree_irq(const char *compatible, int index)
{
	struct device_node *node = of_find_compatible_node(NULL, NULL, compatible);
	unsigned int irq = node ? irq_of_parse_and_map(node, index) : 0;

	of_node_put(node);
	return irq;
}

/* The same of interrupt `gsi` of ACPI's. The kernel itself has asked for it before, in the same words. */
static unsigned int acpi_irq(u32 gsi, bool edge, bool low)
{
	int irq = gsi ? acpi_register_gsi(NULL, gsi, edge ? ACPI_EDGE_SENSITIVE : ACPI_LEVEL_SENSITIVE,
					  low ? ACPI_ACTIVE_LOW : ACPI_ACTIVE_HIGH) : 0;

	return irq > 0 ? irq : 0;
}

/* Of a timer of EL1, by the table GTDT (ACPI 5.2.25). */
static unsigned int acpi_timer_irq(bool virtual)
{
	struct acpi_table_header *header;
	const struct acpi_table_gtdt *t;
	u32 gsi, flags;

	if (acpi_disabled || ACPI_FAILURE(acpi_get_table(ACPI_SIG_GTDT, 0, &header)))
		return 0;
	t = (const struct acpi_table_gtdt *)header;
	gsi = virtual ? t->virtual_timer_interrupt : t->non_secure_el1_interrupt;
	flags = virtual ? t->virtual_timer_flags : t->non_secure_el1_flags;
	acpi_put_table(header);
	return acpi_irq(gsi, flags & ACPI_GTDT_INTERRUPT_MODE, flags & ACPI_GTDT_INTERRUPT_POLARITY);
}

/* Of the virtual interface, by the table MADT (ACPI 5.2.12.14), which has it once for each CPU. */
static unsigned int acpi_maintenance_irq(void)
{
	const struct acpi_madt_generic_interrupt *gicc = acpi_disabled ? NULL : acpi_cpu_get_madt_gicc(0);

	return gicc ? acpi_irq(gicc->vgic_interrupt, gicc->flags & ACPI_MADT_VGIC_IRQ_MODE, false) : 0;
}

/*
 * The kernel's number of an interrupt of EL1's virtual timer, of its physical one, or of the virtual interface, in the
 * order of `Ppi` (percpu_irq.rs); 0: the firmware has said nothing of it. Where there is a device tree, that has it.
 */
unsigned int rvmm_firmware_irq(u32 which)
{
	static const struct { const char *compatible; int index; } nodes[] = {
		{ "arm,armv8-timer", 2 }, { "arm,armv8-timer", 1 }, { "arm,gic-v3", 0 },
	};
	unsigned int irq = which < ARRAY_SIZE(nodes) ?
		device_tree_irq(nodes[which].compatible, nodes[which].index) : 0;

	if (irq)
		return irq;
	return which == 2 ? acpi_maintenance_irq() : acpi_timer_irq(which == 0);
}

/* The interrupt controller's number of it. */
unsigned long rvmm_irq_hardware_number(unsigned int irq)
{
	struct irq_data *data = irq_get_irq_data(irq);

	return data ? data->hwirq : 0;
}

/* Somebody handles it. */
bool rvmm_irq_is_taken(unsigned int irq)
{
	struct irq_data *data = irq_get_irq_data(irq);

	return data && irq_desc_has_action(irq_data_to_desc(data));
}

static DEFINE_PER_CPU(int, rvmm_irq_cookie);

static irqreturn_t rvmm_unexpected(int irq, void *unused)
{
	return IRQ_HANDLED;
}

int rvmm_take_percpu_irq(unsigned int irq)
{
	return request_percpu_irq(irq, rvmm_unexpected, "rvmm", &rvmm_irq_cookie);
}

void rvmm_give_percpu_irq(unsigned int irq)
{
	free_percpu_irq(irq, &rvmm_irq_cookie);
}

/* On this CPU, as the firmware has described it. */
void rvmm_enable_percpu_irq(unsigned int irq)
{
	enable_percpu_irq(irq, irq_get_trigger_type(irq));
}

void rvmm_disable_percpu_irq(unsigned int irq)
{
	disable_percpu_irq(irq);
}

int rvmm_set_irq_active(unsigned int irq, bool active)
{
	return irq_set_irqchip_state(irq, IRQCHIP_STATE_ACTIVE, active);
}
