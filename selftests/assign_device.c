// SPDX-License-Identifier: GPL-2.0
/* What the parts of `assign` share: sysfs, the device by its ioctls, the host's log. */
#define _GNU_SOURCE
#include "assign.h"
#include <dirent.h>
#include <limits.h>
#include <setjmp.h>
#include <signal.h>

static long number_in(const char *directory, const char *file)
{
	char path[PATH_MAX], text[64] = "";
	int fd;

	snprintf(path, sizeof(path), "%s/%s", directory, file);
	fd = open(path, O_RDONLY);
	if (fd < 0)
		return -1;
	if (read(fd, text, sizeof(text) - 1) < 0)
		text[0] = 0;
	close(fd);
	return strtol(text, NULL, 0);
}

bool find_device(unsigned int vendor, unsigned int product, struct address *address)
{
	DIR *directory = opendir("/sys/bus/pci/devices");
	struct dirent *entry;
	bool found = false;

	while (directory && !found && (entry = readdir(directory))) {
		char path[PATH_MAX];

		snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s", entry->d_name);
		if (number_in(path, "vendor") != vendor || number_in(path, "device") != product)
			continue;
		found = sscanf(entry->d_name, "%x:%x:%x.%x", &address->segment, &address->bus, &address->slot,
			       &address->function) == 4;
		snprintf(address->name, sizeof(address->name), "%.31s", entry->d_name);
	}
	if (directory)
		closedir(directory);
	return found;
}

int put_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY), result;

	if (fd < 0)
		return -1;
	result = write(fd, text, strlen(text)) == (ssize_t)strlen(text) ? 0 : -1;
	close(fd);
	return result;
}

char *bus_path(const struct address *address, const char *file)
{
	static char path[PATH_MAX];

	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/%s", address->name, file);
	return path;
}

void unbind_device(const struct address *address)
{
	put_file(bus_path(address, "driver/unbind"), address->name);
}

static bool driver_is(const struct address *address, const char *name)
{
	char target[PATH_MAX] = "";
	ssize_t n = readlink(bus_path(address, "driver"), target, sizeof(target) - 1);

	return n > 0 && strrchr(target, '/') && !strcmp(strrchr(target, '/') + 1, name);
}

void bind_device(const struct address *address)
{
	if (driver_is(address, "rvmm"))
		return;
	unbind_device(address);
	OK(put_file(bus_path(address, "driver_override"), "rvmm"));
	OK(put_file("/sys/bus/pci/drivers_probe", address->name));
	REQUIRE(driver_is(address, "rvmm"));
}

void give_back(const struct address *address)
{
	unbind_device(address);
	put_file(bus_path(address, "driver_override"), "\n");
}

struct address edu(void)
{
	struct address address;

	if (!is_rvmm())
		skip("only rvmm");
	if (geteuid() != 0 || !find_device(EDU_VENDOR, EDU_DEVICE, &address))
		skip("no edu device");
	if (access(bus_path(&address, "iommu_group"), F_OK))
		skip("no IOMMU");
	bind_device(&address);
	return address;
}

static char reason[240];

int try_assign(int vm, const struct address *address)
{
	struct rvmm_assign_device request = {
		.segment = address->segment, .bus = address->bus, .devfn = address->slot << 3 | address->function,
	};
	int fd = ioctl(vm, RVMM_ASSIGN_DEVICE, &request), error = errno;

	memcpy(reason, request.reason, sizeof(reason));
	if (fd >= 0)
		CHECK(request.pinned != 0);
	errno = error;
	return fd;
}

int assign(const struct vm *vm, const struct address *address)
{
	int fd = try_assign(vm->fd, address);

	if (fd < 0)
		DIE("%s: %s: %s", address->name, strerrorname(errno), reason);
	return fd;
}

void check_refused(int vm, const struct address *address, int want, const char *text)
{
	int fd = try_assign(vm, address);

	if (fd >= 0)
		DIE("assigned, %s expected", strerrorname(want));
	if (errno != want || !strstr(reason, text))
		FAIL("%s: \"%s\"; %s: \"... %s ...\" expected", strerrorname(errno), reason, strerrorname(want), text);
	else
		note("%s: %s", strerrorname(errno), reason);
}

struct rvmm_device_info info_of(int device)
{
	struct rvmm_device_info info;

	OK(ioctl(device, RVMM_DEVICE_GET_INFO, &info));
	return info;
}

int config_write(int device, uint32_t offset, uint32_t size, uint32_t value)
{
	struct rvmm_device_config request = { .offset = offset, .size = size, .value = value };

	return ioctl(device, RVMM_DEVICE_CONFIG_WRITE, &request);
}

uint32_t config_read(int device, uint32_t offset, uint32_t size)
{
	struct rvmm_device_config request = { .offset = offset, .size = size };

	OK(ioctl(device, RVMM_DEVICE_CONFIG_READ, &request));
	return request.value;
}

void set_master(int device, bool on)
{
	OK(config_write(device, 4, 2, on ? 4 : 0));
	CHECK_EQ(config_read(device, 4, 2) & 4, on ? 4 : 0);
}

volatile uint8_t *map_bar(int device, unsigned int bar)
{
	struct rvmm_device_info info = info_of(device);
	void *p = mmap(NULL, info.regions[bar].size, PROT_READ | PROT_WRITE, MAP_SHARED, device,
		       info.regions[bar].offset);

	REQUIRE(p != MAP_FAILED);
	return p;
}

void dma_start(volatile uint8_t *bar, uint64_t address, uint64_t bytes, bool to_memory)
{
	write64(bar, EDU_SRC, to_memory ? EDU_BUFFER : address);
	write64(bar, EDU_DST, to_memory ? address : EDU_BUFFER);
	write64(bar, EDU_COUNT, bytes);
	write32(bar, EDU_CMD, EDU_START | (to_memory ? EDU_TO_MEMORY : 0));
}

void dma(volatile uint8_t *bar, uint64_t address, uint64_t bytes, bool to_memory)
{
	dma_start(bar, address, bytes, to_memory);
	while (read32(bar, EDU_CMD) & EDU_START)
		usleep(5000);
}

int set_irqs(int device, uint32_t kind, uint32_t count, uint32_t gsi)
{
	struct rvmm_device_irqs *irqs = calloc(1, sizeof(*irqs) + count * sizeof(uint32_t));
	int result;

	irqs->kind = kind;
	irqs->count = count;
	for (unsigned int i = 0; i < count; i++)
		irqs->gsi[i] = gsi;
	result = ioctl(device, RVMM_DEVICE_SET_IRQS, irqs);
	free(irqs);
	return result;
}

void route_message(struct vm *vm, unsigned int gsi, unsigned int vector)
{
	struct kvm_irq_routing *table = calloc(1, sizeof(*table) + sizeof(table->entries[0]));

	table->nr = 1;
	table->entries[0] = (struct kvm_irq_routing_entry) {
		.gsi = gsi, .type = KVM_IRQ_ROUTING_MSI, .u.msi = { .address_lo = 0xfee00000, .data = vector },
	};
	OK(ioctl(vm->fd, KVM_SET_GSI_ROUTING, table));
	free(table);
}

static sigjmp_buf bus_error;

static void on_bus_error(int signal)
{
	siglongjmp(bus_error, 1);
}

bool is_gone(volatile uint8_t *bar)
{
	signal(SIGBUS, on_bus_error);
	if (sigsetjmp(bus_error, 1))
		return true;
	read32(bar, 0);
	return false;
}

int log_open(void)
{
	int fd = OK(open("/dev/kmsg", O_RDONLY | O_NONBLOCK));

	OK(lseek(fd, 0, SEEK_END));
	return fd;
}

unsigned int log_lines(int fd, const char *word, const char *other)
{
	char line[8192];
	unsigned int found = 0;

	for (;;) {
		ssize_t n = read(fd, line, sizeof(line) - 1);

		if (n < 0 && errno == EPIPE)
			DIE("the host's log was overwritten before it was read: "
			    "too many lines, or too little log_buf_len");
		if (n <= 0)
			return found;
		line[n] = 0;
		found += strstr(line, word) && strstr(line, other);
	}
}

unsigned long fault_interrupts(void)
{
	FILE *file = fopen("/proc/interrupts", "r");
	unsigned long sum = 0;
	char line[1024];

	while (file && fgets(line, sizeof(line), file))
		if (strstr(line, "dmar"))
			sum += strtoul(strchr(line, ':') + 1, NULL, 10);
	if (file)
		fclose(file);
	return sum;
}
