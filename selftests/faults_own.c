// SPDX-License-Identifier: GPL-2.0
/* What rvmm has beyond KVM: going back, forks, memory that is missing, the recorder. */
#define _GNU_SOURCE
#include "whole.h"
#include "faults.h"

GUEST64(writer, "xor %ebp, %ebp\n" WRITE_PAGES "mov %ebp, %eax; out %eax, $0x11; hlt\n");
ENTERS(writer)

static void need(unsigned int extension)
{
	int kvm = device_open();

	if (!has_extension(kvm, extension))
		skip("KVM does not have it");
	close(kvm);
}

static long set_point(void)
{
	struct rvmm_reset_point point = { .pages = 200 };

	return ioctl(w.vm.fd, RVMM_RESET_POINT, &point);
}

static long reset(void)
{
	struct rvmm_reset r;

	return ioctl(w.vm.fd, RVMM_RESET, &r);
}

static long touch(void)
{
	struct rvmm_touch t = { .gpa = G_PAGES, .size = 3 * PAGE };

	return ioctl(w.vm.fd, RVMM_TOUCH, &t);
}

static long no_point(void)
{
	struct rvmm_reset_point point = { 0 };

	return ioctl(w.vm.fd, RVMM_RESET_POINT, &point);
}

/* The guest adds to pages that a reset puts back: it always says the same. */
static long run_writer(void)
{
	long result = run();

	if (!result)
		CHECK_EQ(w.said, 0);
	return result;
}

TEST_SECONDS(resets, 1800)
{
	need(RVMM_CAP_RESET_POINT);
	EACH_FAILS(MACHINE, SPARED(enter_writer), STEP(set_point), STEP(run_writer), STEP(reset), STEP(run_writer),
		   STEP(reset), STEP(touch), STEP(run_writer), STEP(reset), STEP(set_point), STEP(no_point));
}

static long fork_vm(void)
{
	return w.fd[0] = ioctl(w.vm.fd, RVMM_FORK, 0);
}

static long map_fork(void)
{
	return map_file(w.fd[0], 4 * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE, (off_t)w.vm.mem);
}

/* The child: fd[1] is the VM, vcpu2 its vCPU. */
static long create_child(void)
{
	return w.fd[1] = ioctl(w.vm.kvm, KVM_CREATE_VM, 0);
}

static long child_slot(void)
{
	return try_slot(w.fd[1], 0, 0, 0, 4 * MIB, w.map);
}

static long child_vcpu(void)
{
	w.vcpu2 = ioctl(w.fd[1], KVM_CREATE_VCPU, 0);
	if (w.vcpu2 >= 0)
		set_supported_cpuid(w.vm.kvm, w.vcpu2);
	return w.vcpu2;
}

static long become(void)
{
	return ioctl(w.fd[1], RVMM_BECOME, w.fd[0]);
}

static long run_child(void)
{
	return ioctl(w.vcpu2, KVM_RUN, 0);
}

TEST_SECONDS(forks, 1800)
{
	need(RVMM_CAP_FORK);
	EACH_FAILS(MACHINE, SPARED(enter_writer), STEP(fork_vm), STEP(map_fork), SPARED(create_child),
		   STEP(child_slot), SPARED(child_vcpu), STEP(become), STEP(run_child), STEP(run_writer),
		   STEP(become), STEP(run_child));
}

/* --- memory that is missing ----------------------------------------------------------------------------------- */

static long enable_missing(void)
{
	return enable_cap(w.vm.fd, RVMM_CAP_MISSING, 1);
}

static long missing_slot(void)
{
	return try_slot(w.vm.fd, 1, RVMM_MEM_MISSING, 0x800000, 4 * MIB, w.vm.mem + 8 * MIB);
}

static long missing_queue(void)
{
	return w.fd[0] = ioctl(w.vm.fd, RVMM_MISSING_QUEUE, 0);
}

static long resolve(void)
{
	struct rvmm_missing_range range = { .gpa = 0x800000, .size = 2 * MIB };

	return ioctl(w.fd[0], RVMM_MISSING_RESOLVE, &range);
}

static long record_touches(void)
{
	return ioctl(w.vm.fd, RVMM_RECORD_TOUCHES, 1000);
}

static long get_touches(void)
{
	static uint64_t pages[1000];
	struct rvmm_touches t = { .count = 1000, .pages = (uintptr_t)pages };

	return ioctl(w.vm.fd, RVMM_GET_TOUCHES, &t);
}

GUEST64(reads, "mov 0x800000, %eax; movl $3, 0x900000; mov $9, %eax; out %eax, $0x11; hlt\n");
ENTERS(reads)

/* A call of it is made a second time where the first one has failed. */
static long record_touches_once(void)
{
	long result = record_touches();

	return result && errno == EEXIST ? 0 : result;
}

TEST_SECONDS(missing, 1800)
{
	need(RVMM_CAP_MISSING);
	EACH_FAILS(MACHINE, STEP(enable_missing), STEP(missing_slot), STEP(missing_queue), STEP(record_touches_once),
		   STEP(resolve), SPARED(enter_reads), STEP(run), STEP(get_touches));
}

/* --- the recorder ------------------------------------------------------------------------------------------------ */

static long record(void)
{
	struct rvmm_record_ring ring = { .records = 4096 };

	return w.fd[0] = ioctl(w.vm.vcpu, RVMM_RECORD, &ring);
}

static long map_record(void)
{
	return map_file(w.fd[0], 4096 + 4096 * 64, PROT_READ, MAP_SHARED, 0);
}

static long consumed(void)
{
	uint64_t below = 1;

	return ioctl(w.fd[0], RVMM_RECORD_CONSUMED, &below);
}

TEST_SECONDS(recorder, 1200)
{
	need(RVMM_CAP_RECORD);
	EACH_FAILS(MACHINE, STEP(record), STEP(map_record), SPARED(enter_writer), STEP(run), STEP(consumed));
}
