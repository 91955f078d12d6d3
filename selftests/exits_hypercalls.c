// SPDX-License-Identifier: GPL-2.0
/* The hypercall instruction of the other vendor. */
#define _GNU_SOURCE
#include "vm.h"

#define POLL "mov $1, %eax\n"	/* KVM_HC_VAPIC_POLL_IRQ, whose result is 0 */

GUEST64(hypercalls,
	POLL "vmcall; mov %rax, %r8\n"
	POLL "vmmcall; mov %rax, %r9\n"
	"hlt\n");

static const uint8_t vmcall[3] = { 0x0f, 0x01, 0xc1 }, vmmcall[3] = { 0x0f, 0x01, 0xd9 };

TEST(foreign_hypercall)
{
	const uint8_t *native = is_amd() ? vmmcall : vmcall;
	struct vm vm;

	VM_NEW_LONG(&vm, hypercalls);
	vm_expect(&vm, KVM_EXIT_HLT);
	CHECK_EQ(vm_regs(&vm).r8, 0);
	CHECK_EQ(vm_regs(&vm).r9, 0);
	CHECK_EQ(vm_log(&vm)->count, 0);
	/* Now it is the right one. */
	CHECK(!memcmp(vm.mem + G_CODE + 5, native, 3));
	CHECK(!memcmp(vm.mem + G_CODE + 16, native, 3));
}

TEST(foreign_hypercall_unpatched)
{
	const uint8_t *native = is_amd() ? vmmcall : vmcall;
	struct vm vm;

	VM_NEW_LONG(&vm, hypercalls);
	CHECK(ioctl(vm.fd, KVM_CHECK_EXTENSION, KVM_CAP_DISABLE_QUIRKS2) & KVM_X86_QUIRK_FIX_HYPERCALL_INSN);
	OK(enable_cap(vm.fd, KVM_CAP_DISABLE_QUIRKS2, KVM_X86_QUIRK_FIX_HYPERCALL_INSN));
	vm_log(&vm)->resume = G_CODE + (is_amd() ? 8 : 19);
	vm_expect(&vm, KVM_EXIT_HLT);
	CHECK_EQ(vm_log(&vm)->count, 1);
	CHECK_EQ(vm_log(&vm)->event[0].vector, 6);
	CHECK_EQ(vm_log(&vm)->event[0].rip, G_CODE + (is_amd() ? 5 : 16));
	CHECK_EQ(vm_regs(&vm).r8, is_amd());
	CHECK_EQ(vm_regs(&vm).r9, !is_amd());
	CHECK_EQ(!memcmp(vm.mem + G_CODE + 5, native, 3), !is_amd());
	CHECK_EQ(!memcmp(vm.mem + G_CODE + 16, native, 3), is_amd());
}
