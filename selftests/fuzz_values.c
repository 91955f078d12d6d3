// SPDX-License-Identifier: GPL-2.0
/* What the fuzzer draws. */
#include "fuzz.h"

__thread uint64_t rng;

void rng_step(uint64_t seed, uint32_t thread, uint64_t step)
{
	/* splitmix64 */
	uint64_t z = seed * 0x9e3779b97f4a7c15ull + thread * 0xd1342543de82ef95ull + step * 0xbf58476d1ce4e5b9ull;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ z >> 27) * 0x94d049bb133111ebull;
	rng = (z ^ z >> 31) | 1;
	rnd();
}

uint64_t value(void)
{
	switch (below(14)) {
	case 0: return 0;
	case 1: return 1;
	case 2: return ~0ull;
	case 3: return 1ull << below(64);
	case 4: return (1ull << below(64)) - 1;
	case 5: return 0x7ffffffff000ull + (below(3) - 1) * 0x1000ll;
	case 6: return 0xffff800000000000ull;
	case 7: return (uint64_t)below(FUZZ_MEM) & ~0xfffull;
	case 8: return (below(2) ? 0xfee00000 : 0xfec00000) + below(0x1000);
	case 9: return below(256);
	case 10: return (uintptr_t)world.mem + below(FUZZ_MEM);
	case 11: return 0xffffffff;
	case 12: return 0x80000000ull << below(2) * 31;
	default: return rnd();
	}
}

void fill(void *p, size_t n)
{
	uint8_t *b = p;

	switch (below(3)) {
	case 0:
		for (size_t i = 0; i < n; i++)
			b[i] = rnd();
		break;
	case 1:
		memset(b, 0, n);
		for (int i = 0; i < 3; i++)
			b[below(n)] = rnd();
		break;
	default:
		for (size_t i = 0; i + 8 <= n; i += 8) {
			uint64_t v = value();

			memcpy(b + i, &v, 8);
		}
	}
}

void mutate(void *p, size_t n)
{
	uint8_t *b = p;

	for (int k = 1 + below(4); k; k--) {
		size_t at = below(n);
		uint64_t v = value();

		switch (below(5)) {
		case 0:
			b[at] ^= 1 << below(8);
			break;
		case 1:
			b[at] = v;
			break;
		case 2:
			at &= ~7ul;
			if (at + 8 <= n)
				memcpy(b + at, &v, 8);
			break;
		case 3:
			at &= ~1ul;
			if (at + 2 <= n)
				memcpy(b + at, &v, 2);
			break;
		default:
			at &= ~3ul;
			if (at + 4 <= n)
				memcpy(b + at, &v, 4);
		}
	}
}

uint32_t some_msr(void)
{
	static const uint32_t msrs[] = {
		0, 1, 0x10, 0x11, 0x12, 0x17, 0x1b, 0x2a, 0x3a, 0x3b, 0x48, 0x49, 0x79, 0x8b, 0xce, 0xfe, 0x10a,
		0x10b, 0x140, 0x174, 0x175, 0x176, 0x179, 0x17a, 0x17b, 0x1a0, 0x1d9, 0x1fc, 0x200, 0x201, 0x20f,
		0x250, 0x268, 0x277, 0x2ff, 0x345, 0x400, 0x401, 0x403, 0x47f, 0x480, 0x4d0, 0x6e0, 0x800, 0x802,
		0x803, 0x808, 0x80b, 0x80d, 0x80f, 0x810, 0x828, 0x82f, 0x830, 0x832, 0x835, 0x838, 0x839, 0x83e,
		0x83f, 0xda0, 0x4b564d00, 0x4b564d01, 0x4b564d02, 0x4b564d03, 0x4b564d04, 0x4b564d05, 0x4b564d06,
		0x4b564d07, 0x40000000, 0x40000001, 0x40000002, 0x40000003, 0x40000020, 0x40000021, 0x40000070,
		0x40000071, 0x40000073, 0x40000080, 0x40000082, 0x40000083, 0x40000084, 0x40000090, 0x40000091,
		0x400000b0, 0x400000b1, 0x40000100, 0x40000105, 0xc0000080, 0xc0000081, 0xc0000082, 0xc0000083,
		0xc0000084, 0xc0000100, 0xc0000101, 0xc0000102, 0xc0000103, 0xc0000104, 0xc0010015, 0xc001001f,
		0xc0010058, 0xc0010114, 0xc0010117, 0xc001011f, 0xc0011029,
	};

	return below(12) ? msrs[below(ARRAY_SIZE(msrs))] : msrs[below(ARRAY_SIZE(msrs))] + below(64);
}

uint8_t *scratch(void)
{
	static __thread uint8_t room[16384] __attribute__((aligned(16)));

	return room;
}
