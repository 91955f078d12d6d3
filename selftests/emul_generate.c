// SPDX-License-Identifier: GPL-2.0
/*
 * Random instructions from the whole opcode map (SDM 2D A): prefixes, opcode, ModRM whose address is in the window, and
 * an immediate of the right length. What is different each time or in each host (RDTSC, CPUID, RDRAND ...) is left out.
 */
#include "emul_random.h"
#include "guest.h"
#include <string.h>

/*
 * What follows opcodes. m: ModRM; b, z: ModRM, then a byte or an immediate of the operand size (at most 4 bytes);
 * i, w, I, v: an immediate of 1 byte, 2, the operand size up to 4 or 8 bytes; e: ENTER's; o: an address; f: a far
 * pointer; j, J: a distance; 3, 4: group 3; x: left out, or a prefix; others nothing. s: nothing, but memory.
 */
static const char one_byte[] =
	"mmmmiIssmmmmiIsx" "mmmmiIssmmmmiIss" "mmmmiIx.mmmmiIx." "mmmmiIx.mmmmiIx."
	"................" "ssssssssssssssss" "ssmmxxxxIzibssss" "jjjjjjjjjjjjjjjj"
	"bzbbmmmmmmmmmmmm" "..........f.ss.." "oooossssiIssssss" "iiiiiiiivvvvvvvv"
	"bbwsmmbzesws.i.s" "mmmmii.smmmmmmmm" "jjjjiiiiJJfj...." "x.xx..34......mm";
static const char two_byte[] =
	"mmmm.........m.b" "mmmmmmmmmmmmmmmm" "mmmmmmmmmmmmmmmm" "xxxx....xxxxxxxx"
	"mmmmmmmmmmmmmmmm" "mmmmmmmmmmmmmmmm" "mmmmmmmmmmmmmmmm" "bbbbmmm.mmmmmmmm"
	"JJJJJJJJJJJJJJJJ" "mmmmmmmmmmmmmmmm" "ssxmbmmmss.mbmmm" "mmmmmmmmmmbmmmmm"
	"mmbmbbbm........" "mmmmmmmmmmmmmmmm" "mmmmmmmmmmmmmmmm" "mmmmmmmmmmmmmmmm";

/* Where a case is made. */
struct maker {
	struct random_insn *insn;
	uint64_t state;
	unsigned int rex, address, operand;	/* bytes of addresses and operands */
};

/* SplitMix64. */
static uint64_t mix(uint64_t x)
{
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
	x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
	return x ^ (x >> 31);
}

static uint64_t next(struct maker *m)
{
	m->state += 0x9e3779b97f4a7c15;
	return mix(m->state);
}

static unsigned int below(struct maker *m, unsigned int n)
{
	return (next(m) >> 16) % n;
}

static bool one_in(struct maker *m, unsigned int n)
{
	return below(m, n) == 0;
}

uint8_t random_byte(uint64_t address)
{
	return mix(address + 0x5eed) >> 8;
}

static void emit(struct maker *m, uint64_t value, unsigned int bytes)
{
	for (; bytes && m->insn->length < 15; bytes--, value >>= 8)
		m->insn->bytes[m->insn->length++] = value;
}

static bool is_long(const struct maker *m)
{
	return m->insn->mode == LONG || m->insn->mode == USER;
}

static bool has_segments(const struct maker *m)
{
	return m->insn->mode == REAL || m->insn->mode == PROT16;
}

/* Address of a place in the window as it is in a data segment. */
static uint64_t in_segment(const struct maker *m, uint64_t offset)
{
	return has_segments(m) ? offset : WINDOW + offset;
}

/*
 * Half of all are on the device, the rest partly or not. KVM takes the address of a nested fault for that of each
 * access at the same place of a page. Where page tables fault nothing is at an entry's place therefore.
 */
static uint32_t place(struct maker *m)
{
	switch (below(m, m->insn->tables ? 6 : 8)) {
	case 7: return 0x1000 - 1 - below(m, 16);
	case 6: return 0x2000 - 1 - below(m, 16);
	case 5: return 0x600 + below(m, 64);
	case 4: return 0x2600 + 16 * below(m, 4);
	case 3: return WINDOW_DEVICE + 0x600 + 16 * below(m, 4);
	default: return WINDOW_DEVICE + 0x600 + below(m, 64);
	}
}

static uint64_t some_value(struct maker *m)
{
	uint64_t x = next(m);

	switch (below(m, 6)) {
	case 0: return x & 0xff;
	case 1: return x & 0x1f;
	case 2: return x | 0xffffffff00000000;
	case 3: return (int64_t)(int8_t)x;
	case 4: return 1ull << (x & 63);
	default: return x;
	}
}

static uint64_t *gpr(struct maker *m, unsigned int n)
{
	struct kvm_regs *r = &m->insn->regs;
	uint64_t *const all[] = {
		(uint64_t *)&r->rax, (uint64_t *)&r->rcx, (uint64_t *)&r->rdx, (uint64_t *)&r->rbx,
		(uint64_t *)&r->rsp, (uint64_t *)&r->rbp, (uint64_t *)&r->rsi, (uint64_t *)&r->rdi,
		(uint64_t *)&r->r8, (uint64_t *)&r->r9, (uint64_t *)&r->r10, (uint64_t *)&r->r11,
		(uint64_t *)&r->r12, (uint64_t *)&r->r13, (uint64_t *)&r->r14, (uint64_t *)&r->r15,
	};

	return all[n & 15];
}

static void registers(struct maker *m)
{
	struct kvm_regs *r = &m->insn->regs;

	for (unsigned int n = 0; n < 16; n++)
		*gpr(m, n) = some_value(m);
	r->rcx = below(m, 6);
	r->rbx = in_segment(m, place(m));
	r->rsi = in_segment(m, place(m));
	r->rdi = in_segment(m, place(m));
	r->rbp = in_segment(m, place(m));
	r->rsp = in_segment(m, 0x2800);
	/* Status flags, the direction, IOPL 0 or 3. */
	r->rflags = 2 | (next(m) & 0x8d5) | (one_in(m, 3) ? 0x400 : 0) | (one_in(m, 2) ? 0x3000 : 0);
}

/* ModRM with memory at `target`: register `adjusted` is given what is missing. */
static void memory16(struct maker *m, unsigned int mod, unsigned int reg)
{
	static const uint8_t base[] = { 3, 3, 5, 5, 6, 7, 5, 3 }, index[] = { 6, 7, 6, 7, 16, 16, 16, 16 };
	unsigned int rm = below(m, 8);
	uint64_t disp = 0, sum;

	if (mod == 1)
		disp = (int8_t)next(m);
	if (mod == 2)
		disp = next(m) & 0xffff;
	emit(m, mod << 6 | reg << 3 | rm, 1);
	if (mod == 0 && rm == 6) {
		emit(m, m->insn->target, 2);
		return;
	}
	sum = m->insn->target - disp;
	if (index[rm] < 16)
		sum -= *gpr(m, index[rm]);
	*gpr(m, base[rm]) = sum & 0xffff;
	emit(m, disp, mod);
}

static void memory(struct maker *m, unsigned int mod, unsigned int reg)
{
	uint64_t target = in_segment(m, m->insn->target), disp = 0, other = 0;
	unsigned int rm = below(m, 8), base = rm | (m->rex & 1) << 3, index = 4, scale = 0;

	emit(m, mod << 6 | reg << 3 | rm, 1);
	if (mod == 1)
		disp = (int8_t)next(m);
	if (mod == 2)
		disp = (int32_t)next(m);
	if (rm == 4) {
		uint8_t sib = next(m);

		base = (sib & 7) | (m->rex & 1) << 3;
		index = (sib >> 3 & 7) | (m->rex & 2) << 2;
		scale = sib >> 6;
		emit(m, sib, 1);
		if (index != 4)
			other = *gpr(m, index) << scale;
		if (mod == 0 && (base & 7) == 5) {
			emit(m, target - other, 4);
			return;
		}
		/* Not the stack pointer where exceptions use the stack. */
		if (base == 4 && !is_long(m)) {
			base = 3;
			m->insn->bytes[m->insn->length - 1] = (sib & 0xf8) | 3;
		}
		/* The same register twice: it is half, or what remains is found where it is. */
		if (index == base) {
			*gpr(m, base) = scale ? 0x100 : (target - disp) / 2;
			emit(m, target - disp, mod == 2 ? 4 : mod);
			return;
		}
	} else if (mod == 0 && rm == 5) {
		/* Relative to the next instruction, wherever that is. */
		emit(m, is_long(m) ? target - m->insn->rip - m->insn->length - 4 : target, 4);
		return;
	}
	*gpr(m, base) = target - disp - other;
	emit(m, disp, mod == 2 ? 4 : mod);
}

/* `kind`: the opcode's letter. */
static void operands(struct maker *m, char kind, unsigned int reg)
{
	unsigned int mod = below(m, 3), z = m->operand < 4 ? m->operand : 4;

	if (strchr("mbz34", kind)) {
		if (one_in(m, 8))
			emit(m, 0xc0 | reg << 3 | below(m, 8), 1);
		else if (m->address == 2)
			memory16(m, mod, reg);
		else
			memory(m, mod, reg);
	}
	switch (kind) {
	case 'b': case 'i': emit(m, next(m), 1); break;
	case 'z': case 'I': emit(m, next(m), z); break;
	case 'w': emit(m, next(m) & 0x3f, 2); break;
	case 'v': emit(m, next(m), m->operand); break;
	case 'e': emit(m, next(m) & 0x3f, 2); emit(m, one_in(m, 2) ? 0 : next(m), 1); break;
	case 'o': emit(m, in_segment(m, m->insn->target), m->address); break;
	case 'f': emit(m, next(m) & 0xff, z); emit(m, one_in(m, 2) ? SEL_CODE16 : next(m), 2); break;
	case 'j': emit(m, next(m), 1); break;
	case 'J': emit(m, next(m) & 0xff, is_long(m) ? 4 : z); break;
	case '3': if (reg < 2) emit(m, next(m), 1); break;
	case '4': if (reg < 2) emit(m, next(m), z); break;
	}
}

/* Of those without memory most are passed over. */
static bool wanted(struct maker *m, char kind)
{
	return kind != 'x' && (strchr("mbz34os", kind) || one_in(m, 4));
}

static bool different_each_time(const uint8_t *op, uint8_t modrm)
{
	unsigned int reg = modrm >> 3 & 7, is_register = modrm >= 0xc0;

	if (op[0] != 0x0f)
		return false;
	switch (op[1]) {
	case 0x01:	/* SWAPGS and RDTSCP; MONITOR, MWAIT; what switches the machine */
		return is_register && (modrm >= 0xf8 || modrm == 0xc8 || modrm == 0xc9);
	case 0xae:	/* FXSAVE, XSAVE, XSAVEOPT: addresses of the last instruction, what is initial */
		return !is_register && (reg == 0 || reg == 4 || reg == 6);
	case 0xc7:	/* RDRAND, RDSEED, RDPID; XSAVEC, XSAVES */
		return is_register ? reg >= 6 : reg == 4 || reg == 5;
	}
	return false;
}

static void opcode(struct maker *m)
{
	struct random_insn *insn = m->insn;
	unsigned int reg = below(m, 8), at, which = below(m, 20);
	bool vex = which == 19 && insn->mode != REAL;
	char kind;

	at = insn->length;
	for (;;) {
		uint8_t op = next(m), map = 1;

		insn->length = at;
		if (vex) {
			/* Without REX, and mostly with nothing in vvvv. */
			uint8_t last = (one_in(m, 3) ? next(m) & 0x7f : 0x78 | (next(m) & 7));

			m->rex = is_long(m) ? below(m, 16) & 7 : 0;
			map = one_in(m, 3) ? 1 + below(m, 3) : 1;
			emit(m, 0xc4, 1);
			emit(m, (~m->rex & 7) << 5 | map, 1);
			emit(m, last, 1);
			kind = map == 1 ? two_byte[op] == 'b' || two_byte[op] == '.' ? two_byte[op] : 'm'
				: map == 3 ? 'b' : 'm';
		} else if (which < 9) {
			kind = one_byte[op];
			if (is_long(m) && (op >> 4 == 4 || op == 0x62 || op == 0xc4 || op == 0xc5 || op == 0xd5))
				continue;
		} else {
			map = which < 16 ? 1 : which < 18 ? 2 : 3;
			kind = map == 1 ? two_byte[op] : map == 2 ? 'm' : 'b';
			emit(m, 0x0f, 1);
			if (map > 1)
				emit(m, map == 2 ? 0x38 : 0x3a, 1);
			/* Those that are emulated. */
			if (map == 2 && one_in(m, 3))
				op = 0xf0 | (op & 1);
		}
		if (!wanted(m, kind))
			continue;
		emit(m, op, 1);
		break;
	}
	/* MOV to and from control and debug registers have no memory. */
	if (!vex && which >= 9 && which < 16 && (insn->bytes[at + 1] & 0xfc) == 0x20) {
		emit(m, 0xc0 | reg << 3 | below(m, 8), 1);
		return;
	}
	at = insn->length;
	if (kind == 's' && one_in(m, 2) && (is_long(m) || !memchr(insn->bytes, 0xf0, at - 1)))
		insn->regs.rsp = in_segment(m, insn->target);
	operands(m, kind, reg);
	if (!vex && which >= 9 && which < 16 && different_each_time(insn->bytes + at - 2, insn->bytes[at])) {
		/* A NOP with an operand instead. */
		insn->bytes[at - 1] = 0x1f;
	}
}

static void prefixes(struct maker *m)
{
	static const uint8_t segments[] = { 0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65 };
	bool wide = is_long(m) || m->insn->mode == PROT32, opsize = one_in(m, 4), addrsize = one_in(m, 8);

	if (one_in(m, 8))
		emit(m, segments[below(m, 6)], 1);
	if (opsize)
		emit(m, 0x66, 1);
	if (one_in(m, 8))
		emit(m, 0xf0, 1);
	if (one_in(m, 4))
		emit(m, one_in(m, 3) ? 0xf2 : 0xf3, 1);
	if (addrsize)
		emit(m, 0x67, 1);
	m->operand = wide != opsize ? 4 : 2;
	m->address = is_long(m) ? (addrsize ? 4 : 8) : wide != addrsize ? 4 : 2;
	if (is_long(m) && one_in(m, 2)) {
		m->rex = below(m, 16);
		emit(m, 0x40 | m->rex, 1);
		if (m->rex & 8)
			m->operand = 8;
	}
}

/* What the operand is: anything, a place in code with or without a selector, a selector. */
static void content(struct maker *m)
{
	struct random_insn *insn = m->insn;
	static const uint16_t selectors[] = {
		0, SEL_CODE64, SEL_DATA, SEL_CODE32, SEL_CODE16, SEL_TSS, SEL_USER_DATA, SEL_USER_CODE64, SEL_DATA16,
		0x7ff0, 0x14,
	};
	uint64_t code = (has_segments(m) ? 0 : G_CODE) + 0x100 + below(m, 0x100);
	uint16_t selector = selectors[below(m, sizeof(selectors) / sizeof(selectors[0]))];
	unsigned int kind = below(m, 8), width = 2u << below(m, 3);

	if (insn->mode == REAL && one_in(m, 2))
		selector = G_CODE >> 4;
	for (unsigned int i = 0; i < sizeof(insn->content); i++) {
		switch (kind) {
		case 0: insn->content[i] = 0; break;
		case 1: insn->content[i] = i & 1 ? selector >> 8 : selector; break;
		case 2: insn->content[i] = i < 8 ? code >> 8 * (i & 7) : 0; break;
		case 3: insn->content[i] = i % width < 8 ? (i < width ? code : selector) >> 8 * (i % width) : 0; break;
		default: insn->content[i] = next(m);
		}
	}
}

void random_insn(struct random_insn *insn, uint64_t seed, uint64_t number)
{
	struct maker m = { .insn = insn, .state = mix(mix(seed + 1) + number) };
	unsigned int n;

	memset(insn, 0, sizeof(*insn));
	n = below(&m, 12);
	insn->mode = n < 2 ? REAL : n < 3 ? PROT16 : n < 6 ? PROT32 : n < 11 ? LONG : USER;
	if (insn->mode >= LONG && one_in(&m, 5)) {
		insn->tables = true;
		insn->all_tables = one_in(&m, 2);
	}
	if (one_in(&m, 24))
		insn->cr0_set = one_in(&m, 2) ? 4 : 8;	/* EM, TS */
	if (one_in(&m, 24))
		insn->cr4_clear = 0x200;		/* OSFXSR */
	insn->target = place(&m);
	insn->rip = (insn->mode == REAL || insn->mode == PROT16 ? 0 : G_CODE) + 0x200;
	if (one_in(&m, 16))
		insn->rip += 0xe00 - 1 - below(&m, 8);
	registers(&m);
	content(&m);
	prefixes(&m);
	opcode(&m);
	insn->regs.rip = insn->rip;
	if (!is_long(&m))
		for (n = 0; n < 16; n++)
			*gpr(&m, n) &= n < 8 ? 0xffffffff : 0;
}
