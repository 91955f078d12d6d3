// SPDX-License-Identifier: GPL-2.0
/* Devices that are not handed over, each with its reason. */
#define _GNU_SOURCE
#include "assign.h"
#include <dirent.h>
#include <limits.h>
#include <linux/capability.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>

/* Every refusal says why, and leaves nothing behind. */
TEST(refusals)
{
	struct address address = edu(), none = { .slot = 31, .function = 7 };
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct data[2] = { 0 };
	struct rvmm_assign_device request = { .flags = 1 };
	struct rlimit limit = { .rlim_cur = MIB, .rlim_max = MIB };
	struct vm vm, other;
	int device;

	vm_init(&vm, 4 * MIB);
	vm_init(&other, 4 * MIB);
	CHECK_ERRNO(ioctl(vm.fd, RVMM_ASSIGN_DEVICE, NULL), EFAULT);
	CHECK_ERRNO(ioctl(vm.fd, RVMM_ASSIGN_DEVICE, &request), EINVAL);
	none.bus = 0xfe;
	check_refused(vm.fd, &none, ENODEV, "no such PCI function");
	unbind_device(&address);
	check_refused(vm.fd, &address, ENODEV, "not bound");
	bind_device(&address);
	device = assign(&vm, &address);
	check_refused(other.fd, &address, EBUSY, "assigned already");
	check_refused(vm.fd, &address, EBUSY, "assigned already");
	close(device);
	device = assign(&other, &address);
	close(device);
	/* Limits and privileges. */
	if (fork_child() == 0) {
		struct vm mine;

		vm_init(&mine, 4 * MIB);
		OK(setrlimit(RLIMIT_MEMLOCK, &limit));
		OK(syscall(SYS_capget, &header, data));
		data[CAP_IPC_LOCK / 32].effective &= ~(1u << CAP_IPC_LOCK % 32);
		OK(syscall(SYS_capset, &header, data));
		check_refused(mine.fd, &address, ENOMEM, "RLIMIT_MEMLOCK");
		data[CAP_SYS_RAWIO / 32].effective &= ~(1u << CAP_SYS_RAWIO % 32);
		OK(syscall(SYS_capset, &header, data));
		check_refused(mine.fd, &address, EPERM, "CAP_SYS_RAWIO");
		_exit(0);
	}
	wait(NULL);
	/* The device can still be assigned. */
	device = assign(&other, &address);
	close(device);
}

/* A group is refused that has somebody else's device in it. */
TEST(group)
{
	struct address address = edu(), member;
	struct dirent *entry;
	DIR *directory;
	struct vm vm;
	bool done = false;

	vm_init(&vm, 4 * MIB);
	directory = opendir("/sys/bus/pci/devices");
	REQUIRE(directory);
	while (!done && (entry = readdir(directory))) {
		char path[PATH_MAX];
		struct dirent *other;
		DIR *group;

		if (entry->d_name[0] == '.')
			continue;
		snprintf(member.name, sizeof(member.name), "%.31s", entry->d_name);
		snprintf(path, sizeof(path), "%s", bus_path(&member, "iommu_group/devices"));
		if (access(bus_path(&member, "driver"), F_OK) == 0)
			continue;
		group = opendir(path);
		while (group && !done && (other = readdir(group))) {
			struct address neighbour;

			if (other->d_name[0] == '.' || !strcmp(other->d_name, member.name))
				continue;
			snprintf(neighbour.name, sizeof(neighbour.name), "%.31s", other->d_name);
			if (access(bus_path(&neighbour, "driver"), F_OK))
				continue;
			sscanf(member.name, "%x:%x:%x.%x", &member.segment, &member.bus, &member.slot,
			       &member.function);
			bind_device(&member);
			check_refused(vm.fd, &member, EBUSY, neighbour.name);
			give_back(&member);
			done = true;
		}
		if (group)
			closedir(group);
	}
	closedir(directory);
	if (!done)
		skip("no group with a driverless device beside another's (ahci loaded?)");
	close(assign(&vm, &address));
}

/* Where the host does not keep interrupts or DMA apart: the bed has been booted so. */
TEST_NAMED(no_iommu)
{
	struct address address;
	struct vm vm;

	REQUIRE(find_device(EDU_VENDOR, EDU_DEVICE, &address));
	bind_device(&address);
	vm_init(&vm, 4 * MIB);
	check_refused(vm.fd, &address, ENODEV, "no IOMMU");
}

TEST_NAMED(no_remapping)
{
	struct address address = edu();
	struct vm vm;

	vm_init(&vm, 4 * MIB);
	check_refused(vm.fd, &address, EPERM, "allow_unsafe_interrupts");
}

TEST_NAMED(unsafe_interrupts)
{
	struct address address = edu();
	struct vm vm;

	vm_init(&vm, 4 * MIB);
	close(assign(&vm, &address));
}
