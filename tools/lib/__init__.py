# SPDX-License-Identifier: Apache-2.0 OR MIT
"""What the programs of tools/ share. Python's standard library is all that it takes.

    paths       where things are                                every program
    report      what is said to the user, and how it fails      setup, bed, guest
    files       files that are whole or absent                  setup, bed, guest
    buildroot   programs run inside the build root              setup, bed, guest, imports
    stamps      steps that are done once                        setup
    debian      the steps that make the build root              setup
    kernel      the steps that fetch and prepare the kernel     setup
    arm64       the same for Arm64, when it is asked for        setup, bed
    debpool     packages of other suites and architectures      setup, guests
    stock       the stock kernel's image and its modules        bed, guest
    elf         what an ELF file says of itself                 bed, guest
    initramfs   the cpio archive that a machine starts from     bed, guest
    emulators   the emulators without their known faults        setup, bed
    machines/   the emulated machines                           bed
    complaints  lines of a kernel's log that fail a run         bed
    monitor     a machine that runs, watched until its end      bed
    inbed       a command in a bed, as a child                  badinput, bench, costs, crate-tests, emulation, guests,
                                                                kvm-selftests, machine-check, models, msrs
    qemuinbed   QEMU in a bed, driven by Python                 guests, models
    abi         where docs/abi.md differs from KVM              msrs, models
    steps       the kinds of steps that a suite is made of      test
    runner      steps run side by side, and their report        test
    results     results in KTAP's and cargo's words             test
    rustpaths   what the Rust files of a tree name              layers

Shell programs: bed/ has those that run in a bed, guest/ those of the guest, buildroot.sh enters the build root.
"""
