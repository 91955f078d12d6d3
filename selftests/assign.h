/* SPDX-License-Identifier: GPL-2.0 */
/* The parts of the program `assign`: devices of the bed, and what each test does with them. */
#ifndef ASSIGN_H
#define ASSIGN_H

#include "vm.h"

#define EDU_VENDOR	0x1234
#define EDU_DEVICE	0x11e8
#define NVME_VENDOR	0x1b36
#define NVME_DEVICE	0x0010

/* Registers of edu. */
#define EDU_ID		0x00
#define EDU_LIVE	0x04
#define EDU_FACTORIAL	0x08
#define EDU_STATUS	0x20
#define EDU_RAISE	0x60
#define EDU_ACK		0x64
#define EDU_SRC		0x80
#define EDU_DST		0x88
#define EDU_COUNT	0x90
#define EDU_CMD		0x98
#define EDU_BUFFER	0x40000
/* Commands: start, from the device to memory. */
#define EDU_START	1
#define EDU_TO_MEMORY	2

#define G_BAR		0xe0000000
#define PAGE		4096ull
#define GSI		40
#define VECTOR		0x41

/* The address of a PCI function, in numbers and as sysfs has it. */
struct address {
	unsigned int segment, bus, slot, function;
	char name[32];
};

/* --- sysfs ---------------------------------------------------------------------------------------- */

/* The first function with these ids; false without one. */
bool find_device(unsigned int vendor, unsigned int product, struct address *address);
/* The path of a function's file in sysfs, until the next call. */
char *bus_path(const struct address *address, const char *file);
/* Writes text to a file; 0 or -1. */
int put_file(const char *path, const char *text);
/* Takes a function from its driver. */
void unbind_device(const struct address *address);
/* Binds a function to rvmm's driver. */
void bind_device(const struct address *address);
/* Takes a function from rvmm's driver; it may have another one from now on. */
void give_back(const struct address *address);
/* The edu device, bound to the driver; skips the test without one. */
struct address edu(void);

/* --- the device ------------------------------------------------------------------------------------- */

/* RVMM_ASSIGN_DEVICE: its result, the same but required to succeed, and the same but refused with a sentence. */
int try_assign(int vm, const struct address *address);
int assign(const struct vm *vm, const struct address *address);
void check_refused(int vm, const struct address *address, int want, const char *text);

struct rvmm_device_info info_of(int device);
int config_write(int device, uint32_t offset, uint32_t size, uint32_t value);
uint32_t config_read(int device, uint32_t offset, uint32_t size);
/* Bus mastering on or off. */
void set_master(int device, bool on);
volatile uint8_t *map_bar(int device, unsigned int bar);
/* Starts a transfer between the device's buffer and a DMA address; the same, until it is over (a tenth of a second). */
void dma_start(volatile uint8_t *bar, uint64_t address, uint64_t bytes, bool to_memory);
void dma(volatile uint8_t *bar, uint64_t address, uint64_t bytes, bool to_memory);
int set_irqs(int device, uint32_t kind, uint32_t count, uint32_t gsi);
/* Makes a GSI the message with this vector for the APIC with id 0. */
void route_message(struct vm *vm, unsigned int gsi, unsigned int vector);
/* Whether an access to the registers ends in SIGBUS. */
bool is_gone(volatile uint8_t *bar);

/* --- the host ----------------------------------------------------------------------------------------- */

/* The kernel's log from now on, and how many new lines in it have both words. */
int log_open(void);
unsigned int log_lines(int fd, const char *word, const char *other);
/* Interrupts that Intel's IOMMUs have raised for faults. */
unsigned long fault_interrupts(void);

static inline void write32(volatile uint8_t *bar, unsigned int at, uint32_t value)
{
	*(volatile uint32_t *)(bar + at) = value;
}

static inline uint32_t read32(volatile uint8_t *bar, unsigned int at)
{
	return *(volatile uint32_t *)(bar + at);
}

static inline void write64(volatile uint8_t *bar, unsigned int at, uint64_t value)
{
	*(volatile uint64_t *)(bar + at) = value;
}

#endif
