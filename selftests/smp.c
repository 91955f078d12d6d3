// SPDX-License-Identifier: GPL-2.0
/* Several vCPUs at once: interrupts between them, to sleepers and to runners, timers on all, start-up of many. */
#define _GNU_SOURCE
#include "vm.h"
#include <elf.h>
#include <pthread.h>
#include <sched.h>

#define MAX_VCPUS	64
#define VECTOR		0x55
#define G_SMP_CODE	0x30000
#define G_SMP_HANDLER	0x31000
/* 64 bytes per vCPU: interrupts taken, interrupts taken though IF was 0. */
#define G_COUNTS	0x40000
#define G_STACKS	0x50000	/* 4 KiB per vCPU */

struct counts {
	volatile uint64_t taken, closed, unused[6];
};

/* R15: this vCPU's counts, RBX: its APIC. An interrupt must not arrive while RFLAGS.IF is 0. */
GUEST64(smp_handler,
	"testl $0x200, 16(%rsp); jnz 1f; incq 8(%r15)\n"
	"1: incq (%r15); movl $0, 0xb0(%rbx); iretq\n");

/*
 * RDI: rounds. R14: ICR destination of the next vCPU. R13: 1 for who begins. Sleeps until the token comes, passes
 * it on.
 */
GUEST64(token,
	"mov $0xfee00000, %ebx; movl $0x1ff, 0xf0(%rbx)\n"
	"xor %esi, %esi; lock incq " STR(G_CELLS) "\n"
	/* Everybody has to be there: an APIC that is off takes nothing. */
	"sti; 1: pause; mov " STR(G_CELLS) ", %rax; cmp " STR(G_CELLS) "+8, %rax; jb 1b\n"
	"test %r13, %r13; jnz 3f\n"
	"2: cli; cmp %rsi, (%r15); ja 3f; sti; hlt; jmp 2b\n"
	"3: inc %rsi; sub %r13, %rsi; xor %r13, %r13\n"
	"sti; mov %r14d, 0x310(%rbx); movl $0x4055, 0x300(%rbx)\n"
	"dec %rdi; jnz 2b\n"
	"mov %esi, %eax; cli; out %eax, $0x10\n");

/* RDI: interrupts to take from the APIC timer, RSI: its initial count; spins with interrupts on. */
GUEST64(ticking,
	"mov $0xfee00000, %ebx; movl $0x1ff, 0xf0(%rbx)\n"
	"movl $0xb, 0x3e0(%rbx); movl $0x20055, 0x320(%rbx)\n"
	"mov %esi, 0x380(%rbx)\n"
	"sti; 1: pause; cmp %rdi, (%r15); jb 1b\n"
	"cli; movl $0x10000, 0x320(%rbx); out %al, $0x10\n");

static void smp_vm(struct vm *vm, struct vm *vcpus, unsigned int n, const unsigned char *code, const unsigned char *end)
{
	struct kvm_mp_state mp = { KVM_MP_STATE_RUNNABLE };

	vm_init_irqchip(vm, 4 * MIB);
	vm_long_memory(vm);
	vm_gate(vm, VECTOR, 0, G_SMP_HANDLER);
	memcpy(vm->mem + G_SMP_CODE, code, end - code);
	memcpy(vm->mem + G_SMP_HANDLER, smp_handler, smp_handler_end - smp_handler);
	for (unsigned int i = 0; i < n; i++) {
		struct kvm_regs r;

		vcpus[i] = vm_second_vcpu(vm, i);
		vm_long_state(&vcpus[i]);
		r = vm_regs(&vcpus[i]);
		r.rip = G_SMP_CODE;
		r.rsp = G_STACKS + 4096 * (i + 1);
		r.r15 = G_COUNTS + sizeof(struct counts) * i;
		vm_set_regs(&vcpus[i], &r);
		OK(ioctl(vcpus[i].vcpu, KVM_SET_MP_STATE, &mp));
	}
}

static struct counts *counts(struct vm *vm)
{
	return (struct counts *)(vm->mem + G_COUNTS);
}

/* Runs a vCPU until an exit other than the start of an AP. */
static void *run_vcpu(void *argument)
{
	struct vm *vcpu = argument;
	int error;

	while ((error = vm_try_run(vcpu)) == EAGAIN)
		;
	return (void *)(intptr_t)(error ? error : -(int)vcpu->run->exit_reason);
}

static void run_all(struct vm *vcpus, unsigned int n)
{
	pthread_t threads[MAX_VCPUS];
	void *result;

	for (unsigned int i = 0; i < n; i++)
		REQUIRE(!pthread_create(&threads[i], NULL, run_vcpu, &vcpus[i]));
	for (unsigned int i = 0; i < n; i++) {
		REQUIRE(!pthread_join(threads[i], &result));
		if ((intptr_t)result != -KVM_EXIT_IO)
			FAIL("vCPU %u ended with %ld", i, (long)(intptr_t)result);
	}
}

/* A token goes around between vCPUs that sleep in HLT: a wake-up that is lost stops it for ever. */
static void pass_token(unsigned int n, uint64_t rounds)
{
	struct vm vm, vcpus[MAX_VCPUS];

	smp_vm(&vm, vcpus, n, token, token_end);
	vm_cells(&vm)[1] = n;
	for (unsigned int i = 0; i < n; i++) {
		struct kvm_regs r = vm_regs(&vcpus[i]);

		r.rdi = rounds;
		r.r14 = (uint64_t)((i + 1) % n) << 24;
		r.r13 = i == 0;
		vm_set_regs(&vcpus[i], &r);
	}
	run_all(vcpus, n);
	for (unsigned int i = 0; i < n; i++) {
		CHECK_EQ(vm_regs(&vcpus[i]).rsi, rounds - (i == 0));
		CHECK_EQ(counts(&vm)[i].closed, 0);
	}
	vm_free(&vm);
}

TEST_SECONDS(token_of_two, 240)
{
	pass_token(2, is_amd() ? 5000 : 1000);
}

TEST_SECONDS(token_of_four, 240)
{
	pass_token(4, is_amd() ? 2000 : 300);
}

/*
 * Every vCPU has its timer. An interrupt is taken once, and with interrupts on. (Under KVM on several CPUs of
 * QEMU's TCG it fails: TCG delivers injected interrupts twice at times, and KVM does nothing against that.)
 */
static void tick_all(unsigned int n, uint64_t ticks, uint64_t period)
{
	struct vm vm, vcpus[MAX_VCPUS];

	smp_vm(&vm, vcpus, n, ticking, ticking_end);
	for (unsigned int i = 0; i < n; i++) {
		struct kvm_regs r = vm_regs(&vcpus[i]);

		r.rdi = ticks;
		r.rsi = period;
		vm_set_regs(&vcpus[i], &r);
	}
	run_all(vcpus, n);
	for (unsigned int i = 0; i < n; i++) {
		CHECK(counts(&vm)[i].taken >= ticks);
		CHECK_EQ(counts(&vm)[i].closed, 0);
	}
}

TEST_SECONDS(timers, 240)
{
	tick_all(2, is_amd() ? 5000 : 500, 300000);
}

/* INIT and SIPI to all but the sender, all at once, up to as many as there may be. */
GUEST64(start_all,
	"mov $0xfee00000, %ebx; movl $0x1ff, 0xf0(%rbx)\n"
	"movl $0xc4500, 0x300(%rbx); movl $0xc4632, 0x300(%rbx)\n"
	"sti; 1: pause; mov " STR(G_CELLS) ", %rax\n"
	"cmp " STR(G_CELLS) "+8, %rax; jb 1b\n"
	"out %al, $0x10\n");
GUEST16(start_one,
	"xor %ax, %ax; mov %ax, %ds; lock incl %ds:(" STR(G_CELLS) "); out %al, $0x11\n");

TEST_SECONDS(start_many, 120)
{
	struct kvm_mp_state mp = { KVM_MP_STATE_UNINITIALIZED };
	struct vm vm, vcpus[MAX_VCPUS];

	smp_vm(&vm, vcpus, MAX_VCPUS, start_all, start_all_end);
	memcpy(vm.mem + 0x32000, start_one, start_one_end - start_one);
	vm_cells(&vm)[1] = MAX_VCPUS - 1;
	for (unsigned int i = 1; i < MAX_VCPUS; i++)
		OK(ioctl(vcpus[i].vcpu, KVM_SET_MP_STATE, &mp));
	run_all(vcpus, MAX_VCPUS);
	CHECK_EQ(vm_cells(&vm)[0], MAX_VCPUS - 1);
}

/* Address of a symbol of the host kernel's. */
static uint64_t symbol(const char *name)
{
	FILE *f = fopen("/proc/kallsyms", "r");
	uint64_t found = 0;
	char line[512];

	REQUIRE(f);
	while (!found && fgets(line, sizeof(line), f)) {
		unsigned long long at;
		char which[256];

		if (sscanf(line, "%llx %*c %255s", &at, which) == 2 && !strcmp(which, name))
			found = at;
	}
	fclose(f);
	if (!found)
		skip("no symbol %s", name);
	return found;
}

/* Reads the host kernel's memory. */
static void kernel_read(uint64_t from, void *to, size_t bytes)
{
	int fd = OK(open("/proc/kcore", O_RDONLY));
	Elf64_Phdr part;
	Elf64_Ehdr head;

	REQUIRE(pread(fd, &head, sizeof(head), 0) == sizeof(head));
	for (unsigned int i = 0; i < head.e_phnum; i++) {
		REQUIRE(pread(fd, &part, sizeof(part), head.e_phoff + i * sizeof(part)) == sizeof(part));
		if (part.p_type == PT_LOAD && from >= part.p_vaddr && from - part.p_vaddr < part.p_memsz) {
			REQUIRE(pread(fd, to, bytes, part.p_offset + (from - part.p_vaddr)) == (ssize_t)bytes);
			close(fd);
			return;
		}
	}
	DIE("%#llx is not in /proc/kcore", (unsigned long long)from);
}

GUEST64(count_up,
	"sti; 1: incq " STR(G_CELLS) "; cmpq $0, " STR(G_CELLS) "+8; je 1b; hlt\n");

static void *run_on_cpu1(void *argument)
{
	struct vm *vm = argument;
	cpu_set_t cpu;

	CPU_ZERO(&cpu);
	CPU_SET(1, &cpu);
	REQUIRE(!sched_setaffinity(0, sizeof(cpu), &cpu));
	vm_expect(vm, KVM_EXIT_HLT);
	return NULL;
}

/*
 * Where the host needs it (VMSCAPE), a CPU on which a guest has run does not come back to user space without an IBPB.
 * The bed has been booted with vmscape=force and two CPUs.
 */
TEST_NAMED(ibpb_before_user)
{
	uint64_t flag = symbol("x86_ibpb_exit_to_user"), offsets = symbol("__per_cpu_offset"), offset;
	pthread_t thread;
	bool set = false;
	cpu_set_t cpu;
	struct vm vm;

	CPU_ZERO(&cpu);
	CPU_SET(0, &cpu);
	REQUIRE(!sched_setaffinity(0, sizeof(cpu), &cpu));
	kernel_read(offsets + 8, &offset, sizeof(offset));
	VM_NEW_LONG(&vm, count_up);
	REQUIRE(!pthread_create(&thread, NULL, run_on_cpu1, &vm));
	while (!vm_cells(&vm)[0])
		usleep(1000);
	/* Ticks of the host end stays; other programs of that CPU take the flag down again. */
	for (int i = 0; i < 1000 && !set; i++) {
		usleep(2000);
		kernel_read(flag + offset, &set, sizeof(set));
	}
	CHECK(set);
	vm_cells(&vm)[1] = 1;
	REQUIRE(!pthread_join(thread, NULL));
}
