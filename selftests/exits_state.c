// SPDX-License-Identifier: GPL-2.0
/*
 * What user space finds at an exit and may do there: whether the instruction is complete, and what becomes of it when
 * registers are set, or all of the state is moved to another VM. The table holds for KVM as well.
 */
#define _GNU_SOURCE
#include "vm.h"

/*
 * Registers at the start: RBX G_MMIO, RCX 3, RDX the port, RSI G_DATA, RDI G_MMIO + 8 or, for what reads a device,
 * G_DATA + 0x800. RBP is the edge of two pages of the device.
 */
#define PORT 0x10
#define START_RAX 0x1122334455667788ull
#define ANSWER 0x5152535455565758ull
#define ELSEWHERE (G_CODE + 0x100)

GUEST64(s_out, "outb %al, $" STR(PORT) "; hlt\n");
GUEST64(s_in, "inb $" STR(PORT) ", %al; hlt\n");
GUEST64(s_store, "mov %rax, (%rbx); hlt\n");
GUEST64(s_load, "mov (%rbx), %rax; hlt\n");
GUEST64(s_add, "add %eax, (%rbx); hlt\n");
GUEST64(s_xchg, "xchg %eax, (%rbx); hlt\n");
GUEST64(s_cmpxchg, "lock cmpxchg %ecx, (%rbx); hlt\n");
GUEST64(s_pop, "popq (%rbx); hlt\n");
GUEST64(s_push, "pushq (%rbx); hlt\n");
GUEST64(s_store2, "mov %rax, -3(%rbp); hlt\n");
GUEST64(s_load2, "mov -3(%rbp), %rax; hlt\n");
GUEST64(s_stos, "stosl; hlt\n");
GUEST64(s_movs, "movsl; hlt\n");
GUEST64(s_rep_stos, "rep stosl; hlt\n");
GUEST64(s_lods, "mov %rbx, %rsi; rep lodsl; hlt\n");
GUEST64(s_outs, "outsb; hlt\n");
GUEST64(s_rep_outs, "rep outsb; hlt\n");
GUEST64(s_ins, "insb; hlt\n");
GUEST64(s_rep_ins, "rep insb; hlt\n");
GUEST64(s_elsewhere, "mov $0x77, %r15d; hlt\n");

struct kind {
	const char *name;
	const unsigned char *code, *end;
	unsigned int at;	/* the exit that is looked at, from 0 on */
	bool input;		/* RDI points to memory */
	bool done;		/* the instruction, or an iteration of it, is complete */
	unsigned int start;	/* where the instruction is */
	unsigned int rip;	/* RIP at the exit */
	int64_t rcx, rsi, rdi, rsp;	/* what the registers have changed by */
	const char *rest;	/* the exits that follow */
	const char *again;	/* the exits that follow when RIP is set to the start */
	const char *moved;	/* the exits of another VM that takes the state over */
	const char *elsewhere;	/* the exits that follow when RIP is set to another instruction */
};

#define CODE(name) #name, name, name##_end
static const struct kind kinds[] = {
	{ CODE(s_out), .rest = "", .again = "", .moved = "o", .elsewhere = "" },
	{ CODE(s_in), .rest = "", .again = "", .moved = "i", .elsewhere = "" },
	{ CODE(s_store), .done = true, .rip = 3, .rest = "", .again = "W", .moved = "", .elsewhere = "" },
	{ CODE(s_load), .rest = "", .again = "", .moved = "R", .elsewhere = "" },
	{ CODE(s_add), .rest = "W", .again = "W", .moved = "RW", .elsewhere = "" },
	{ CODE(s_add), .at = 1, .done = true, .rip = 2, .rest = "", .again = "RW", .moved = "", .elsewhere = "" },
	{ CODE(s_xchg), .rest = "W", .again = "W", .moved = "RW", .elsewhere = "" },
	{ CODE(s_xchg), .at = 1, .done = true, .rip = 2, .rest = "", .again = "RW", .moved = "", .elsewhere = "" },
	{ CODE(s_cmpxchg), .at = 1, .done = true, .rip = 4, .rest = "", .again = "RW", .moved = "", .elsewhere = "" },
	{ CODE(s_pop), .done = true, .rip = 2, .rsp = 8, .rest = "", .again = "W", .moved = "", .elsewhere = "" },
	{ CODE(s_push), .rest = "", .again = "", .moved = "R", .elsewhere = "" },
	{ CODE(s_store2), .done = true, .rip = 4, .rest = "W", .again = "WWW", .moved = "", .elsewhere = "W" },
	{ CODE(s_store2), .at = 1, .done = true, .rip = 4, .rest = "", .again = "WW", .moved = "", .elsewhere = "" },
	{ CODE(s_load2), .rest = "R", .again = "R", .moved = "RR", .elsewhere = "" },
	{ CODE(s_load2), .at = 1, .rest = "", .again = "", .moved = "RR", .elsewhere = "" },
	{ CODE(s_stos), .done = true, .rip = 1, .rdi = 4, .rest = "", .again = "W", .moved = "", .elsewhere = "" },
	{ CODE(s_movs), .done = true, .rip = 1, .rsi = 4, .rdi = 4, .rest = "", .again = "W", .moved = "",
	  .elsewhere = "" },
	{ CODE(s_rep_stos), .done = true, .rcx = -1, .rdi = 4, .rest = "WW", .again = "WW", .moved = "WW",
	  .elsewhere = "" },
	/* Only the count says that it was the last one. */
	{ CODE(s_rep_stos), .at = 2, .done = true, .rcx = -3, .rdi = 12, .rest = "", .again = "",
	  .moved = "", .elsewhere = "" },
	{ CODE(s_lods), .at = 1, .start = 3, .rip = 3, .rcx = -1, .rsi = G_MMIO + 4 - G_DATA, .rest = "R",
	  .again = "R", .moved = "RR", .elsewhere = "" },
	{ CODE(s_outs), .done = true, .rip = 1, .rsi = 1, .rest = "", .again = "o", .moved = "", .elsewhere = "" },
	{ CODE(s_rep_outs), .at = 2, .done = true, .rsi = 3, .rcx = -3, .rest = "", .again = "",
	  .moved = "", .elsewhere = "" },
	{ CODE(s_ins), .input = true, .rest = "", .again = "", .moved = "i", .elsewhere = "" },
	{ CODE(s_rep_ins), .at = 2, .input = true, .rest = "", .again = "", .moved = "iii", .elsewhere = "" },
};

enum action {
	NOTHING, SAME_REGS, START_AGAIN, OTHER_RIP, THERE_AND_BACK, SAME_SREGS, SAME_EVENTS, COMPLETED, MOVED, ACTIONS
};

static const char *const action_names[ACTIONS] = {
	"nothing", "GET and SET_REGS", "RIP to the instruction", "RIP elsewhere", "RIP elsewhere and back",
	"GET and SET_SREGS", "GET and SET_VCPU_EVENTS", "immediate_exit", "another VM",
};

static void prepare(struct vm *vm, const struct kind *k)
{
	struct kvm_regs r;

	vm_long(vm, k->code, k->end);
	memcpy(vm->mem + ELSEWHERE, s_elsewhere, s_elsewhere_end - s_elsewhere);
	memset(vm->mem + G_DATA, 0x33, 0x1000);
	memset(vm->mem + G_STACK, 0x44, 8);
	r = vm_regs(vm);
	r.rax = START_RAX;
	r.rbx = G_MMIO;
	r.rbp = G_MMIO + 0x1000;
	r.rcx = 3;
	r.rdx = PORT;
	r.rsi = G_DATA;
	r.rdi = k->input ? G_DATA + 0x800 : G_MMIO + 8;
	r.r15 = 0;
	vm_set_regs(vm, &r);
}

/* Runs on to the next exit, HLT included, and answers it. A letter for each access; 0 at HLT. */
static unsigned int step(struct vm *vm, char *letter)
{
	uint64_t answer = ANSWER;

	*letter = 0;
	switch (vm_run(vm)) {
	case KVM_EXIT_IO:
		*letter = vm->run->io.direction == KVM_EXIT_IO_IN ? 'i' : 'o';
		if (*letter == 'i')
			memset(io_data(vm), 0x5a, vm->run->io.count * vm->run->io.size);
		return vm->run->io.count;
	case KVM_EXIT_MMIO:
		*letter = vm->run->mmio.is_write ? 'W' : 'R';
		if (*letter == 'R')
			memcpy(vm->run->mmio.data, &answer, 8);
		return 1;
	case KVM_EXIT_HLT:
		return 0;
	default:
		DIE("exit %s", exit_name(vm->run->exit_reason));
	}
}

/* To HLT; the accesses on the way. */
static void run_out(struct vm *vm, char *seen, size_t room)
{
	char letter;
	size_t n = 0;

	for (;;) {
		unsigned int count = step(vm, &letter);

		if (!letter)
			break;
		while (count-- && n + 1 < room)
			seen[n++] = letter;
		if (n + 1 >= room)
			DIE("no end");
	}
	seen[n] = 0;
}

static void move_state(struct vm *from, struct vm *to)
{
	struct kvm_vcpu_events e = vm_events(from);
	struct kvm_sregs s = vm_sregs(from);
	struct kvm_regs r = vm_regs(from);

	memcpy(to->mem, from->mem, from->bytes);
	vm_set_sregs(to, &s);
	vm_set_regs(to, &r);
	OK(ioctl(to->vcpu, KVM_SET_VCPU_EVENTS, &e));
}

/* The accesses that follow, and where the guest ends. */
static const char *act(enum action action, const struct kind *k, struct vm *vm, struct vm *other)
{
	struct kvm_vcpu_events e;
	struct kvm_regs r = vm_regs(vm);
	struct kvm_sregs s;
	uint64_t rip = r.rip;

	switch (action) {
	case SAME_REGS:
		vm_set_regs(vm, &r);
		break;
	case START_AGAIN:
		r.rip = G_CODE + k->start;
		vm_set_regs(vm, &r);
		return k->again;
	case OTHER_RIP:
		r.rip = ELSEWHERE;
		vm_set_regs(vm, &r);
		return k->elsewhere;
	case THERE_AND_BACK:
		r.rip = ELSEWHERE;
		vm_set_regs(vm, &r);
		r.rip = rip;
		vm_set_regs(vm, &r);
		break;
	case SAME_SREGS:
		s = vm_sregs(vm);
		vm_set_sregs(vm, &s);
		break;
	case SAME_EVENTS:
		e = vm_events(vm);
		OK(ioctl(vm->vcpu, KVM_SET_VCPU_EVENTS, &e));
		break;
	case MOVED:
		move_state(vm, other);
		return k->moved;
	default:
		break;
	}
	return k->rest;
}

/* With immediate_exit an exit is completed and no other begins, but for what else the instruction asks. */
static void complete(struct vm *vm, const struct kind *k)
{
	int error = vm_complete(vm);

	if (error == EINTR) {
		CHECK_EQ(vm->run->exit_reason != KVM_EXIT_INTR, 1);
		return;
	}
	FAIL("%s: immediate_exit ended by %s", k->name, error ? strerrorname(error) : exit_name(vm->run->exit_reason));
}

static void check(const struct kind *k, enum action action, struct vm *vm, struct vm *other, struct kvm_regs *first)
{
	unsigned int passed = 0;
	const char *want = k->rest;
	struct kvm_regs r;
	char seen[64], letter;
	bool loses = false;

	prepare(vm, k);
	while (passed <= k->at) {
		unsigned int count = step(vm, &letter);

		if (!letter)
			DIE("%s: HLT before exit %u", k->name, k->at);
		passed += count;
	}
	r = vm_regs(vm);
	if (action == NOTHING) {
		note("%s, exit %u", k->name, k->at);
		CHECK_EQ(r.rip - G_CODE, k->rip);
		CHECK_EQ(r.rcx, 3 + k->rcx);
		CHECK_EQ(r.rsi, G_DATA + k->rsi);
		CHECK_EQ(r.rdi, (k->input ? G_DATA + 0x800 : G_MMIO + 8) + k->rdi);
		CHECK_EQ(r.rsp, G_STACK + k->rsp);
		CHECK_EQ(r.r15, 0);
	}
	if (action == COMPLETED) {
		/* What else the instruction asks would be next. */
		if (k->rest[0] && (!k->done || k->rcx == 0))
			goto out;
		complete(vm, k);
		r = vm_regs(vm);
		if (r.rcx == 3)
			CHECK_EQ(r.rip - G_CODE, (unsigned int)(k->end - k->code - 1));
		else
			CHECK(r.rip - G_CODE == k->start || r.rip - G_CODE == k->end - k->code - 1);
	}
	want = act(action, k, vm, other);
	/* KVM loses the register that a load has for its destination, and RIP where it has been moved. */
	loses = !is_rvmm() && !k->done && k->code != s_out && k->code != s_in;
	if (action == MOVED)
		run_out(other, seen, sizeof(seen));
out:
	if (action != MOVED)
		run_out(vm, seen, sizeof(seen));
	else
		run_out(vm, (char[64]) { 0 }, 64);
	if (action == COMPLETED && k->rest[0])
		return;
	if (loses && (action == OTHER_RIP || action == SAME_REGS || action == THERE_AND_BACK))
		return;
	r = vm_regs(action == MOVED ? other : vm);
	if (strcmp(seen, want))
		FAIL("%s, exit %u, %s: then \"%s\", \"%s\" expected", k->name, k->at, action_names[action], seen, want);
	if (action == NOTHING)
		*first = r;
	if (action == OTHER_RIP) {
		CHECK_EQ(r.r15, 0x77);
		CHECK_EQ(r.rip, ELSEWHERE + (s_elsewhere_end - s_elsewhere));
	} else if (action != START_AGAIN && memcmp(&r, first, sizeof(r))) {
		FAIL("%s, exit %u, %s: other registers at the end: RIP %#llx, RAX %#llx, RCX %#llx", k->name, k->at,
		     action_names[action], r.rip, r.rax, r.rcx);
	}
}

TEST(state_at_exits)
{
	struct vm vm, other;
	struct kvm_regs first;

	vm_new(&vm, 1 * MIB);
	vm_new(&other, 1 * MIB);
	for (size_t i = 0; i < ARRAY_SIZE(kinds); i++)
		for (int action = 0; action < ACTIONS; action++)
			check(&kinds[i], action, &vm, &other, &first);
}
