// SPDX-License-Identifier: GPL-2.0
/* Coverage by KCOV (kernel document dev-tools/kcov), where the kernel has it. Without it none of this does anything. */
#define _GNU_SOURCE
#include "fuzz.h"
#include <sys/ioctl.h>

#define KCOV_INIT_TRACE _IOR('c', 1, unsigned long)
#define KCOV_ENABLE _IO('c', 100)
#define KCOV_DISABLE _IO('c', 101)

#define ENTRIES (1u << 18)
/* Places are kept as one bit each, by their distance from the module's first one. */
#define TEXT (8u << 20)

static __thread int kcov = -1;
static __thread unsigned long *trace;

/* Where the module's code lies; 0 where that is not to be seen. */
static unsigned long module_text(void)
{
	static unsigned long text = 1;
	FILE *f;

	if (text != 1)
		return text;
	text = 0;
	f = fopen("/sys/module/rvmm/sections/.text", "r");
	if (f) {
		if (fscanf(f, "%lx", &text) != 1)
			text = 0;
		fclose(f);
	}
	return text;
}

static uint8_t *seen(void)
{
	static uint8_t *bits;

	if (!bits) {
		bits = mmap(NULL, TEXT / 8, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
		REQUIRE(bits != MAP_FAILED);
	}
	return bits;
}

void cover_room(void)
{
	seen();
	module_text();
}

void cover_begin(void)
{
	if (!module_text())
		return;
	kcov = open("/sys/kernel/debug/kcov", O_RDWR | O_CLOEXEC);
	if (kcov < 0)
		return;
	if (ioctl(kcov, KCOV_INIT_TRACE, (unsigned long)ENTRIES))
		return;
	trace = mmap(NULL, ENTRIES * sizeof(*trace), PROT_READ | PROT_WRITE, MAP_SHARED, kcov, 0);
	if (trace == MAP_FAILED || ioctl(kcov, KCOV_ENABLE, 0))
		trace = NULL;
}

void cover_collect(void)
{
	unsigned long n, text = module_text();
	uint8_t *bits = seen();

	if (!trace)
		return;
	n = __atomic_load_n(&trace[0], __ATOMIC_RELAXED);
	for (unsigned long i = 1; i <= n && i < ENTRIES; i++) {
		unsigned long at = trace[i] - text;

		if (at < TEXT && !(__atomic_fetch_or(&bits[at / 8], 1 << at % 8, __ATOMIC_RELAXED) & 1 << at % 8))
			count(&counts->covered);
	}
	__atomic_store_n(&trace[0], 0, __ATOMIC_RELAXED);
}

void cover_report(void)
{
	const char *name = getenv("FUZZ_COVERAGE");
	uint8_t *bits = seen();
	FILE *f;

	if (!counts->covered)
		return;
	note("%lu places of the module's code", counts->covered);
	f = name ? fopen(name, "w") : NULL;
	for (unsigned long at = 0; f && at < TEXT; at++)
		if (bits[at / 8] & 1 << at % 8)
			fprintf(f, "%#lx\n", at);
	if (f)
		fclose(f);
}
