// SPDX-License-Identifier: GPL-2.0
/*
 * Nothing is lost: what a guest's memory holds at the end is what the dirty log has told of it.
 *
 * Two vCPUs write to a slot in every way that there is: stores, page-table entries' accessed and dirty bits,
 * instructions that the hypervisor carries out (INS, MOVS from device memory, also through page tables), pages that the
 * hypervisor itself writes (kvmclock, wall clock, steal time, PV EOI; dirty_writers.c has the others). Meanwhile a
 * collector asks the log, and copies each page that it names to a shadow; a third thread has the host move, split,
 * merge and copy the pages underneath. Now and then the vCPUs stop and the log is asked once more: then every page is
 * as its shadow.
 *
 * Rounds are counted, not seconds. $STRESS_ROUNDS: how many (default 12).
 */
#define _GNU_SOURCE
#include "log.h"
#include <pthread.h>
#include <signal.h>
#include <sys/wait.h>

#ifndef MFD_HUGE_2MB
#define MFD_HUGE_2MB (21u << 26)
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

#define SLOT 5
#define VCPUS 2
#define PHASES 4

#define SLOT_ADDRESS 0x8000000		/* guest-physical, identity-mapped, 2 MiB-aligned, away from slot 0 */
#define LARGE (2 * MIB)
#define ALIAS_PML4E 1			/* guest-virtual 512 GiB and up: mapped by tables in the slot */

/* Pages of the slot with a purpose; all others are stored to at random. */
#define PAGE_PDPT 0
#define PAGE_PD 1
#define PAGE_PV 2			/* four pages for each vCPU, each of one kind of the hypervisor's writes */
#define PV_PAGES 4
#define PAGE_RANDOM 16
/* Each 64th page is no vCPU's: the host may empty it at any time. */
#define IS_HOSTS(page) (((page) & 63) == 63)

/* In a vCPU's pages. */
#define PV_CLOCK 0
#define PV_STEAL 0x1000
#define PV_EOI 0x2000
#define PV_WALL 0x3000

#define MSR_WALL_CLOCK 0x4b564d00
#define MSR_SYSTEM_TIME 0x4b564d01
#define MSR_STEAL_TIME 0x4b564d03
#define MSR_PV_EOI_EN 0x4b564d04

#define VECTOR 0x50
#define PORT 0x510
#define HANDLER 0x20000			/* G_DATA */
#define PROGRESS G_CELLS		/* a count for each vCPU */

/*
 * Registers: R8 mask of random pages, R9 address of the vCPU's pages, R10 index of the vCPU times 64, R11 an alias of
 * the slot, R12 page directory of the alias, RBX count, R14 state of the random numbers. RDI: where the next write
 * goes: 64 bytes of a page are this vCPU's.
 */
#define RANDOM "mov $6364136223846793005, %rax; imul %rax, %r14; mov $1442695040888963407, %rax; add %rax, %r14\n"
#define PLACE								\
	"mov %r14, %rdi; shr $33, %rdi; and %r8, %rdi\n"		\
	"cmp $" STR(PAGE_RANDOM) ", %edi; jae 2f; add $" STR(PAGE_RANDOM) ", %edi\n"	\
	"2: mov %edi, %eax; and $63, %eax; cmp $63, %eax; jne 2f; dec %edi\n"		\
	"2: shl $12, %rdi; add $" STR(SLOT_ADDRESS) ", %rdi; add %r10, %rdi\n"

GUEST64(writer,
	"mov $0x1b, %ecx; rdmsr; or $0xc00, %eax; wrmsr\n"	/* x2APIC */
	"mov $0x80f, %ecx; mov $0x1ff, %eax; xor %edx, %edx; wrmsr\n"
	"mov $" STR(MSR_PV_EOI_EN) ", %ecx; lea " STR(PV_EOI) "+1(%r9), %eax; xor %edx, %edx; wrmsr\n"
	"mov $" STR(MSR_STEAL_TIME) ", %ecx; lea " STR(PV_STEAL) "+1(%r9), %eax; xor %edx, %edx; wrmsr\n"
	"sti\n"
	"1: inc %rbx; mov %r10, %rax; shr $3, %rax; mov %rbx, " STR(PROGRESS) "(%rax)\n"
	RANDOM PLACE
	/* Most often a store; a locked one; one over the end of the page. */
	"mov %r14, %rax; shr $56, %rax; cmp $208, %eax; jae 3f\n"
	"mov %rbx, (%rdi); cmp $16, %eax; jae 1b\n"
	"lock addq $1, 8(%rdi); jmp 1b\n"
	/* Several at once. */
	"3: and $7, %eax; jnz 3f; cld; mov %rbx, %rax; mov $8, %ecx; rep stosq; jmp 1b\n"
	/* INS of bytes, within a page; of words, over its end. */
	"3: dec %eax; jnz 3f; cld; mov $" STR(PORT) ", %edx; mov $9, %ecx; rep insb; jmp 1b\n"
	"3: dec %eax; jnz 3f; cld; mov $" STR(PORT) ", %edx; and $~0xfff, %rdi; add $4094, %rdi; insl; jmp 1b\n"
	/* From device memory. */
	"3: dec %eax; jnz 3f; cld; mov $" STR(G_MMIO) ", %esi; movsq; jmp 1b\n"
	/* The hypervisor's pages anew. */
	"3: dec %eax; jnz 3f; mov $" STR(MSR_SYSTEM_TIME) ", %ecx; lea " STR(PV_CLOCK) "+1(%r9), %eax; xor %edx, %edx\n"
	"wrmsr; jmp 1b\n"
	"3: dec %eax; jnz 3f; mov $" STR(MSR_WALL_CLOCK) ", %ecx; lea " STR(PV_WALL) "(%r9), %eax; xor %edx, %edx\n"
	"wrmsr; jmp 1b\n"
	/* An interrupt, whose end may be said in memory. */
	"3: dec %eax; jnz 3f; mov $0x83f, %ecx; mov $" STR(VECTOR) ", %eax; xor %edx, %edx; wrmsr; jmp 1b\n"
	/*
	 * A page-table entry with neither accessed nor dirty bit, used by a store, or by an instruction that the
	 * hypervisor carries out: the processor sets them, or it does.
	 */
	"3: mov %r14, %rcx; shr $20, %rcx; and $255, %ecx; mov %r10d, %edx; shl $2, %edx; add %edx, %ecx\n"
	"mov $" STR(SLOT_ADDRESS) "+0x83, %eax; mov %rax, (%r12,%rcx,8)\n"
	"shl $21, %rcx; add %r11, %rcx; invlpg (%rcx)\n"
	"and $0x1fffff, %edi; or $0x10000, %edi; add %rcx, %rdi; test $1, %bl; jz 3f; mov %rbx, (%rdi); jmp 1b\n"
	"3: cld; mov $" STR(G_MMIO) ", %esi; movsq; jmp 1b\n");

/* Ends the interrupt as Linux does: if the hypervisor has said that a word in memory is enough, by that. */
GUEST64(handler,
	"push %rax; push %rcx; push %rdx; lock btrl $0, " STR(PV_EOI) "(%r9); jc 1f\n"
	"mov $0x80b, %ecx; xor %eax, %eax; xor %edx, %edx; wrmsr\n"
	"1: pop %rdx; pop %rcx; pop %rax; iretq\n");

enum backing { SMALL, HUGE, SHARED, HUGETLB };

struct vcpu {
	struct vm vm;
	struct stress *stress;
	pthread_t thread;
	struct ring ring;
};

struct stress {
	enum backing backing;
	enum way way;
	bool toggle;		/* the log goes off and on again */
	size_t pages;
	uint8_t *memory, *shadow;
	size_t mapped;
	struct vcpu vcpu[VCPUS];
	uint64_t *bitmap;
	uint64_t copied;
	unsigned int seed;
};

static volatile bool done, calm, failed;

/* User space's part: answers INS and reads of device memory with something new each time. */
static void answer(struct vcpu *vcpu, uint8_t *with)
{
	struct kvm_run *run = vcpu->vm.run;

	++*with;
	if (run->exit_reason == KVM_EXIT_IO)
		memset(io_data(&vcpu->vm), *with, run->io.size * run->io.count);
	else
		memset(run->mmio.data, *with, sizeof(run->mmio.data));
}

static void *run_vcpu(void *argument)
{
	struct vcpu *vcpu = argument;
	struct kvm_run *run = vcpu->vm.run;
	uint8_t with = 0;

	while (!done) {
		int error = vm_try_run(&vcpu->vm);

		if (error == EINTR || error == EAGAIN)
			continue;
		if (!error && (run->exit_reason == KVM_EXIT_IO || run->exit_reason == KVM_EXIT_MMIO)) {
			answer(vcpu, &with);
		} else if (!error && run->exit_reason == KVM_EXIT_DIRTY_RING_FULL) {
			usleep(100);
		} else {
			FAIL("KVM_RUN: %s, exit %s, rip %#llx", error ? strerrorname(error) : "done",
			     exit_name(run->exit_reason), vm_regs(&vcpu->vm).rip);
			done = failed = true;
		}
	}
	return NULL;
}

/* The page goes to the shadow. */
static void copy(struct stress *s, size_t page)
{
	memcpy(s->shadow + page * 4096, s->memory + page * 4096, 4096);
	s->copied++;
}

static void copy_words(struct stress *s, size_t first, size_t pages)
{
	for (size_t page = first; page < first + pages; page++)
		if (s->bitmap[page / 64] >> page % 64 & 1)
			copy(s, page);
}

static void clear_log(struct stress *s, size_t first, size_t pages)
{
	struct kvm_clear_dirty_log clear = { .slot = SLOT, .first_page = first, .num_pages = pages };

	clear.dirty_bitmap = s->bitmap + first / 64;
	OK(ioctl(s->vcpu[0].vm.fd, KVM_CLEAR_DIRTY_LOG, &clear));
}

/* Takes what the ring has; the pages are copied once they are write-protected again. */
static void collect_ring(struct stress *s, struct vcpu *vcpu)
{
	uint32_t taken[256];
	size_t count;

	do {
		for (count = 0; count < ARRAY_SIZE(taken); count++) {
			struct kvm_dirty_gfn entry;

			if (!harvest(&vcpu->ring, &entry))
				break;
			if (entry.slot != SLOT || entry.offset >= s->pages)
				DIE("ring: slot %u, page %#llx", entry.slot, (unsigned long long)entry.offset);
			taken[count] = entry.offset;
		}
		REQUIRE_EQ(OK(ioctl(vcpu->vm.fd, KVM_RESET_DIRTY_RINGS, 0)), count);
		for (size_t i = 0; i < count; i++)
			copy(s, taken[i]);
	} while (count == ARRAY_SIZE(taken));
}

static void collect_rings(struct stress *s)
{
	for (int i = 0; i < VCPUS; i++)
		collect_ring(s, &s->vcpu[i]);
}

static void collect(struct stress *s)
{
	struct kvm_dirty_log log = { .slot = SLOT };
	size_t part;

	if (s->way >= RING)
		collect_rings(s);
	if (s->way == RING)
		return;
	log.dirty_bitmap = s->bitmap;
	OK(ioctl(s->vcpu[0].vm.fd, KVM_GET_DIRTY_LOG, &log));
	if (s->way == BITMAP || s->way == RING_AND_BITMAP) {
		copy_words(s, 0, s->pages);
		return;
	}
	/* All at once, or by pieces. */
	part = rand_r(&s->seed) & 1 ? s->pages : 64;
	for (size_t first = 0; first < s->pages; first += part) {
		clear_log(s, first, part);
		copy_words(s, first, part);
	}
}

static void set_log(struct stress *s, bool on)
{
	vm_slot(&s->vcpu[0].vm, SLOT, on ? KVM_MEM_LOG_DIRTY_PAGES : 0, SLOT_ADDRESS, s->pages * 4096, s->memory);
	/* What was written before is not in the log, unless all is in it at first. */
	if (on && s->way != INITIALLY_SET)
		for (size_t page = 0; page < s->pages; page++)
			copy(s, page);
}

static void write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY);

	if (fd >= 0) {
		if (write(fd, text, strlen(text)) < 0)
			note("%s: %s", path, strerrorname(errno));
		close(fd);
	}
}

/* One thing that the host does with memory, and that no guest notices. */
static void disturb(struct stress *s, unsigned int *seed)
{
	size_t page = rand_r(seed) % s->pages, pages = 1 + rand_r(seed) % 32;
	uint8_t *at = s->memory + page * 4096;
	bool small = s->backing != HUGETLB;
	pid_t child;

	if (page + pages > s->pages)
		pages = s->pages - page;
	switch (rand_r(seed) % 8) {
	case 0:
	case 1:	/* Neighbours go, by which large pages are split. */
		if (small)
			madvise(s->memory + (page | 63) * 4096, 4096, MADV_DONTNEED);
		break;
	case 2:	/* They become large again: other pages, the same contents. */
		if (small && s->pages * 4096 >= LARGE)
			madvise((uint8_t *)((uintptr_t)at & -LARGE), LARGE, MADV_COLLAPSE);
		break;
	case 3:
		write_file("/proc/sys/vm/compact_memory", "1");
		break;
	case 4:	/* Entries change, and stay writable: what is carried out for a guest does not bear less. */
		if (small) {
			mprotect(at, pages * 4096, PROT_READ | PROT_WRITE | PROT_EXEC);
			mprotect(at, pages * 4096, PROT_READ | PROT_WRITE);
		}
		break;
	case 5:	/* All pages are the child's as well, until it ends. */
		child = s->backing == SHARED ? -1 : fork_child();
		if (child == 0)
			_exit(0);
		if (child > 0)
			waitpid(child, NULL, 0);
		break;
	case 6:
		if (s->backing == HUGE)
			madvise(s->memory, s->pages * 4096, rand_r(seed) & 1 ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
		else if (s->backing == SMALL)
			madvise(s->memory, s->pages * 4096, rand_r(seed) & 1 ? MADV_MERGEABLE : MADV_UNMERGEABLE);
		break;
	default:
		pthread_kill(s->vcpu[rand_r(seed) % VCPUS].thread, SIGUSR1);
	}
}

static void *disturb_until_calm(void *argument)
{
	struct stress *s = argument;
	unsigned int seed = 1;

	while (!calm && !done) {
		disturb(s, &seed);
		usleep(500);
	}
	return NULL;
}

static uint64_t progress(struct stress *s, int vcpu)
{
	return *(volatile uint64_t *)(s->vcpu[0].vm.mem + PROGRESS + 8 * vcpu);
}

/* Until each vCPU has written so often again. While a ring is full, somebody has to empty it. */
static void wait_for_writes(struct stress *s, unsigned int writes)
{
	for (int i = 0; i < VCPUS; i++)
		for (uint64_t from = progress(s, i); !done && progress(s, i) - from < writes; usleep(50))
			if (s->way >= RING)
				collect_rings(s);
}

static void allocate(struct stress *s)
{
	size_t bytes = s->pages * 4096;
	int fd = -1, flags = MAP_PRIVATE | MAP_ANONYMOUS;
	uint8_t *all;

	if (s->backing == SHARED || s->backing == HUGETLB) {
		fd = memfd_create("slot", s->backing == HUGETLB ? MFD_HUGETLB | MFD_HUGE_2MB : 0);
		if (fd < 0 || ftruncate(fd, bytes))
			skip("memfd_create: %s", strerrorname(errno));
		flags = MAP_SHARED;
	}
	/* Aligned to 2 MiB within more of addresses. */
	s->mapped = bytes + LARGE;
	all = mmap(NULL, s->mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	REQUIRE(all != MAP_FAILED);
	s->memory = (uint8_t *)(((uintptr_t)all + LARGE - 1) & -LARGE);
	if (mmap(s->memory, bytes, PROT_READ | PROT_WRITE, flags | MAP_FIXED, fd, 0) == MAP_FAILED)
		skip("no memory of this kind: %s", strerrorname(errno));
	if (fd >= 0)
		close(fd);
	if (s->backing == HUGE)
		madvise(s->memory, bytes, MADV_HUGEPAGE);
	else if (s->backing == SMALL)
		madvise(s->memory, bytes, MADV_NOHUGEPAGE);
	memset(s->memory, 0, bytes);
	s->shadow = calloc(s->pages, 4096);
	s->bitmap = calloc(s->pages / 64, 8);
	REQUIRE(s->shadow && s->bitmap);
}

/* The alias: tables in the slot whose large pages are the slot itself. */
static void make_alias(struct stress *s)
{
	uint64_t *pml4 = (uint64_t *)(s->vcpu[0].vm.mem + G_PML4);
	uint64_t *pdpt = (uint64_t *)(s->memory + PAGE_PDPT * 4096), *pd = (uint64_t *)(s->memory + PAGE_PD * 4096);

	pml4[ALIAS_PML4E] = (SLOT_ADDRESS + PAGE_PDPT * 4096) | 3;
	pdpt[0] = (SLOT_ADDRESS + PAGE_PD * 4096) | 3;
	for (int i = 0; i < 512; i++)
		pd[i] = SLOT_ADDRESS | 0x83;
}

static void prepare_vcpu(struct stress *s, int index)
{
	struct vm *vm = &s->vcpu[index].vm;
	struct kvm_regs regs;

	vm_long_state(vm);
	regs = vm_regs(vm);
	regs.rsp = G_STACK - 0x1000 * index;
	regs.r8 = s->pages - 1;
	regs.r9 = SLOT_ADDRESS + (PAGE_PV + PV_PAGES * index) * 4096;
	regs.r10 = 64 * index;
	regs.r11 = (uint64_t)ALIAS_PML4E << 39;
	regs.r12 = SLOT_ADDRESS + PAGE_PD * 4096;
	regs.r14 = index + 1;
	vm_set_regs(vm, &regs);
	if (index) {
		struct kvm_mp_state state = { .mp_state = KVM_MP_STATE_RUNNABLE };

		OK(ioctl(vm->vcpu, KVM_SET_MP_STATE, &state));
	}
}

static void make_vm(struct stress *s)
{
	struct vm *vm = &s->vcpu[0].vm;

	vm_init_irqchip(vm, 4 * MIB);
	choose_log(vm, s->way);
	vm_add_vcpu(vm, 0);
	VM_LONG(vm, writer);
	vm_gate(vm, VECTOR, 0, HANDLER);
	memcpy(vm->mem + HANDLER, handler, handler_end - handler);
	for (int i = 1; i < VCPUS; i++)
		s->vcpu[i].vm = vm_second_vcpu(vm, i);
	for (int i = 0; i < VCPUS; i++) {
		struct vcpu *vcpu = &s->vcpu[i];

		vcpu->stress = s;
		prepare_vcpu(s, i);
		if (s->way < RING)
			continue;
		vcpu->ring.entries = map_ring(&vcpu->vm);
	}
	make_alias(s);
}

static void compare(struct stress *s)
{
	size_t lost = 0;

	for (size_t at = 0; at < s->pages * 4096; at++) {
		if (s->memory[at] == s->shadow[at] || IS_HOSTS(at / 4096))
			continue;
		if (lost++ < 4)
			FAIL("page %zu at %#zx is %#x, its copy %#x", at / 4096, at % 4096, s->memory[at],
			     s->shadow[at]);
		at |= 4095;
	}
	if (lost)
		FAIL("%zu pages were written and are not in the log", lost);
}

/* Some rounds, from the start of the vCPUs to their stop, after which nothing may differ. */
static void phase(struct stress *s, int rounds)
{
	pthread_t host;
	bool on = true;

	done = calm = false;
	for (int i = 0; i < VCPUS; i++)
		OK(-pthread_create(&s->vcpu[i].thread, NULL, run_vcpu, &s->vcpu[i]));
	OK(-pthread_create(&host, NULL, disturb_until_calm, s));
	for (int round = 0; round < rounds && !done; round++) {
		wait_for_writes(s, 1 + rand_r(&s->seed) % 200);
		if (on)
			collect(s);
		if (s->toggle && rand_r(&s->seed) % 4 == 0) {
			on = !on;
			set_log(s, on);
		}
	}
	if (!on)
		set_log(s, true);
	calm = true;
	pthread_join(host, NULL);
	wait_for_writes(s, 20);
	done = true;
	for (int i = 0; i < VCPUS; i++)
		stop_thread(s->vcpu[i].thread);
	collect(s);
	compare(s);
}

static void stress(enum backing backing, enum way way, bool toggle)
{
	struct stress s = { .backing = backing, .way = way, .toggle = toggle, .seed = 7 };
	const char *text = getenv("STRESS_ROUNDS");
	int rounds = text ? atoi(text) : 12;
	struct sigaction action = { .sa_handler = nothing };

	alarm(text ? 240 + 10 * rounds : 240);
	s.pages = backing == SMALL || backing == SHARED ? 64 : 2 * LARGE / 4096;
	if (backing == HUGETLB)
		write_file("/proc/sys/vm/nr_hugepages", "4");
	write_file("/sys/kernel/mm/ksm/run", "1");
	write_file("/sys/kernel/mm/ksm/sleep_millisecs", "1");
	sigaction(SIGUSR1, &action, NULL);
	allocate(&s);
	make_vm(&s);
	set_log(&s, true);
	for (int part = 0; part < PHASES && !failed; part++)
		phase(&s, (rounds + PHASES - 1) / PHASES);
	if (verbose)
		note("%llu and %llu writes, %llu pages copied", (unsigned long long)progress(&s, 0),
		     (unsigned long long)progress(&s, 1), (unsigned long long)s.copied);
	write_file("/sys/kernel/mm/ksm/run", "0");
	if (backing == HUGETLB)
		write_file("/proc/sys/vm/nr_hugepages", "0");
}

#define STRESS(name, backing, way, toggle) TEST_SECONDS(name, 240) { stress(backing, way, toggle); }

STRESS(bitmap, SMALL, BITMAP, false)
STRESS(bitmap_toggled, SMALL, BITMAP, true)
STRESS(bitmap_large, HUGE, BITMAP, false)
STRESS(bitmap_large_toggled, HUGE, BITMAP, true)
STRESS(bitmap_hugetlb_toggled, HUGETLB, BITMAP, true)
STRESS(manual, SMALL, MANUAL, false)
STRESS(manual_large_toggled, HUGE, MANUAL, true)
STRESS(initially_set_shared, SHARED, INITIALLY_SET, false)
STRESS(initially_set_large_toggled, HUGE, INITIALLY_SET, true)
STRESS(ring, SMALL, RING, false)
STRESS(ring_and_bitmap, SMALL, RING_AND_BITMAP, true)
STRESS(ring_large, HUGE, RING, false)
STRESS(ring_large_toggled, HUGE, RING, true)
