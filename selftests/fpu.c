// SPDX-License-Identifier: GPL-2.0
/* The host's and the guest's x87, SSE, AVX, XCR0 and PKRU stay apart. */
#define _GNU_SOURCE
#include "vm.h"
#include <cpuid.h>
#include <pthread.h>
#include <sched.h>
#include <sys/wait.h>

static bool host_avx(void)
{
	unsigned int a, b, c, d;

	__cpuid(1, a, b, c, d);
	return c & 1 << 28;
}

static bool host_pku(void)
{
	unsigned int a, b, c, d;

	__cpuid_count(7, 0, a, b, c, d);
	return c & 1 << 4;	/* OSPKE */
}

/*
 * KVM_RUN with a pattern in all vector registers, x87, MXCSR and the x87 control word on the way in. Gives back
 * what is there afterwards. Everything in one piece of assembly: the compiler must not use these registers in
 * between.
 */
struct pattern {
	uint8_t vector[16][32];
	uint32_t mxcsr;
	uint16_t control;
	uint16_t status;
	uint64_t st0;
};

static long run_with(int vcpu, const struct pattern *in, struct pattern *out, bool avx)
{
	long result;

#define EACH(f) f(0) f(1) f(2) f(3) f(4) f(5) f(6) f(7) f(8) f(9) f(10) f(11) f(12) f(13) f(14) f(15)
#define LOAD_Y(n) "vmovups 32*" #n "(%%rbx), %%ymm" #n "\n"
#define SAVE_Y(n) "vmovups %%ymm" #n ", 32*" #n "(%%r12)\n"
#define LOAD_X(n) "movups 32*" #n "(%%rbx), %%xmm" #n "\n"
#define SAVE_X(n) "movups %%xmm" #n ", 32*" #n "(%%r12)\n"
#define TAIL(save)									\
	"ldmxcsr 512(%%rbx); fninit; fldcw 516(%%rbx); fildll 520(%%rbx)\n"		\
	"syscall\n"									\
	save										\
	"stmxcsr 512(%%r12); fistpll 520(%%r12); fnstcw 516(%%r12); fnstsw 518(%%r12)\n"	\
	"fninit\n"
	register const struct pattern *a asm("rbx") = in;
	register struct pattern *b asm("r12") = out;

	if (avx)
		asm volatile(EACH(LOAD_Y) TAIL(EACH(SAVE_Y)) "vzeroupper\n"
			     : "=a"(result) : "0"(16), "D"(vcpu), "S"(KVM_RUN), "d"(0), "r"(a), "r"(b)
			     : "rcx", "r11", "memory", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6",
			       "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15", "st");
	else
		asm volatile(EACH(LOAD_X) TAIL(EACH(SAVE_X))
			     : "=a"(result) : "0"(16), "D"(vcpu), "S"(KVM_RUN), "d"(0), "r"(a), "r"(b)
			     : "rcx", "r11", "memory", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6",
			       "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15", "st");
	return result;
}

/*
 * The guest fills its registers from the block at RSI, lets others run (an exit to user space and one to the
 * kernel), and compares. RDI: 1 with AVX. RDX: how often. Ends with HLT; RAX: number of differences.
 */
#define GY_LOAD(n) "vmovups 32*" #n "(%rsi), %ymm" #n "\n"
#define GY_CHECK(n)						\
	"vxorps 32*" #n "(%rsi), %ymm" #n ", %ymm" #n "\n"	\
	"vptest %ymm" #n ", %ymm" #n "; jz 1f; inc %r8\n"	\
	"1:\n"
#define GX_LOAD(n) "movups 32*" #n "(%rsi), %xmm" #n "\n"
#define GX_CHECK(n)						\
	"movups 32*" #n "(%rsi), %xmm15\n"			\
	"pcmpeqb %xmm" #n ", %xmm15; pmovmskb %xmm15, %eax\n"	\
	"cmp $0xffff, %eax; je 1f; inc %r8\n"			\
	"1:\n"
GUEST64(vectors,
	"sti; xor %r8d, %r8d; mov %rdx, %r9; mov %rdi, %r10\n"
	"2: ldmxcsr 512(%rsi); fninit; fldcw 516(%rsi); fildll 520(%rsi)\n"
	"test %r10, %r10; jz 3f\n"
	EACH(GY_LOAD)
	"out %al, $0x10; xor %eax, %eax; cpuid; mov $20000, %ecx; 5: dec %ecx; jnz 5b\n"
	EACH(GY_CHECK)
	"jmp 4f\n"
	"3:\n"
	GX_LOAD(0) GX_LOAD(1) GX_LOAD(2) GX_LOAD(3) GX_LOAD(7) GX_LOAD(8) GX_LOAD(14)
	"out %al, $0x10; xor %eax, %eax; cpuid; mov $20000, %ecx; 5: dec %ecx; jnz 5b\n"
	GX_CHECK(0) GX_CHECK(1) GX_CHECK(2) GX_CHECK(3) GX_CHECK(7) GX_CHECK(8) GX_CHECK(14)
	"4: stmxcsr -8(%rsp); mov -8(%rsp), %eax; cmp 512(%rsi), %eax; je 1f; inc %r8\n1:\n"
	"fistpll -8(%rsp); mov -8(%rsp), %rax; cmp 520(%rsi), %rax; je 1f; inc %r8\n1:\n"
	"fnstcw -8(%rsp); mov -8(%rsp), %ax; cmp 516(%rsi), %ax; je 1f; inc %r8\n1:\n"
	"dec %r9; jnz 2b\n"
	"mov %r8, %rax; hlt\n");

static void fill(struct pattern *p, uint8_t seed)
{
	for (int i = 0; i < 16; i++)
		for (int j = 0; j < 32; j++)
			p->vector[i][j] = seed + i * 32 + j * 7;
	p->mxcsr = seed & 1 ? 0x1f80 : 0x1fc0;
	p->control = seed & 1 ? 0x37f : 0x27f;
	p->st0 = 0x0123456789abcd00 + seed;
}

static void start(struct vm *vm, uint8_t seed, bool avx, unsigned int rounds)
{
	struct kvm_xcrs x = { .nr_xcrs = 1, .xcrs[0].value = 7 };
	struct kvm_sregs s;
	struct kvm_regs r;

	VM_NEW_LONG(vm, vectors);
	s = vm_sregs(vm);
	if (avx) {
		s.cr4 |= 1 << 18;
		vm_set_sregs(vm, &s);
		OK(ioctl(vm->vcpu, KVM_SET_XCRS, &x));
	}
	fill((struct pattern *)(vm->mem + G_DATA), seed);
	r = vm_regs(vm);
	r.rsi = G_DATA;
	r.rdi = avx;
	r.rdx = rounds;
	vm_set_regs(vm, &r);
}

static void compare(const struct pattern *in, const struct pattern *out, bool avx)
{
	for (int i = 0; i < 16; i++)
		if (memcmp(in->vector[i], out->vector[i], avx ? 32 : 16))
			FAIL("host register %d was changed by KVM_RUN", i);
	CHECK_EQ(out->mxcsr & 0xffc0, in->mxcsr & 0xffc0);
	CHECK_EQ(out->control, in->control);
	CHECK_EQ(out->st0, in->st0);
}

static void isolation(bool avx)
{
	struct pattern in, out;
	struct vm vm;
	uint8_t seed = 1;

	start(&vm, 0x80, avx, 5);
	for (;;) {
		fill(&in, seed++);
		memset(&out, 0, sizeof(out));
		REQUIRE_EQ(run_with(vm.vcpu, &in, &out, avx), 0);
		compare(&in, &out, avx);
		if (vm.run->exit_reason != KVM_EXIT_IO)
			break;
	}
	CHECK_EQ(vm.run->exit_reason, KVM_EXIT_HLT);
	CHECK_EQ(vm_regs(&vm).rax, 0);
	CHECK_EQ(seed, 7);
}

TEST(sse)
{
	isolation(false);
}

TEST(avx)
{
	if (!host_avx())
		skip("no AVX");
	isolation(true);
}

/* Several guests and a busy process that all change registers, on few CPUs. */
static void *guest_thread(void *argument)
{
	struct vm vm;
	bool avx = host_avx();

	start(&vm, (uintptr_t)argument, avx, 30);
	while (vm_run(&vm) == KVM_EXIT_IO)
		sched_yield();
	CHECK_EQ(vm.run->exit_reason, KVM_EXIT_HLT);
	CHECK_EQ(vm_regs(&vm).rax, 0);
	vm_free(&vm);
	return NULL;
}

TEST_SECONDS(preempted, 120)
{
	pthread_t threads[3];

	for (uintptr_t i = 0; i < 3; i++)
		REQUIRE(!pthread_create(&threads[i], NULL, guest_thread, (void *)(0x30 * (i + 1) + i)));
	for (int i = 0; i < 3; i++)
		pthread_join(threads[i], NULL);
}

/* XCR0 is the guest's own: different guests, and none shows on the host. */
GUEST64(xcr0_guest, "1: xor %ecx, %ecx; xgetbv; hlt; jmp 1b\n");

static uint64_t host_xcr0(void)
{
	uint32_t a, d;

	asm volatile("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
	return a | (uint64_t)d << 32;
}

TEST(xcr0)
{
	struct kvm_xcrs x = { .nr_xcrs = 1 };
	struct kvm_sregs s;
	struct vm vm[3];
	uint64_t before;

	if (!host_avx())
		skip("no AVX");
	before = host_xcr0();
	for (int i = 0; i < 3; i++) {
		VM_NEW_LONG(&vm[i], xcr0_guest);
		s = vm_sregs(&vm[i]);
		s.cr4 |= 1 << 18;
		vm_set_sregs(&vm[i], &s);
		x.xcrs[0].value = (uint64_t[]){ 1, 3, 7 }[i];
		OK(ioctl(vm[i].vcpu, KVM_SET_XCRS, &x));
	}
	for (int round = 0; round < 3; round++)
		for (int i = 0; i < 3; i++) {
			vm_expect(&vm[i], KVM_EXIT_HLT);
			CHECK_EQ(vm_regs(&vm[i]).rax, ((uint64_t[]){ 1, 3, 7 }[i]));
			CHECK_EQ(host_xcr0(), before);
		}
}

/* AVX state that the guest's XCR0 does not cover is kept while it is off. */
GUEST64(xcr0_switch,
	"vmovups (%rsi), %ymm3\n"
	"xor %ecx, %ecx; xor %edx, %edx; mov $3, %eax; xsetbv; out %al, $0x10\n"
	"mov $7, %eax; xsetbv; out %al, $0x10; vmovups %ymm3, 64(%rsi); hlt\n");

TEST(xcr0_off_and_on)
{
	struct kvm_xcrs x = { .nr_xcrs = 1, .xcrs[0].value = 7 };
	struct pattern in, out;
	struct kvm_sregs s;
	struct kvm_regs r;
	struct vm vm;

	if (!host_avx())
		skip("no AVX");
	VM_NEW_LONG(&vm, xcr0_switch);
	s = vm_sregs(&vm);
	s.cr4 |= 1 << 18;
	vm_set_sregs(&vm, &s);
	OK(ioctl(vm.vcpu, KVM_SET_XCRS, &x));
	fill((struct pattern *)(vm.mem + G_DATA), 9);
	memset(vm.mem + G_DATA + 64, 0, 32);
	r = vm_regs(&vm);
	r.rsi = G_DATA;
	vm_set_regs(&vm, &r);
	for (int i = 0; i < 3; i++) {
		fill(&in, 0x40 + i);
		REQUIRE_EQ(run_with(vm.vcpu, &in, &out, true), 0);
		compare(&in, &out, true);
	}
	CHECK_EQ(vm.run->exit_reason, KVM_EXIT_HLT);
	CHECK(!memcmp(vm.mem + G_DATA, vm.mem + G_DATA + 64, 32));
}

/* Guest and host each have a PKRU of their own. */
GUEST64(pkru_guest,
	"xor %ecx, %ecx; xor %edx, %edx; mov $0x55555550, %eax; wrpkru; out %al, $0x10\n"
	"rdpkru; mov %eax, %ebx; hlt\n");

static uint32_t rdpkru(void)
{
	uint32_t v;

	asm volatile(".byte 0x0f, 0x01, 0xee" : "=a"(v) : "c"(0) : "rdx");
	return v;
}

static void wrpkru(uint32_t v)
{
	asm volatile(".byte 0x0f, 0x01, 0xef" :: "a"(v), "c"(0), "d"(0));
}

TEST(pkru)
{
	struct kvm_cpuid_entry2 *e;
	struct kvm_sregs s;
	struct vm vm;

	vm_new(&vm, 4 * MIB);
	e = cpuid_entry(supported_cpuid(vm.kvm), 7, 0);
	if (!host_pku() || !e || !(e->ecx & 1 << 3))
		skip("no protection keys");
	VM_LONG(&vm, pkru_guest);
	s = vm_sregs(&vm);
	s.cr4 |= 1 << 22;
	vm_set_sregs(&vm, &s);
	wrpkru(0x15555554);
	vm_expect_out(&vm, 0x10);
	CHECK_EQ(rdpkru(), 0x15555554);
	wrpkru(0x05555554);
	vm_expect(&vm, KVM_EXIT_HLT);
	CHECK_EQ(rdpkru(), 0x05555554);
	CHECK_EQ(vm_regs(&vm).rbx, 0x55555550);
}

/* What a signal handler, a fork and another thread see of the host's registers after a run is theirs. */
TEST(fork_after_run)
{
	struct pattern in, out, again;
	int status;
	struct vm vm;
	pid_t pid;

	start(&vm, 0x22, host_avx(), 3);
	fill(&in, 0x11);
	REQUIRE_EQ(run_with(vm.vcpu, &in, &out, host_avx()), 0);
	pid = fork_child();
	if (pid == 0) {
		/* Another process gets EIO, and no state of the guest. */
		memset(&again, 0, sizeof(again));
		_exit(run_with(vm.vcpu, &in, &again, host_avx()) == -EIO &&
		      !memcmp(in.vector, again.vector, host_avx() ? sizeof(in.vector) : 16) ? 0 : 2);
	}
	REQUIRE(waitpid(pid, &status, 0) == pid);
	CHECK_EQ(status, 0);
	while (vm_run(&vm) == KVM_EXIT_IO)
		;
	CHECK_EQ(vm_regs(&vm).rax, 0);
}
