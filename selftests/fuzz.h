/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The parts of the fuzzer. What a thread does in a step follows from the seed, the thread's number and the step's: a
 * step draws from a generator of its own, so that it chooses the same whatever those before it came to. What it meets
 * depends on the other threads.
 */
#ifndef FUZZ_H
#define FUZZ_H

#include "vm.h"

#define FUZZ_VMS 3
#define FUZZ_VCPUS 8
#define FUZZ_FILES 16
#define FUZZ_EVENTS 8
#define FUZZ_MEM (8u << 20)

/* What all threads of an episode share. Descriptors are exchanged, closed and used at the same time. */
struct world {
	int kvm, sockets[2], memfd, uffd;
	int vms[FUZZ_VMS], vcpus[FUZZ_VCPUS], files[FUZZ_FILES], events[FUZZ_EVENTS];
	struct kvm_run *runs[FUZZ_VCPUS];
	uint8_t *mem;
	bool rvmm;
};

extern struct world world;

/* Of all episodes; in memory that their processes share. */
struct fuzz_counts {
	unsigned long ioctls, done /* of them without an error */, entries, host, episodes, killed, covered;
};

extern struct fuzz_counts *counts;

static inline void count(unsigned long *what)
{
	__atomic_fetch_add(what, 1, __ATOMIC_RELAXED);
}

/* --- numbers --- */

extern __thread uint64_t rng;

static inline uint64_t rnd(void)
{
	rng ^= rng << 13;
	rng ^= rng >> 7;
	rng ^= rng << 17;
	return rng;
}

static inline uint32_t below(uint32_t n)
{
	return (rnd() >> 11) % n;
}

/* Begins the step of that number. */
void rng_step(uint64_t seed, uint32_t thread, uint64_t step);
/* Values at which something happens. */
uint64_t value(void);
void fill(void *p, size_t n);
void mutate(void *p, size_t n);
uint32_t some_msr(void);
/* Room of this thread's. */
uint8_t *scratch(void);

/* --- the parts --- */

/* ioctl(), counted. */
int fuzz_ioctl(int fd, unsigned long cmd, void *arg);
/* An ioctl of the ABI with arguments that lead far into it, mostly. */
void ioctl_step(void);
/* A VM, or a vCPU of some VM, takes a place; what was there is closed. */
void make_vm(int place);
void make_vcpu(int place);
/* Something else has become of a file: it takes a place as well. */
void keep_file(int fd);

/*
 * Code does the same each time, and what KVM does as well: no time, no device in memory (tools/emulation compares
 * that), no hypercall of the other vendor's, which KVM patches at IP whatever the base of CS, no bytes that may be
 * anything.
 */
extern bool fuzz_tame;
/* Registers, tables and code of a guest in some mode. */
void guest_state(int vcpu);
/* Code somewhere in guest memory. */
void plant(void);
/* KVM_RUN, several times, from such a state. */
void guest_step(void);

/* The host changes its mind about memory, files and processes. */
void host_step(void);
/* Brings what userfaultfd tells of; until it is told to stop. */
void *bring_pages(void *stop);

/* A machine's state by all that reads it, mutated, in another machine, which runs. */
void snapshot_step(void);

/* A process that troubles the host until it is ended; has this process's memory be short. */
pid_t trouble_begin(void);
void trouble_end(pid_t pid);
void trouble_me(void);

/*
 * Where the kernel has KCOV: the places of the module that threads come to. Room for them before processes fork; a
 * thread begins, and collects after each step, because the kernel's buffer takes nothing more when it is full.
 */
void cover_room(void);
void cover_begin(void);
void cover_collect(void);
/* After all: how many there were, and the list, if FUZZ_COVERAGE names a file for it. */
void cover_report(void);

#endif
