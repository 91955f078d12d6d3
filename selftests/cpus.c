// SPDX-License-Identifier: GPL-2.0
/* vCPUs that change the host's CPU, or share one with other vCPUs and with guests of stock KVM's. */
#define _GNU_SOURCE
#include "vm.h"
#include <pthread.h>
#include <sched.h>

#define CPU1_ONLINE	"/sys/devices/system/cpu/cpu1/online"
#define MSR_STAR	0xc0000081
#define MSR_LSTAR	0xc0000082
#define MSR_FMASK	0xc0000084
#define MSR_KERNEL_GS	0xc0000102

/* RBX and a word of memory count together. */
GUEST64(count,
	"1: inc %rbx; incq " STR(G_DATA) "; mov %ebx, %eax; out %eax, $0x10; jmp 1b\n");

/* Entered by SYSCALL, RDI times in a round; each guest has another of four entries. RDX collects RFLAGS.IF there. */
GUEST64(caller,
	"1: mov %rdi, %rsi; xor %edx, %edx\n"
	"2: sti; syscall; dec %rsi; jnz 2b; out %al, $0x10; jmp 1b\n"
	".org caller + 64\n incq " STR(G_CELLS) "; pushfq; pop %rax; and $0x200, %eax; or %eax, %edx; jmp *%rcx\n"
	".org caller + 128\n incq " STR(G_CELLS) "+8; pushfq; pop %rax; and $0x200, %eax; or %eax, %edx; jmp *%rcx\n"
	".org caller + 192\n incq " STR(G_CELLS) "+16; pushfq; pop %rax; and $0x200, %eax; or %eax, %edx; jmp *%rcx\n"
	".org caller + 256\n incq " STR(G_CELLS) "+24; pushfq; pop %rax; and $0x200, %eax; or %eax, %edx; jmp *%rcx\n");

static bool pin(int n)
{
	cpu_set_t cpu;

	CPU_ZERO(&cpu);
	CPU_SET(n, &cpu);
	return !sched_setaffinity(0, sizeof(cpu), &cpu);
}

static void want_two(void)
{
	if (!pin(1))
		skip("one CPU");
}

/* The other hypervisor on this machine, if there is one. */
static const char *other_device(void)
{
	const char *other = strcmp(device, "/dev/kvm") ? "/dev/kvm" : "/dev/rvmm";

	return access(other, R_OK | W_OK) ? NULL : other;
}

static void new_on(struct vm *vm, const char *node, const unsigned char *code, const unsigned char *end)
{
	const char *tested = device;

	device = node;
	vm_new(vm, 4 * MIB);
	vm_long(vm, code, end);
	device = tested;
}

/* One more time around for a `count` of which these came before. */
static void step(struct vm *vm, unsigned int *before)
{
	++*before;
	CHECK_EQ(vm_expect_out(vm, 0x10), *before);
	CHECK_EQ(*(volatile uint64_t *)(vm->mem + G_DATA), *before);
}

/* Beside kvm_intel, which is there from the start in a bed, a vCPU stays in the processor between two KVM_RUNs. */
TEST(root)
{
	int kvm = device_open();
	long root;

	if (!is_rvmm() || is_amd())
		skip("not rvmm on VMX");
	root = OK(ioctl(kvm, KVM_CHECK_EXTENSION, RVMM_CAP_ROOT));
	CHECK_EQ(root, other_device() ? RVMM_ROOT_KEPT : RVMM_ROOT_PRIVATE);
}

/* Another CPU for each KVM_RUN, and for the look at the registers between two. */
TEST_SECONDS(moves, 120)
{
	unsigned int before[2] = { 0, 0 };
	struct vm vm[2];

	want_two();
	for (int i = 0; i < 2; i++)
		new_on(&vm[i], device, count, count_end);
	for (int round = 0; round < 40; round++)
		for (int i = 0; i < 2; i++) {
			REQUIRE(pin((round + i) & 1));
			step(&vm[i], &before[i]);
			REQUIRE(pin(round >> 1 & 1));
			CHECK_EQ(vm_regs(&vm[i]).rbx, before[i]);
		}
	/* Last run on either CPU, freed on both. */
	for (int i = 0; i < 2; i++) {
		REQUIRE(pin(i));
		vm_free(&vm[i]);
	}
}

/* Freed on another CPU than the one that it ran on, and its memory used again by the next one. */
TEST_SECONDS(freed_elsewhere, 120)
{
	want_two();
	for (int round = 0; round < 20; round++) {
		unsigned int before = 0;
		struct vm vm;

		new_on(&vm, device, count, count_end);
		REQUIRE(pin(round & 1));
		step(&vm, &before);
		step(&vm, &before);
		REQUIRE(pin(~round & 1));
		vm_free(&vm);
	}
}

/* More vCPUs on one CPU than its processor is left with. */
TEST_SECONDS(crowd, 120)
{
	unsigned int before[40] = {};
	struct vm vm[ARRAY_SIZE(before)];

	REQUIRE(pin(0));
	vm_init(&vm[0], 4 * MIB);
	vm_long_memory(&vm[0]);
	memcpy(vm[0].mem + G_CODE, count, count_end - count);
	for (unsigned int i = ARRAY_SIZE(before); i--;) {
		struct kvm_regs r;

		vm[i] = vm_second_vcpu(&vm[0], i);
		vm_long_state(&vm[i]);
		r = vm_regs(&vm[i]);
		r.rip = G_CODE;
		vm_set_regs(&vm[i], &r);
	}
	for (unsigned int round = 0; round < 4; round++)
		for (unsigned int i = 0; i < ARRAY_SIZE(before); i += 1 + (round & 1))
			CHECK_EQ(vm_expect_out(&vm[i], 0x10), ++before[i]);
	vm_free(&vm[0]);
}

/* Guests of rvmm and of stock KVM in turn, in one thread. */
TEST_SECONDS(in_turn_with_kvm, 120)
{
	const char *other = other_device();
	unsigned int before[4] = {};
	struct vm vm[4];

	if (!other)
		skip("no other hypervisor");
	REQUIRE(pin(0));
	for (int i = 0; i < 4; i++)
		new_on(&vm[i], i & 1 ? other : device, count, count_end);
	for (int round = 0; round < 40; round++)
		for (int i = 0; i < 4; i++) {
			pin(round / 4 & i & 1);
			step(&vm[i], &before[i]);
		}
	for (int i = 0; i < 4; i++)
		vm_free(&vm[i]);
}

struct call {
	struct vm vm;
	int entry, rounds;
};

static void *call_in_turn(void *argument)
{
	struct call *c = argument;

	REQUIRE(pin(0));
	for (int i = 0; i < c->rounds; i++) {
		vm_expect_out(&c->vm, 0x10);
		if (vm_regs(&c->vm).rdx)
			FAIL("guest %d: FMASK is not its own", c->entry);
	}
	return NULL;
}

/*
 * The same, with the threads of both in the CPU's queue, so that one is stopped where it stands while the other runs:
 * each guest finds its own SYSCALL MSRs, and so does the host.
 */
TEST_SECONDS(at_once_with_kvm, 240)
{
	const char *other = other_device();
	pthread_t threads[4];
	struct call c[4];

	if (!other)
		skip("no other hypervisor");
	for (int i = 0; i < 4; i++) {
		/* The last one is shorter than 64 bytes. */
		unsigned long offset = ((caller_end - caller) / 64 - 3 + i) * 64;
		struct kvm_sregs s;
		struct kvm_regs r;

		c[i].entry = i;
		c[i].rounds = 6;
		new_on(&c[i].vm, i & 1 ? other : device, caller, caller_end);
		s = vm_sregs(&c[i].vm);
		s.efer |= 1;
		vm_set_sregs(&c[i].vm, &s);
		CHECK(set_msr(&c[i].vm, MSR_STAR, (uint64_t)SEL_CODE64 << 32));
		CHECK(set_msr(&c[i].vm, MSR_LSTAR, G_CODE + offset));
		CHECK(set_msr(&c[i].vm, MSR_FMASK, 0x200));
		CHECK(set_msr(&c[i].vm, MSR_KERNEL_GS, 0x1000 * i));
		r = vm_regs(&c[i].vm);
		r.rdi = 300000;
		vm_set_regs(&c[i].vm, &r);
	}
	for (int i = 0; i < 4; i++)
		REQUIRE(!pthread_create(&threads[i], NULL, call_in_turn, &c[i]));
	for (int i = 0; i < 4; i++) {
		uint64_t gs;

		REQUIRE(!pthread_join(threads[i], NULL));
		for (int n = 0; n < 4; n++)
			CHECK_EQ(vm_cells(&c[i].vm)[n], n == i ? c[i].rounds * 300000ull : 0);
		CHECK(get_msr(&c[i].vm, MSR_KERNEL_GS, &gs));
		CHECK_EQ(gs, 0x1000 * i);
	}
}

static void set_cpu1(bool online)
{
	int fd = open(CPU1_ONLINE, O_WRONLY);

	if (fd < 0)
		skip("no CPU that can go offline");
	REQUIRE(write(fd, online ? "1" : "0", 1) == 1);
	close(fd);
}

static volatile bool stop;

static void *run_on(void *argument)
{
	struct vm *vm = argument;
	unsigned int before = 0;

	pin(1);
	while (!stop)
		step(vm, &before);
	return NULL;
}

/* The CPU goes away on which vCPUs were, and one runs there; they go on elsewhere, and there when it is back. */
TEST_SECONDS(offline, 240)
{
	const char *nodes[4] = { device, device, other_device(), device };
	unsigned int before[4] = {};
	pthread_t thread;
	struct vm vm[4];

	want_two();
	if (access(CPU1_ONLINE, W_OK))
		skip("no CPU that can go offline");
	for (int i = 0; i < 4; i++)
		if (nodes[i])
			new_on(&vm[i], nodes[i], count, count_end);
	REQUIRE(!pthread_create(&thread, NULL, run_on, &vm[3]));
	for (int round = 0; round < 3; round++) {
		for (int i = 0; i < 3; i++)
			if (nodes[i])
				step(&vm[i], &before[i]);
		set_cpu1(false);
		/* The second one stays where it was until that is back. */
		step(&vm[0], &before[0]);
		set_cpu1(true);
		REQUIRE(pin(1));
	}
	step(&vm[1], &before[1]);
	set_cpu1(false);
	vm_free(&vm[0]);
	vm_free(&vm[1]);
	set_cpu1(true);
	stop = true;
	REQUIRE(!pthread_join(thread, NULL));
}
