// SPDX-License-Identifier: GPL-2.0
/* Which memory an assigned device reaches, and what becomes known of accesses that the IOMMU refuses. */
#define _GNU_SOURCE
#include "assign.h"
#include <sched.h>
#include <time.h>

/* Slots come, move and go while the device is there. */
TEST(slots)
{
	struct address address = edu();
	uint8_t *extra = mmap(NULL, 4 * MIB, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	uint8_t *rom = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uint8_t *hole = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	volatile uint8_t *bar;
	struct vm vm;
	int device;

	vm_init(&vm, 4 * MIB);
	device = assign(&vm, &address);
	bar = map_bar(device, 0);
	set_master(device, true);
	memset(vm.mem, 0x55, PAGE);
	dma(bar, 0, 4096, false);
	/* The device does not reach an address without slot. */
	dma(bar, 0x8000000, 16, true);
	CHECK_EQ(extra[0], 0);
	vm_slot(&vm, 2, 0, 0x8000000, 4 * MIB, extra);
	CHECK_EQ(info_of(device).pinned, 8 * MIB);
	dma(bar, 0x8000000, 16, true);
	CHECK_EQ(extra[0], 0x55);
	dma(bar, 0x8000000 + 4 * MIB - 16, 16, true);
	CHECK_EQ(extra[4 * MIB - 1], 0x55);
	/* Past its end; the last page is in, the next is not. */
	memset(extra, 0, 4 * MIB);
	dma(bar, 0x8000000 + 4 * MIB, 16, true);
	/* Moved by less than its size. */
	vm_slot(&vm, 2, 0, 0x8200000, 4 * MIB, extra);
	dma(bar, 0x8000000, 16, true);
	CHECK_EQ(extra[0], 0);
	dma(bar, 0x8200000, 16, true);
	CHECK_EQ(extra[0], 0x55);
	memset(extra, 0, 4 * MIB);
	/* With a log of what is written. */
	vm_slot(&vm, 2, KVM_MEM_LOG_DIRTY_PAGES, 0x8200000, 4 * MIB, extra);
	dma(bar, 0x8200000, 16, true);
	CHECK_EQ(extra[0], 0x55);
	memset(extra, 0, 4 * MIB);
	vm_slot(&vm, 2, 0, 0x8200000, 0, extra);
	CHECK_EQ(info_of(device).pinned, 4 * MIB);
	dma(bar, 0x8200000, 16, true);
	CHECK_EQ(extra[0], 0);
	/* In mid-transfer: it goes, or it is lost, but not later than the ioctl's return. */
	vm_slot(&vm, 2, 0, 0x8000000, 4 * MIB, extra);
	dma_start(bar, 0x8000000, 4096, true);
	vm_slot(&vm, 2, 0, 0x8000000, 0, extra);
	memset(extra, 0x99, 4 * MIB);
	usleep(200000);
	for (unsigned int i = 0; i < 4 * MIB; i++)
		if (extra[i] != 0x99)
			DIE("a write landed after the slot was gone");
	/* Read-only memory takes no DMA. */
	vm_slot(&vm, 3, KVM_MEM_READONLY, 0x9000000, PAGE, rom);
	dma(bar, 0x9000000, 16, true);
	CHECK_EQ(rom[0], 0);
	/* The window of messages, and memory that is not there. */
	CHECK_ERRNO(try_slot(vm.fd, 4, 0, 0xfee00000, PAGE, extra), EINVAL);
	CHECK_ERRNO(try_slot(vm.fd, 4, 0, 0xfed00000, 2 * MIB, extra), EINVAL);
	OK(munmap(hole + PAGE, PAGE));
	CHECK_ERRNO(try_slot(vm.fd, 4, 0, 0xa000000, 2 * PAGE, hole), EFAULT);
	CHECK_EQ(info_of(device).pinned, 4 * MIB);
	OK(try_slot(vm.fd, 4, 0, 0xa000000, PAGE, hole));
	/* User memory that goes away stays the device's, until the slot goes. */
	OK(munmap(hole, PAGE));
	dma(bar, 0xa000000, 16, true);
	OK(try_slot(vm.fd, 4, 0, 0xa000000, 0, hole));
	dma(bar, 0xa000000, 16, true);
	close(device);
	/* Without a device nothing is reserved. */
	munmap((void *)bar, MIB);
	OK(try_slot(vm.fd, 4, 0, 0xfee00000, PAGE, extra));
	check_refused(vm.fd, &address, EINVAL, "0xfee00000");
}

static uint64_t dma_faults_of_vm(const struct vm *vm)
{
	int fd = OK(ioctl(vm->fd, KVM_GET_STATS_FD, NULL));
	struct kvm_stats_header h;
	uint64_t value = ~0ull;
	char buffer[512];

	REQUIRE(pread(fd, &h, sizeof(h), 0) == sizeof(h));
	for (unsigned int i = 0; i < h.num_desc; i++) {
		struct kvm_stats_desc *d = (struct kvm_stats_desc *)buffer;
		size_t bytes = sizeof(*d) + h.name_size;

		REQUIRE(bytes < sizeof(buffer));
		REQUIRE(pread(fd, buffer, bytes, h.desc_offset + i * bytes) == (ssize_t)bytes);
		if (!strcmp(d->name, "dma_faults"))
			REQUIRE(pread(fd, &value, 8, h.data_offset + d->offset) == 8);
	}
	close(fd);
	return value;
}

/*
 * What a device is refused is logged with device, address and direction: by rvmm, once per burst and counted, where
 * the IOMMU's driver tells it, else by the kernel, ten lines in five seconds. (Intel's driver never tells; QEMU's
 * amd-iommu marks refused DMA as refused interrupts and leaves the address out, so Linux's driver for it does not
 * either.)
 */
TEST(refused_dma)
{
	struct address address = edu();
	unsigned int attempts = 0, found = 0;
	struct rvmm_device_info info;
	bool intel = !access("/sys/class/iommu/dmar0", F_OK);
	volatile uint8_t *bar;
	char text[64];
	int device, log;
	struct vm vm;

	vm_init(&vm, 4 * MIB);
	device = assign(&vm, &address);
	bar = map_bar(device, 0);
	set_master(device, true);
	CHECK_EQ(info_of(device).dma_faults, 0);
	CHECK_EQ(dma_faults_of_vm(&vm), 0);
	log = log_open();
	/* The limit may have been reached by what was before. */
	while (!found && attempts < 80) {
		dma(bar, 0x41234000, 64, ++attempts % 2);
		usleep(10000);
		snprintf(text, sizeof(text), intel ? "DMA %s" : "IO_PAGE_FAULT", attempts % 2 ? "Write" : "Read");
		found = log_lines(log, address.name, text);
	}
	info = info_of(device);
	CHECK_EQ(dma_faults_of_vm(&vm), info.dma_faults);
	if (!info.dma_faults) {
		note("the driver of this IOMMU tells nobody; in the log after %u attempts", attempts);
		/* One access of QEMU's amd-iommu is several events. */
		CHECK(found >= 1 && found <= 10);
		CHECK_EQ(info.dma_fault_address, 0);
	} else {
		CHECK_EQ(info.dma_faults, attempts);
		CHECK_EQ(info.dma_fault_address & ~(PAGE - 1), 0x41234000);
		CHECK_EQ(info.dma_fault_flags, attempts % 2 ? RVMM_DMA_FAULT_WRITE : 0);
	}
	close(log);
}

/* A guest that has its device refused as often as it can does not flood the log. */
TEST(refused_dma_flood)
{
	struct address nvme;
	unsigned long before;
	volatile uint8_t *bar;
	struct timespec begin, end;
	unsigned int lines;
	int device, log;
	struct vm vm;

	edu();
	if (!find_device(NVME_VENDOR, NVME_DEVICE, &nvme))
		skip("no nvme device");
	bind_device(&nvme);
	vm_init(&vm, 4 * MIB);
	device = assign(&vm, &nvme);
	bar = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, device, info_of(device).regions[0].offset);
	REQUIRE(bar != MAP_FAILED);
	set_master(device, true);
	log = log_open();
	before = fault_interrupts();
	clock_gettime(CLOCK_MONOTONIC, &begin);
	/* Queues where there is no memory; every command is one that the controller cannot fetch. */
	for (unsigned int i = 0; i < 500; i++) {
		write32(bar, 0x14, 0);
		while (read32(bar, 0x1c) & 1)
			sched_yield();
		write32(bar, 0x24, 15 << 16 | 15);
		write32(bar, 0x28, 0x40000000);
		write32(bar, 0x2c, 0);
		write32(bar, 0x30, 0x40001000);
		write32(bar, 0x34, 0);
		write32(bar, 0x14, 6 << 16 | 4 << 20 | 1);
		while (!(read32(bar, 0x1c) & 3))
			sched_yield();
		write32(bar, 0x1000, 1);
		/* Until it has given up: CSTS.CFS. */
		for (unsigned int n = 0; n < 100000 && !(read32(bar, 0x1c) & 2); n++)
			sched_yield();
		CHECK(read32(bar, 0x1c) & 2);
	}
	clock_gettime(CLOCK_MONOTONIC, &end);
	usleep(100000);
	lines = log_lines(log, "", "");
	note("%llu faults counted, %lu interrupts, %u lines in %ld s", (unsigned long long)info_of(device).dma_faults,
	     fault_interrupts() - before, lines, end.tv_sec - begin.tv_sec);
	if (!access("/sys/class/iommu/dmar0", F_OK))
		CHECK(fault_interrupts() - before >= 400);
	CHECK(lines <= 24 + 12 * (end.tv_sec - begin.tv_sec) / 5);
	close(log);
	close(device);
	give_back(&nvme);
}
