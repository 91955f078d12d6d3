#!/bin/sh
# SPDX-License-Identifier: Apache-2.0 OR MIT
# Refused DMA has to be in the kernel's log, and the benchmark to have its rows of devices.
set -e
assign refused_dma refused_dma_flood
rvmm pci list
rvmm bench --pci 00:01.0 --pci 00:02.0 --dma 64M --iterations 20
