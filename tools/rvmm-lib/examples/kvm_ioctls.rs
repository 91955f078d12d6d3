// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A virtual machine by hand, after the example in the documentation of kvm-ioctls 0.25.1 (Apache-2.0 OR MIT).
//! Against that one only the path of the device differs: programs written for KVM need no other change.
//!
//! Six paragraphs make it: memory, code, vCPU, registers, the loop of KVM_RUN, and the log of dirty pages.

use kvm_bindings::{kvm_userspace_memory_region, KVM_MEM_LOG_DIRTY_PAGES};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryMmap, GuestMemoryRegion};

/// Number of the VM's only memory slot.
const SLOT: u32 = 0;
/// Guest-physical address of the memory, and of the first instruction.
const START: u64 = 0x1000;
/// Bytes of memory: it ends at 0x5000, so that 0x8000 is nobody's.
const SIZE: usize = 0x4000;

/// The guest: 16-bit code for real mode.
const CODE: &[u8] = &[
    0xba, 0xf8, 0x03, // mov $0x3f8, %dx
    0x00, 0xd8, // add %bl, %al
    0x04, b'0', // add $'0', %al
    0xee, // out %al, %dx
    0xec, // in %dx, %al
    0xc6, 0x06, 0x00, 0x80, 0x00, // movb $0, (0x8000): no memory is there, hence an exit
    0x8a, 0x16, 0x00, 0x80, // movb (0x8000), %dl: the same for a read
    0xf4, // hlt
];

fn main() {
    let kvm = Kvm::new_with_path(c"/dev/rvmm").expect("/dev/rvmm");
    let vm = kvm.create_vm().expect("KVM_CREATE_VM");
    let memory = add_memory(&vm);
    load(&memory);
    // A VM has as many vCPUs as are created; each belongs to the thread that runs it.
    let mut vcpu = vm.create_vcpu(0).expect("KVM_CREATE_VCPU");
    set_registers(&vcpu);
    run(&vm, &mut vcpu);
}

/// Guest memory is memory of this process. The slot says which addresses of the guest it has, and the flag makes the
/// hypervisor note which of its pages the guest writes.
fn add_memory(vm: &VmFd) -> GuestMemoryMmap {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(START), SIZE)]).expect("memory");
    let region = memory.find_region(GuestAddress(START)).expect("region");
    let slot = kvm_userspace_memory_region {
        slot: SLOT,
        guest_phys_addr: START,
        memory_size: region.len(),
        userspace_addr: region.as_ptr() as u64,
        flags: KVM_MEM_LOG_DIRTY_PAGES,
    };
    // SAFETY: the mapping has this length, is touched through vm-memory only, and `main` drops it after the vCPU's run.
    unsafe { vm.set_user_memory_region(slot) }.expect("KVM_SET_USER_MEMORY_REGION");
    memory
}

/// The guest finds what this process has written: no ioctl is needed to load code.
fn load(memory: &GuestMemoryMmap) {
    memory
        .write_slice(CODE, GuestAddress(START))
        .expect("the code fits");
}

/// A new vCPU is in the state after RESET: real mode, with a code segment that begins at 0xffff0000. With a base of 0
/// the instruction pointer is the address. Bit 1 of the flags is always set (SDM 1 3.4.3).
fn set_registers(vcpu: &VcpuFd) {
    let mut sregs = vcpu.get_sregs().expect("KVM_GET_SREGS");
    sregs.cs.base = 0;
    sregs.cs.selector = 0;
    vcpu.set_sregs(&sregs).expect("KVM_SET_SREGS");

    let mut regs = vcpu.get_regs().expect("KVM_GET_REGS");
    regs.rip = START;
    regs.rax = 2;
    regs.rbx = 3;
    regs.rflags = 2;
    vcpu.set_regs(&regs).expect("KVM_SET_REGS");
}

/// KVM_RUN returns when the guest does what the hypervisor leaves to user space. The guest reads what user space puts
/// into `data`, here nothing; the next KVM_RUN completes the instruction.
fn run(vm: &VmFd, vcpu: &mut VcpuFd) {
    loop {
        match vcpu.run().expect("KVM_RUN") {
            VcpuExit::IoIn(port, data) => {
                let byte = data[0];
                println!("Received an I/O in exit. Address: {port:#x}. Data: {byte:#x}");
            }
            VcpuExit::IoOut(port, data) => {
                let byte = data[0];
                println!("Received an I/O out exit. Address: {port:#x}. Data: {byte:#x}");
            }
            VcpuExit::MmioRead(address, _) => {
                println!("Received an MMIO Read Request for the address {address:#x}.");
            }
            VcpuExit::MmioWrite(address, _) => {
                println!("Received an MMIO Write Request to the address {address:#x}.");
                check_dirty_pages(vm);
            }
            VcpuExit::Hlt => return,
            other => panic!("Unexpected exit reason: {other:?}"),
        }
    }
}

/// The log has a bit for each page of the slot. The code's page is the only one that the guest has touched, and the
/// hypervisor counts a page as soon as the guest could write it.
fn check_dirty_pages(vm: &VmFd) {
    let log = vm.get_dirty_log(SLOT, SIZE).expect("KVM_GET_DIRTY_LOG");
    let pages: u32 = log.iter().map(|bits| bits.count_ones()).sum();
    assert_eq!(pages, 1);
}
