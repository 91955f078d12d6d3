// SPDX-License-Identifier: GPL-2.0
/*
 * A Linux guest: linux CPUS KERNEL INITRD [WORDS...]. The smallest machine that boots the stock kernel to its user
 * space: a device tree, GICv3, PSCI, a PL011 whose output goes to stdout, and whose interrupt is a level.
 *
 * Exit status: 0 when the guest has switched itself off.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define RAM 0x40000000ul
#define RAM_SIZE (256ul << 20)
#define KERNEL_AT 0x200000ul
#define TREE_AT 0x8000000ul
#define INITRD_AT 0x8200000ul
#define DIST 0x8000000ul
#define REDIST 0x80a0000ul
#define UART 0x9000000ul
#define UART_SPI 1
#define UART_TX (1 << 5)
#define MAX_CPUS 64

#define OK(x) ({ long r_ = (x); if (r_ < 0) { perror(#x); exit(1); } r_; })
#define CORE_REG(member) (KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE | KVM_REG_ARM_CORE_REG(member))

/* --- device tree: blocks of structure and strings (Devicetree Specification, chapter 5) ------------------------ */

static uint32_t structure[4096], fill;
static char strings[1024];
static size_t strings_size;

static void word(uint32_t v)
{
	structure[fill++] = __builtin_bswap32(v);
}

static void text(const char *s, size_t size)
{
	memcpy(&structure[fill], s, size);
	fill += (size + 3) / 4;
}

static uint32_t name_of(const char *name)
{
	size_t at = 0;

	while (at < strings_size && strcmp(strings + at, name))
		at += strlen(strings + at) + 1;
	if (at == strings_size) {
		strcpy(strings + at, name);
		strings_size += strlen(name) + 1;
	}
	return at;
}

static void begin(const char *name)
{
	word(1);
	text(name, strlen(name) + 1);
}

static void end(void)
{
	word(2);
}

static void bytes(const char *name, const char *value, size_t size)
{
	word(3);
	word(size);
	word(name_of(name));
	text(value, size);
}

#define STRING(name, value) bytes(name, value, sizeof(value))

static void cells(const char *name, int count, const uint32_t *values)
{
	word(3);
	word(4 * count);
	word(name_of(name));
	for (int i = 0; i < count; i++)
		word(values[i]);
}

#define CELLS(name, ...) cells(name, sizeof((uint32_t[]){ __VA_ARGS__ }) / 4, (uint32_t[]){ __VA_ARGS__ })

static void make_tree(char *to, int cpus, size_t initrd, const char *arguments)
{
	uint32_t *header = (uint32_t *)to, reserved = 40, at = reserved + 16;

	begin("");
	CELLS("#address-cells", 2);
	CELLS("#size-cells", 2);
	CELLS("interrupt-parent", 1);
	STRING("compatible", "linux,dummy-virt");
	begin("chosen");
	bytes("bootargs", arguments, strlen(arguments) + 1);
	CELLS("linux,initrd-start", RAM + INITRD_AT);
	CELLS("linux,initrd-end", RAM + INITRD_AT + initrd);
	end();
	begin("memory@40000000");
	STRING("device_type", "memory");
	CELLS("reg", 0, RAM, 0, RAM_SIZE);
	end();
	begin("cpus");
	CELLS("#address-cells", 1);
	CELLS("#size-cells", 0);
	for (int i = 0; i < cpus; i++) {
		char name[16];

		sprintf(name, "cpu@%x", (i & 15) | (i >> 4) << 8);
		begin(name);
		STRING("device_type", "cpu");
		STRING("compatible", "arm,armv8");
		STRING("enable-method", "psci");
		CELLS("reg", (i & 15) | (i >> 4) << 8);
		end();
	}
	end();
	begin("psci");
	STRING("compatible", "arm,psci-1.0\0arm,psci-0.2");
	STRING("method", "hvc");
	end();
	begin("timer");
	STRING("compatible", "arm,armv8-timer");
	CELLS("interrupts", 1, 13, 4, 1, 14, 4, 1, 11, 4, 1, 10, 4);
	bytes("always-on", "", 0);
	end();
	begin("intc@8000000");
	STRING("compatible", "arm,gic-v3");
	CELLS("#interrupt-cells", 3);
	bytes("interrupt-controller", "", 0);
	CELLS("reg", 0, DIST, 0, 0x10000, 0, REDIST, 0, 0x20000 * cpus);
	CELLS("phandle", 1);
	end();
	begin("clock");
	STRING("compatible", "fixed-clock");
	CELLS("#clock-cells", 0);
	CELLS("clock-frequency", 24000000);
	CELLS("phandle", 2);
	end();
	begin("uart@9000000");
	STRING("compatible", "arm,pl011\0arm,primecell");
	CELLS("reg", 0, UART, 0, 0x1000);
	CELLS("interrupts", 0, UART_SPI, 4);
	CELLS("clocks", 2, 2);
	STRING("clock-names", "uartclk\0apb_pclk");
	end();
	end();
	word(9);
	memset(to, 0, at);
	memcpy(to + at, structure, 4 * fill);
	memcpy(to + at + 4 * fill, strings, strings_size);
	uint32_t fields[10] = {
		0xd00dfeed, at + 4 * fill + strings_size, at, at + 4 * fill, reserved, 17, 16, 0, strings_size,
		4 * fill,
	};
	for (int i = 0; i < 10; i++)
		header[i] = __builtin_bswap32(fields[i]);
}

/* --- the machine ------------------------------------------------------------------------------------------------ */

static int vm;
static uint32_t uart_mask;
static pthread_mutex_t uart = PTHREAD_MUTEX_INITIALIZER;

/* The transmitter is always empty. */
static void access_uart(struct kvm_run *run)
{
	uint32_t value = 0, offset = run->mmio.phys_addr - UART;
	static const uint8_t id[8] = { 0x11, 0x10, 0x14, 0x00, 0x0d, 0xf0, 0x05, 0xb1 };

	pthread_mutex_lock(&uart);
	if (run->mmio.is_write) {
		memcpy(&value, run->mmio.data, 4);
		if (offset == 0) {
			char c = value;

			OK(write(1, &c, 1));
		} else if (offset == 0x38 && uart_mask != value) {
			struct kvm_irq_level l = {
				.irq = KVM_ARM_IRQ_TYPE_SPI << KVM_ARM_IRQ_TYPE_SHIFT | (32 + UART_SPI),
			};

			uart_mask = value;
			l.level = !!(value & UART_TX);
			OK(ioctl(vm, KVM_IRQ_LINE, &l));
		}
	} else {
		switch (offset) {
		case 0x18:
			value = 0x90;	/* Empty, both of them. */
			break;
		case 0x38:
			value = uart_mask;
			break;
		case 0x3c:
			value = UART_TX;
			break;
		case 0x40:
			value = uart_mask & UART_TX;
			break;
		case 0xfe0 ... 0xffc:
			value = id[(offset - 0xfe0) / 4];
			break;
		}
		memset(run->mmio.data, 0, 8);
		memcpy(run->mmio.data, &value, 4);
	}
	pthread_mutex_unlock(&uart);
}

static int kvm;

static void *run_cpu(void *argument)
{
	int cpu = (intptr_t)argument;
	size_t size = OK(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0));
	struct kvm_run *run = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, cpu, 0);

	for (;;) {
		if (ioctl(cpu, KVM_RUN, 0) < 0) {
			if (errno == EINTR)
				continue;
			perror("KVM_RUN");
			exit(1);
		}
		switch (run->exit_reason) {
		case KVM_EXIT_MMIO:
			if ((run->mmio.phys_addr & ~0xffful) == UART) {
				access_uart(run);
				break;
			}
			fprintf(stderr, "access to %#llx\n", run->mmio.phys_addr);
			exit(1);
		case KVM_EXIT_SYSTEM_EVENT:
			exit(run->system_event.type == KVM_SYSTEM_EVENT_SHUTDOWN ? 0 : 2);
		default:
			fprintf(stderr, "exit %u, hardware %#llx\n", run->exit_reason, run->hw.hardware_exit_reason);
			exit(1);
		}
	}
}

static size_t load(const char *file, char *to)
{
	int fd = OK(open(file, O_RDONLY));
	size_t size = 0;
	ssize_t n;

	while ((n = OK(read(fd, to + size, 1 << 20))) > 0)
		size += n;
	close(fd);
	return size;
}

static void set_attr(int device, uint32_t group, uint64_t attr, void *value)
{
	struct kvm_device_attr a = { .group = group, .attr = attr, .addr = (uintptr_t)value };

	OK(ioctl(device, KVM_SET_DEVICE_ATTR, &a));
}

static void set_reg(int cpu, uint64_t id, uint64_t value)
{
	struct kvm_one_reg r = { id, (uintptr_t)&value };

	OK(ioctl(cpu, KVM_SET_ONE_REG, &r));
}

int main(int argc, char **argv)
{
	const char *device = getenv("DEVICE") ?: "/dev/rvmm";
	int count = argc > 3 ? atoi(argv[1]) : 0, cpus[MAX_CPUS];
	char arguments[512] = "console=ttyAMA0 earlycon=pl011,0x9000000 panic=-1";
	struct kvm_create_device gic = { .type = KVM_DEV_TYPE_ARM_VGIC_V3 };
	uint64_t dist = DIST, redist;
	uint32_t interrupts = 64;
	pthread_t thread;

	if (count < 1 || count > MAX_CPUS) {
		fprintf(stderr, "usage: linux CPUS KERNEL INITRD [WORDS...]\n");
		return 2;
	}
	for (int i = 4; i < argc; i++) {
		strcat(arguments, " ");
		strcat(arguments, argv[i]);
	}
	kvm = OK(open(device, O_RDWR));
	vm = OK(ioctl(kvm, KVM_CREATE_VM, 0));
	char *ram = mmap(NULL, RAM_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	struct kvm_userspace_memory_region slot = { 0, 0, RAM, RAM_SIZE, (uintptr_t)ram };

	OK(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &slot));
	for (int i = 0; i < count; i++) {
		struct kvm_vcpu_init init = {};

		cpus[i] = OK(ioctl(vm, KVM_CREATE_VCPU, i));
		OK(ioctl(vm, KVM_ARM_PREFERRED_TARGET, &init));
		init.features[0] |= 1 << KVM_ARM_VCPU_PSCI_0_2 | (i ? 1 << KVM_ARM_VCPU_POWER_OFF : 0);
		OK(ioctl(cpus[i], KVM_ARM_VCPU_INIT, &init));
	}
	redist = (uint64_t)count << 52 | REDIST;
	OK(ioctl(vm, KVM_CREATE_DEVICE, &gic));
	set_attr(gic.fd, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_V3_ADDR_TYPE_DIST, &dist);
	set_attr(gic.fd, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_V3_ADDR_TYPE_REDIST_REGION, &redist);
	set_attr(gic.fd, KVM_DEV_ARM_VGIC_GRP_NR_IRQS, 0, &interrupts);
	set_attr(gic.fd, KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_CTRL_INIT, NULL);
	load(argv[2], ram + KERNEL_AT);
	make_tree(ram + TREE_AT, count, load(argv[3], ram + INITRD_AT), arguments);
	set_reg(cpus[0], CORE_REG(regs.pc), RAM + KERNEL_AT);
	set_reg(cpus[0], CORE_REG(regs.regs[0]), RAM + TREE_AT);
	for (int i = 1; i < count; i++)
		if (pthread_create(&thread, NULL, run_cpu, (void *)(intptr_t)cpus[i]))
			exit(1);
	run_cpu((void *)(intptr_t)cpus[0]);
}
