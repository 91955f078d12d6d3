# SPDX-License-Identifier: GPL-2.0
#
# rvmm: everything starts here. `make help` lists the targets.
#
#   BED=amd|zen|intel|iommu    emulated machine for `run` (amd: QEMU with SVM, zen: Bochs with SVM, intel: with VMX)
#   ARCH=arm64             `modules`, `clippy`, `imports`: rvmm.ko for the stock kernel of Arm64, in build/module-arm64;
#                          `tools`: the launcher for Arm64
#   KDIR=DIR               `modules`: build against this prepared kernel build directory (with Rust metadata),
#                          with this machine's own tools, instead of the stock kernel in build/
#   BENCH_FLAGS=, RUN_FLAGS=, CARGO_FLAGS=, TESTS=   more words for tools/bench, rvmm run, cargo build, tools/test

BED ?= amd
SMP ?= 1
MEM ?= 2048
ARCH ?= x86_64
KDIR ?=
TARGET := x86_64-unknown-linux-gnu
RELEASE = build/target/$(TARGET)/release
ROOT_RUN := tools/setup run --

ifeq ($(ARCH),arm64)
TARGET := aarch64-unknown-linux-gnu
KOBJ := $(CURDIR)/build/arm64/obj
MODULE_RUN := $(ROOT_RUN)
MODULE_DIR := $(CURDIR)/build/module-arm64
MODULE_NEEDS := setup-arm64
IMPORTS_WORDS := --arm64
CLIPPY_DIR := $(CURDIR)/build/clippy-arm64
# As in tools/lib/arm64.py.
KMAKE_WORDS := ARCH=arm64 CROSS_COMPILE=aarch64-linux-gnu- CC=aarch64-linux-gnu-gcc-14
else ifeq ($(KDIR),)
KOBJ := $(CURDIR)/build/kernel/obj
MODULE_RUN := $(ROOT_RUN)
MODULE_DIR := $(CURDIR)/build/module
MODULE_NEEDS := setup
CLIPPY_DIR := $(CURDIR)/build/clippy
else
KOBJ := $(abspath $(KDIR))
MODULE_RUN :=
MODULE_DIR := $(CURDIR)/build/module-other
MODULE_NEEDS :=
endif

# $(call timed,WHAT,COMMAND): say what is done, and how long it took when it took long enough to matter.
define timed
@at=$$(date +%s); { $(2) ; } || { s=$$?; echo "make: FAILED: $(1) (after $$(($$(date +%s) - at)) s)" >&2; exit $$s; }; \
	took=$$(($$(date +%s) - at)); [ $$took -lt 2 ] || echo "make: $(1): $$took s"
endef

# One at a time in a build tree, whoever calls.
KMAKE = mkdir -p $(1) && flock $(1).lock $(MODULE_RUN) \
	$(MAKE) -s -C $(KOBJ) M=$(CURDIR) MO=$(1) $(KMAKE_WORDS) CONFIG_DEBUG_INFO_BTF_MODULES=

.DEFAULT_GOAL := help
.PHONY: help setup setup-arm64 modules tools guest run bench check fmt clippy imports switches clean distclean
.PHONY: test test-kvm test-qemu test-guests test-iommu test-arm test-long test-fuzz clippy-module faulty

help:
	@echo 'make run            boot a Linux guest through /dev/rvmm in the AMD bed (BED=intel: on VMX)'
	@echo 'make test           unit tests, checks, selftests in both beds; ends with "N passed, M failed"'
	@echo 'make test-kvm       the selftests of the kernel for KVM, on KVM and on rvmm'
	@echo 'make test-qemu      guests of unmodified QEMU in all its combinations, in both beds'
	@echo 'make test-guests    kernels, boot loaders and installers of Debian, migration, hot-plug (BED=intel)'
	@echo 'make test-iommu     everything with devices handed to guests'
	@echo 'make test-arm       everything for Arm64: cross-built, in the arm bed'
	@echo 'make test-long      what takes long: ten thousand attempts to break out by DMA, memory, selftests on KVM'
	@echo 'make test-fuzz      hours of the fuzzer in both beds, from FUZZ_SEED=N on'
	@echo 'make bench          rvmm beside stock KVM, ticks per operation'
	@echo 'make modules        rvmm.ko for the stock Debian kernel (KDIR=DIR: for another one)'
	@echo 'make tools          the launcher and its companions, statically linked ($(RELEASE)/)'
	@echo 'make check          rustfmt, clippy, import list and world switches of rvmm.ko'
	@echo 'make fmt            rustfmt, in place'
	@echo 'make setup          what all that needs, below build/ (the other targets call it)'
	@echo 'make clean          remove what was built; distclean: the build root and the kernel as well'

setup:
	@tools/setup

setup-arm64:
	@tools/setup --with arm64

modules: $(MODULE_NEEDS)
	$(call timed,rvmm.ko,$(call KMAKE,$(MODULE_DIR)) modules)
	@[ $(ARCH) = arm64 ] || cmp -s $(MODULE_DIR)/rvmm.ko rvmm.ko || cp $(MODULE_DIR)/rvmm.ko rvmm.ko

# A module for tests alone: has the kernel's allocators fail, on order.
faulty: $(MODULE_NEEDS)
	@mkdir -p build/faulty && flock build/faulty.lock $(MODULE_RUN) $(MAKE) -s -C $(KOBJ) \
		M=$(CURDIR)/selftests/faulty MO=$(CURDIR)/build/faulty $(KMAKE_WORDS) \
		CONFIG_DEBUG_INFO_BTF_MODULES= modules

tools: $(if $(filter arm64,$(ARCH)),setup-arm64,setup)
	$(call timed,user-space programs,$(ROOT_RUN) \
		cargo build -q --release --target $(TARGET) --workspace --bins $(CARGO_FLAGS))

guest: setup
	@tools/guest

run: modules tools guest
	@[ -t 0 ] && [ -t 1 ] || alone='--append rvmm.cmd=poweroff'; \
	tools/bed --bed $(BED) --smp $(SMP) --mem $(MEM) \
		--add $(RELEASE)/rvmm --add build/guest/bzImage --add build/guest/initrd -- \
		rvmm run --kernel bzImage --initrd initrd $$alone $(RUN_FLAGS)

test: setup
	@tools/test $(TESTS)

# The selftests of the kernel for KVM, unchanged: about twenty minutes.
test-kvm: setup modules
	@tools/kvm-selftests --bed $(BED) $(TESTS)

# Every machine type of QEMU's with every kind of interrupt controller, in both beds: 20 minutes.
test-qemu: setup
	@tools/test --qemu $(TESTS)

# Guests that exist, by unmodified QEMU and the launcher: an hour.
test-guests: setup modules tools
	@tools/guests --bed $(BED) $(TESTS)

# Devices handed to guests, on a machine with an IOMMU: more than `make test` runs.
test-iommu: setup
	@tools/test --iommu $(TESTS)

# Arm64: a quarter of an hour, and a set-up of its own the first time.
test-arm: setup
	@tools/test --arm $(TESTS)

# The same attacks ten times as long, the dirty log under stress, KVM's own tests of memory: hours.
test-long: setup
	@tools/test --long $(TESTS)

# Seeds that nobody has tried yet: hours.
test-fuzz: setup
	@FUZZ_SEED=$(or $(FUZZ_SEED),1000) tools/test --fuzz $(TESTS)

bench: modules tools guest
	@tools/bench $(BENCH_FLAGS)

check: fmtcheck clippy imports switches

.PHONY: fmtcheck
RUST_FILES = $(shell find src rust uapi tools selftests -name '*.rs')
fmtcheck: setup
	$(call timed,rustfmt,$(ROOT_RUN) rustfmt --color never --edition 2021 --check $(RUST_FILES))

fmt: setup
	$(call timed,rustfmt,$(ROOT_RUN) rustfmt --edition 2021 $(RUST_FILES))

clippy-module: $(MODULE_NEEDS)
	$(call timed,clippy on the module,$(call KMAKE,$(CLIPPY_DIR)) CLIPPY=1 KRUSTFLAGS=-Dwarnings modules)

clippy: setup clippy-module
	$(call timed,clippy on user space,$(ROOT_RUN) cargo clippy -q --workspace --all-targets -- -D warnings)

# What rvmm.ko takes from the kernel, against the list that is checked in (`make imports UPDATE=1` renews it).
imports: modules
	$(call timed,import list,tools/imports $(IMPORTS_WORDS) $(if $(UPDATE),--update) $(MODULE_DIR)/rvmm.ko)

# What rvmm.ko does between guests and host, against speculation across that boundary.
switches: modules
	$(call timed,world switches,tools/switches --self-test $(MODULE_DIR)/rvmm.ko)

clean:
	rm -rf build/module build/module-other build/module-arm64 build/faulty build/clippy build/clippy-arm64
	rm -f build/*.lock
	rm -rf build/target build/guest build/bed build/run
	rm -f rvmm.ko

distclean: clean
	rm -rf --one-file-system build
