# SPDX-License-Identifier: GPL-2.0
modules:
	flock build/modules.lock tools/setup run -- $(MAKE) -C $(CURDIR)/build/kernel/obj M=$(CURDIR) modules
.PHONY: modules
