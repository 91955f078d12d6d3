// SPDX-License-Identifier: GPL-2.0
/*
 * Devices handed to a guest: QEMU's edu device behind an IOMMU (docs/specs/edu.rst of QEMU). Wants root, and the bed
 * "iommu"; the tests are skipped where there is no such device.
 *
 * Here are the device's life and what user space may do with it; assign_irq.c, assign_dma.c, assign_log.c,
 * assign_attack.c and assign_refuse.c hold the other tests, assign_device.c what they share.
 */
#define _GNU_SOURCE
#include "assign.h"
#include <signal.h>
#include <sys/wait.h>

GUEST64(edu_guest,
	"mov $" STR(G_BAR) ", %ebx\n"
	"mov 0x00(%rbx), %eax; out %eax, $0x10\n"
	"movl $0x12345678, 0x04(%rbx); mov 0x04(%rbx), %eax; out %eax, $0x11\n"
	/* 10!, with an interrupt at the end. */
	"mov $0xfee00000, %ecx; movl $0x1ff, 0xf0(%rcx)\n"
	"movl $0x80, 0x20(%rbx); movl $10, 0x08(%rbx)\n"
	"7: cli; cmpq $1, " STR(G_LOG) "; jae 8f; sti; hlt; jmp 7b\n8: cli\n"
	"mov 0x24(%rbx), %eax; mov %eax, 0x64(%rbx); out %eax, $0x12\n"
	"mov 0x08(%rbx), %eax; out %eax, $0x13\n"
	/* 4 KiB from G_DATA to the device; back to the page after it. The second raises an interrupt. */
	"movq $" STR(G_DATA) ", 0x80(%rbx)\n"
	"movq $0x40000, 0x88(%rbx); movq $4096, 0x90(%rbx)\n"
	"movl $1, 0x98(%rbx)\n"
	"sti; 1: pause; testl $1, 0x98(%rbx); jnz 1b; cli\n"
	"movq $0x40000, 0x80(%rbx)\n"
	"movq $" STR(G_DATA) "+4096, 0x88(%rbx); movq $4096, 0x90(%rbx)\n"
	"movl $7, 0x98(%rbx)\n"
	"7: cli; cmpq $2, " STR(G_LOG) "; jae 8f; sti; hlt; jmp 7b\n8: cli\n"
	"mov 0x24(%rbx), %eax; mov %eax, 0x64(%rbx); out %eax, $0x14\n"
	"1: out %al, $0x15; jmp 1b\n");

/* A guest that drives the device: registers without exits, DMA to and from its memory, its interrupts. */
TEST(guest)
{
	struct address address = edu();
	struct vm vm;
	int device;

	VM_NEW_LONG_IRQCHIP(&vm, edu_guest);
	route_message(&vm, GSI, VECTOR);
	device = assign(&vm, &address);
	CHECK_EQ(info_of(device).pinned, 4 * MIB);
	CHECK_EQ(info_of(device).vendor, EDU_VENDOR);
	CHECK_EQ(info_of(device).regions[0].size, MIB);
	CHECK_EQ(info_of(device).regions[0].flags & RVMM_REGION_MEMORY, RVMM_REGION_MEMORY);
	vm_slot(&vm, 1, 0, G_BAR, MIB, (void *)map_bar(device, 0));
	OK(set_irqs(device, RVMM_IRQ_MSI, 1, GSI));
	CHECK_EQ(config_read(device, 4, 2) & 4, 0);
	set_master(device, true);
	for (unsigned int i = 0; i < 4096; i++)
		vm.mem[G_DATA + i] = i * 7 + 3;
	CHECK_EQ(vm_expect_out(&vm, 0x10), 0x010000ed);
	CHECK_EQ(vm_expect_out(&vm, 0x11), ~0x12345678u);
	CHECK_EQ(vm_expect_out(&vm, 0x12), 1);
	CHECK_EQ(vm_expect_out(&vm, 0x13), 3628800);
	CHECK_EQ(vm_expect_out(&vm, 0x14), 0x100);
	CHECK(!memcmp(vm.mem + G_DATA, vm.mem + G_DATA + 4096, 4096));
	CHECK_EQ(vm_log(&vm)->count, 2);
	CHECK_EQ(vm_log(&vm)->event[0].vector, VECTOR);
	CHECK_EQ(vm_log(&vm)->event[1].vector, VECTOR);
}

/* What user space may map and write. */
TEST(registers)
{
	struct address address = edu();
	struct vm vm;
	int device;

	vm_init(&vm, 4 * MIB);
	device = assign(&vm, &address);
	/* The pin is off: nobody here would answer it. */
	CHECK_EQ(config_read(device, 4, 2) & 0x400, 0x400);
	CHECK_EQ(config_read(device, 0, 4), EDU_DEVICE << 16 | EDU_VENDOR);
	CHECK_EQ(config_read(device, 1, 1), EDU_VENDOR >> 8);
	CHECK_EQ(config_read(device, 2, 2), EDU_DEVICE);
	for (uint32_t offset = 0; offset < 256; offset++) {
		if (offset != 4)
			CHECK_ERRNO(config_write(device, offset, 1, 0), EPERM);
		if (offset != 4)
			CHECK_ERRNO(config_write(device, offset, 2, 0), EPERM);
		CHECK_ERRNO(config_write(device, offset, 4, 0), EPERM);
	}
	/* Decoding stays on. */
	OK(config_write(device, 4, 2, 0));
	CHECK_EQ(config_read(device, 4, 2) & 6, 2);
	for (unsigned int i = 0; i < 5; i++) {
		static const uint32_t bad[][2] = { { 1, 2 }, { 2, 4 }, { 4096, 1 }, { 0, 3 }, { 0xfffffffc, 4 } };
		struct rvmm_device_config request = { .offset = bad[i][0], .size = bad[i][1] };

		CHECK_ERRNO(ioctl(device, RVMM_DEVICE_CONFIG_READ, &request), EINVAL);
	}
#define MAP(size, flags, offset) mmap(NULL, size, PROT_READ | PROT_WRITE, flags, device, offset)
	CHECK_ERRNO(MAP(MIB, MAP_PRIVATE, 0), EINVAL);
	CHECK_ERRNO(MAP(MIB + PAGE, MAP_SHARED, 0), EINVAL);
	CHECK_ERRNO(MAP(PAGE, MAP_SHARED, MIB), EINVAL);
	CHECK_ERRNO(MAP(PAGE, MAP_SHARED, 1ull << 40), EINVAL);
	CHECK_ERRNO(MAP(PAGE, MAP_SHARED, 7ull << 40), EINVAL);
	CHECK_ERRNO(MAP(PAGE, MAP_SHARED, 1ull << 62), EINVAL);
	CHECK(MAP(PAGE, MAP_SHARED, MIB - PAGE) != MAP_FAILED);
	CHECK_ERRNO(ioctl(device, RVMM_DEVICE_GET_INFO, NULL), EFAULT);
	CHECK_ERRNO(ioctl(device, 0, 0), ENOTTY);
	/* Another process is none of its VM. */
	if (fork_child() == 0) {
		CHECK_ERRNO(ioctl(device, RVMM_DEVICE_DEASSIGN, 0), EIO);
		CHECK_ERRNO(MAP(PAGE, MAP_SHARED, 0), EIO);
		_exit(0);
	}
	wait(NULL);
	if (!(info_of(device).flags & RVMM_DEVICE_CAN_RESET))
		CHECK_ERRNO(ioctl(device, RVMM_DEVICE_RESET, 0), ENOTTY);
}

/* Reads a register, and writes a message into the MSI-X table. */
GUEST64(table_guest,
	"mov $" STR(G_BAR) ", %ebx; mov 8(%rbx), %eax; out %eax, $0x10\n"
	"mov " STR(G_CELLS) ", %rax; movl $0xfee00000, (%rax)\n"
	"movl $0xfd, 8(%rax); out %al, $0x11\n");

/* The MSI-X table is not the guest's; a function that can be reset is. */
TEST(msix)
{
	struct address address = edu(), nvme;
	struct rvmm_device_info info;
	volatile uint8_t *bar;
	uint64_t table;
	struct vm vm;
	int device;

	if (!find_device(NVME_VENDOR, NVME_DEVICE, &nvme))
		skip("no nvme device");
	bind_device(&nvme);
	vm_new_irqchip(&vm, 4 * MIB);
	/* Two devices of one VM share its memory: it is pinned once. */
	assign(&vm, &address);
	device = assign(&vm, &nvme);
	info = info_of(device);
	CHECK_EQ(info.pinned, 4 * MIB);
	CHECK(info.msix > 1);
	table = info.msix_offset & ~(PAGE - 1);
	CHECK_ERRNO(mmap(NULL, info.regions[info.msix_bar].size, PROT_READ, MAP_SHARED, device,
			 info.regions[info.msix_bar].offset), EINVAL);
	CHECK_ERRNO(mmap(NULL, PAGE, PROT_READ, MAP_SHARED, device, info.regions[info.msix_bar].offset + table),
		    EINVAL);
	bar = mmap(NULL, table, PROT_READ, MAP_SHARED, device, info.regions[info.msix_bar].offset);
	REQUIRE(bar != MAP_FAILED);
	CHECK(read32(bar, 8) >> 16 != 0);	/* VS: version */
	/* What the guest writes there is for its VMM. */
	VM_LONG(&vm, table_guest);
	vm_slot(&vm, 1, 0, G_BAR, table, (void *)bar);
	vm_cells(&vm)[0] = G_BAR + info.msix_offset;
	CHECK_EQ(vm_expect_out(&vm, 0x10), read32(bar, 8));
	for (unsigned int i = 0; i < 2; i++) {
		vm_expect(&vm, KVM_EXIT_MMIO);
		CHECK_EQ(vm.run->mmio.is_write, 1);
		CHECK_EQ(vm.run->mmio.phys_addr, G_BAR + info.msix_offset + 8 * i);
	}
	vm_expect_out(&vm, 0x11);
	OK(set_irqs(device, RVMM_IRQ_MSIX, 2, GSI));
	OK(set_irqs(device, RVMM_IRQ_MSIX, info.msix, RVMM_GSI_NONE));
	CHECK_ERRNO(set_irqs(device, RVMM_IRQ_MSIX, info.msix + 1, GSI), ENOSPC);
	if (info.flags & RVMM_DEVICE_CAN_RESET) {
		OK(ioctl(device, RVMM_DEVICE_RESET, 0));
		CHECK(read32(bar, 8) >> 16 != 0);
	}
	OK(ioctl(device, RVMM_DEVICE_DEASSIGN, 0));
	CHECK(is_gone(bar));
	give_back(&nvme);
}

/* The device is taken away: by its user, from its driver, from its bus. */
TEST(taken_away)
{
	struct address address = edu();

	for (unsigned int how = 0; how < 3; how++) {
		volatile uint8_t *bar;
		struct rvmm_device_info info;
		struct vm vm;
		int device;

		vm_new_irqchip(&vm, 4 * MIB);
		device = assign(&vm, &address);
		bar = map_bar(device, 0);
		vm_slot(&vm, 1, 0, G_BAR, MIB, (void *)bar);
		OK(set_irqs(device, RVMM_IRQ_MSI, 1, GSI));
		set_master(device, true);
		CHECK(!is_gone(bar));
		vm.mem[0x5000] = 0;
		dma_start(bar, 0x5000, 4096, true);
		switch (how) {
		case 0:
			OK(ioctl(device, RVMM_DEVICE_DEASSIGN, 0));
			OK(ioctl(device, RVMM_DEVICE_DEASSIGN, 0));
			break;
		case 1:
			unbind_device(&address);
			break;
		case 2:
			OK(put_file(bus_path(&address, "remove"), "1"));
			break;
		}
		memset(vm.mem + 0x5000, 0x66, 4096);
		CHECK(is_gone(bar));
		CHECK_ERRNO(ioctl(device, RVMM_DEVICE_GET_INFO, &info), ENODEV);
		CHECK_ERRNO(config_write(device, 4, 2, 4), ENODEV);
		CHECK_ERRNO(set_irqs(device, RVMM_IRQ_MSI, 1, GSI), ENODEV);
		CHECK_ERRNO(ioctl(device, RVMM_DEVICE_RESET, 0), ENODEV);
		usleep(200000);
		for (unsigned int i = 0; i < 4096; i++)
			if (vm.mem[0x5000 + i] != 0x66)
				DIE("a write landed after the device was gone (%u)", how);
		/* The guest finds nothing there: a fault of the slot's memory, not of the host. */
		GUEST64(touch, "mov $" STR(G_BAR) ", %ebx; mov (%rbx), %eax; out %eax, $0x10\n");
		VM_LONG(&vm, touch);
		CHECK_EQ(vm_try_run(&vm), EFAULT);
		if (how == 2)
			OK(put_file("/sys/bus/pci/rescan", "1"));
		bind_device(&address);
		if (how == 1) {
			/* The old file is not the new assignment's. */
			struct vm next;
			int again;

			vm_init(&next, 4 * MIB);
			again = assign(&next, &address);
			CHECK_ERRNO(ioctl(device, RVMM_DEVICE_GET_INFO, &info), ENODEV);
			close(device);
			CHECK_EQ(info_of(again).vendor, EDU_VENDOR);
			close(again);
		}
		close(device);
		vm_free(&vm);
	}
}

/* The VMM is killed in mid-transfer: no write lands after its memory went back, and the device is free. */
TEST(killed)
{
	struct address address = edu();
	int memory = OK(memfd_create("guest", 0)), ready[2], status;
	uint8_t *mine, byte;
	struct vm vm;

	OK(ftruncate(memory, 4 * MIB));
	mine = mmap(NULL, 4 * MIB, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0);
	REQUIRE(mine != MAP_FAILED);
	for (unsigned int round = 0; round < 4; round++) {
		pid_t child;

		OK(pipe(ready));
		child = OK(fork_child());
		if (child == 0) {
			uint8_t *theirs = mmap(NULL, 4 * MIB, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0);
			volatile uint8_t *bar;
			int device;

			vm_init(&vm, 4 * MIB);
			vm_slot(&vm, 1, 0, 0x10000000, 4 * MIB, theirs);
			device = assign(&vm, &address);
			bar = map_bar(device, 0);
			set_master(device, true);
			dma_start(bar, 0x10000000, 4096, true);
			OK(write(ready[1], "", 1));
			for (;;)
				pause();
		}
		close(ready[1]);
		REQUIRE_EQ(read(ready[0], &byte, 1), 1);
		usleep(round * 20000);
		OK(kill(child, SIGKILL));
		OK(waitpid(child, &status, 0));
		memset(mine, 0x42, 4 * MIB);
		usleep(200000);
		for (unsigned int i = 0; i < 4 * MIB; i++)
			if (mine[i] != 0x42)
				DIE("a write landed after the process had died (round %u)", round);
		close(ready[0]);
		vm_init(&vm, 4 * MIB);
		close(assign(&vm, &address));
		vm_free(&vm);
	}
}

/* The device by which a VMM names its VFIO files; as on KVM. */
TEST(vfio_device)
{
	struct kvm_create_device request = { .type = KVM_DEV_TYPE_VFIO, .flags = KVM_CREATE_DEVICE_TEST };
	int kvm = device_open(), file = OK(memfd_create("no group", 0)), bad = -1, device, container;
	struct kvm_device_attr attr = { .group = KVM_DEV_VFIO_FILE, .attr = KVM_DEV_VFIO_FILE_ADD,
					.addr = (uintptr_t)&file };
	struct vm vm;

	CHECK_EQ(ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_DEVICE_CTRL), 1);
	vm_init(&vm, MIB);
	OK(ioctl(vm.fd, KVM_CREATE_DEVICE, &request));
	request.type = 0x1234;
	CHECK_ERRNO(ioctl(vm.fd, KVM_CREATE_DEVICE, &request), ENODEV);
	request.type = KVM_DEV_TYPE_VFIO;
	request.flags = 0;
	OK(ioctl(vm.fd, KVM_CREATE_DEVICE, &request));
	device = request.fd;
	CHECK_ERRNO(ioctl(vm.fd, KVM_CREATE_DEVICE, &request), EBUSY);
	OK(ioctl(device, KVM_HAS_DEVICE_ATTR, &attr));
	CHECK_ERRNO(ioctl(device, KVM_GET_DEVICE_ATTR, &attr), EPERM);
	CHECK_ERRNO(ioctl(device, KVM_SET_DEVICE_ATTR, &attr), EINVAL);
	/* Where VFIO is loaded: its container, which is neither a group nor a device. */
	container = open("/dev/vfio/vfio", O_RDWR);
	attr.addr = (uintptr_t)&container;
	if (container >= 0)
		CHECK_ERRNO(ioctl(device, KVM_SET_DEVICE_ATTR, &attr), EINVAL);
	attr.addr = (uintptr_t)&bad;
	CHECK_ERRNO(ioctl(device, KVM_SET_DEVICE_ATTR, &attr), EBADF);
	attr.addr = 8;
	CHECK_ERRNO(ioctl(device, KVM_SET_DEVICE_ATTR, &attr), EFAULT);
	attr.attr = KVM_DEV_VFIO_FILE_DEL;
	attr.addr = (uintptr_t)&file;
	CHECK_ERRNO(ioctl(device, KVM_SET_DEVICE_ATTR, &attr), ENOENT);
	attr.attr = 3;
	CHECK_ERRNO(ioctl(device, KVM_SET_DEVICE_ATTR, &attr), ENXIO);
	CHECK_ERRNO(ioctl(device, KVM_HAS_DEVICE_ATTR, &attr), ENXIO);
	attr.group = 7;
	CHECK_ERRNO(ioctl(device, KVM_HAS_DEVICE_ATTR, &attr), ENXIO);
	CHECK_ERRNO(ioctl(device, KVM_RUN, 0), ENOTTY);
	close(device);
	OK(ioctl(vm.fd, KVM_CREATE_DEVICE, &request));
}
