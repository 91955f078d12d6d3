// SPDX-License-Identifier: GPL-2.0
/* Coalesced MMIO and port I/O: writes that wait in a ring for the next exit (api.rst 4.116). */
#define _GNU_SOURCE
#include "vm.h"

#define RING_MAX ((4096 - sizeof(struct kvm_coalesced_mmio_ring)) / sizeof(struct kvm_coalesced_mmio))

static struct kvm_coalesced_mmio_ring *ring(struct vm *vm)
{
	return (void *)((uint8_t *)vm->run + 4096 * KVM_COALESCED_MMIO_PAGE_OFFSET);
}

static int zone(int fd, unsigned long request, uint64_t addr, uint32_t size, uint32_t pio)
{
	struct kvm_coalesced_mmio_zone z = { .addr = addr, .size = size, .pio = pio };

	return ioctl(fd, request, &z);
}

static int add(struct vm *vm, uint64_t addr, uint32_t size, uint32_t pio)
{
	return zone(vm->fd, KVM_REGISTER_COALESCED_MMIO, addr, size, pio);
}

static int drop(struct vm *vm, uint64_t addr, uint32_t size, uint32_t pio)
{
	return zone(vm->fd, KVM_UNREGISTER_COALESCED_MMIO, addr, size, pio);
}

static void expect(struct vm *vm, unsigned int at, uint64_t addr, unsigned int len, uint64_t data, unsigned int pio)
{
	struct kvm_coalesced_mmio *e = &ring(vm)->coalesced_mmio[at];

	CHECK_EQ(e->phys_addr, addr);
	CHECK_EQ(e->len, len);
	CHECK_EQ(e->pio, pio);
	CHECK(!memcmp(e->data, &data, len));
}

/* Writes of all widths, the last one partly outside; a read; ports, a string, a port outside. */
GUEST64(writes,
	"mov $" STR(G_MMIO) ", %ebx\n"
	"movl $0x11223344, (%rbx); movb $0x55, 3(%rbx); movw $0x6677, 14(%rbx)\n"
	"mov $0x0123456789abcdef, %rax; mov %rax, 8(%rbx)\n"
	"movl $0x99, 14(%rbx)\n"
	"mov (%rbx), %eax\n"
	"mov $0x500, %edx; mov $0x42, %al; out %al, %dx\n"
	"inc %edx; mov $0x4344, %eax; out %ax, %dx\n"
	"dec %edx; mov $" STR(G_DATA) ", %esi; mov $3, %ecx; rep outsb\n"
	"mov $0x50f, %edx; out %ax, %dx\n"
	"out %al, $0x10\n");

TEST(ring)
{
	struct vm vm;

	VM_NEW_LONG(&vm, writes);
	CHECK_EQ(ioctl(vm.kvm, KVM_CHECK_EXTENSION, KVM_CAP_COALESCED_MMIO), KVM_COALESCED_MMIO_PAGE_OFFSET);
	CHECK_EQ(ioctl(vm.kvm, KVM_CHECK_EXTENSION, KVM_CAP_COALESCED_PIO), 1);
	memcpy(vm.mem + G_DATA, "abc", 3);
	OK(add(&vm, G_MMIO, 16, 0));
	OK(add(&vm, 0x500, 16, 1));
	/* A write that is only partly in the zone exits. */
	vm_expect(&vm, KVM_EXIT_MMIO);
	CHECK_EQ(vm.run->mmio.phys_addr, G_MMIO + 14);
	CHECK_EQ(ring(&vm)->first, 0);
	CHECK_EQ(ring(&vm)->last, 4);
	expect(&vm, 0, G_MMIO, 4, 0x11223344, 0);
	expect(&vm, 1, G_MMIO + 3, 1, 0x55, 0);
	expect(&vm, 2, G_MMIO + 14, 2, 0x6677, 0);
	expect(&vm, 3, G_MMIO + 8, 8, 0x0123456789abcdef, 0);
	ring(&vm)->first = 4;
	/* Reads do not wait. */
	vm_expect(&vm, KVM_EXIT_MMIO);
	CHECK_EQ(vm.run->mmio.is_write, 0);
	vm_expect(&vm, KVM_EXIT_IO);
	CHECK_EQ(vm.run->io.port, 0x50f);
	CHECK_EQ(ring(&vm)->last, 9);
	expect(&vm, 4, 0x500, 1, 0x42, 1);
	expect(&vm, 5, 0x501, 2, 0x4344, 1);
	expect(&vm, 6, 0x500, 1, 'a', 1);
	expect(&vm, 7, 0x500, 1, 'b', 1);
	expect(&vm, 8, 0x500, 1, 'c', 1);
	ring(&vm)->first = 9;
	vm_expect_out(&vm, 0x10);
}

GUEST64(endless,
	"mov $" STR(G_MMIO) ", %ebx; xor %eax, %eax\n"
	"1: mov %eax, (%rbx); inc %eax; jmp 1b\n");

/*
 * A full ring: user space gets the write itself; an index that makes no sense likewise. Each vCPU's mapping shows
 * the same ring.
 */
TEST(full)
{
	struct vm vm, other;

	VM_NEW_LONG(&vm, endless);
	other = vm_second_vcpu(&vm, 1);
	OK(add(&vm, G_MMIO, 8, 0));
	vm_expect(&vm, KVM_EXIT_MMIO);
	CHECK_EQ(*(uint32_t *)vm.run->mmio.data, RING_MAX - 1);
	CHECK_EQ(ring(&vm)->last, RING_MAX - 1);
	expect(&vm, RING_MAX - 2, G_MMIO, 4, RING_MAX - 2, 0);
	CHECK_EQ(ring(&other)->last, RING_MAX - 1);
	/* The ring goes on at its beginning after its end. */
	ring(&other)->first = 3;
	vm_expect(&vm, KVM_EXIT_MMIO);
	CHECK_EQ(*(uint32_t *)vm.run->mmio.data, RING_MAX + 3);
	CHECK_EQ(ring(&vm)->last, 2);
	expect(&vm, 1, G_MMIO, 4, RING_MAX + 2, 0);
	for (uint32_t bad = RING_MAX; bad; bad <<= 8) {
		ring(&vm)->last = bad;
		vm_expect(&vm, KVM_EXIT_MMIO);
		CHECK_EQ(ring(&vm)->last, bad);
	}
}

/* The pages behind kvm_run are the same ones whether user space touches them before the kernel needs them or after. */
TEST(touched_first)
{
	struct vm vm, other;
	uint64_t *data, *spare, *same;

	VM_NEW_LONG(&vm, writes);
	other = vm_second_vcpu(&vm, 1);
	data = (void *)((uint8_t *)vm.run + 4096 * KVM_PIO_PAGE_OFFSET + 2048);
	spare = (uint64_t *)((uint8_t *)ring(&vm) + 4096) - 1;
	same = (uint64_t *)((uint8_t *)ring(&other) + 4096) - 1;
	CHECK_EQ(*data, 0);
	CHECK_EQ(*spare, 0);
	*data = 0x1122334455667788;
	*spare = 0x99aabbccddeeff00;
	CHECK_EQ(*same, 0x99aabbccddeeff00);
	OK(add(&vm, G_MMIO, 32, 0));
	OK(add(&vm, 0x500, 2, 1));
	/* A read exits. */
	vm_expect(&vm, KVM_EXIT_MMIO);
	CHECK_EQ(ring(&other)->last, 5);
	expect(&other, 0, G_MMIO, 4, 0x11223344, 0);
	vm_expect(&vm, KVM_EXIT_IO);
	CHECK_EQ(vm.run->io.data_offset, 4096 * KVM_PIO_PAGE_OFFSET);
	CHECK_EQ(*(uint16_t *)((uint8_t *)vm.run + vm.run->io.data_offset), 0x4344);
	CHECK_EQ(*data, 0x1122334455667788);
	CHECK_EQ(*spare, 0x99aabbccddeeff00);
}

TEST(errors)
{
	struct vm vm;
	int n;

	VM_NEW_LONG(&vm, endless);
	CHECK_ERRNO(add(&vm, 0, 4, 2), EINVAL);
	CHECK_ERRNO(drop(&vm, 0, 4, 2), EINVAL);
	CHECK_ERRNO(ioctl(vm.fd, KVM_REGISTER_COALESCED_MMIO, 1), EFAULT);
	CHECK_ERRNO(ioctl(vm.fd, KVM_UNREGISTER_COALESCED_MMIO, 1), EFAULT);
	OK(drop(&vm, 0x1234, 4, 0));
	/* Twice the same, and one around the end of the address space. */
	OK(add(&vm, G_MMIO, 16, 0));
	OK(add(&vm, G_MMIO, 16, 0));
	OK(add(&vm, ~0ull - 3, 16, 0));
	/* Ports are another space; part of a zone removes all of it, a larger one nothing. */
	OK(drop(&vm, G_MMIO, 4, 1));
	OK(drop(&vm, G_MMIO, 17, 0));
	vm_expect(&vm, KVM_EXIT_MMIO);
	CHECK_EQ(*(uint32_t *)vm.run->mmio.data, RING_MAX - 1);
	ring(&vm)->first = ring(&vm)->last;
	OK(drop(&vm, G_MMIO + 4, 1, 0));
	for (int i = 0; i < 3; i++) {
		vm_expect(&vm, KVM_EXIT_MMIO);
		CHECK_EQ(*(uint32_t *)vm.run->mmio.data, RING_MAX + i);
	}
	/* As many as a bus has room for. */
	for (n = 0; add(&vm, 0x1000 * n, 4, 1) == 0; n++)
		;
	CHECK_EQ(errno, ENOSPC);
	CHECK_EQ(n, 1000);
}
