// SPDX-License-Identifier: Apache-2.0 OR MIT
//! An NVMe controller made ready for the guest: one pair of queues, with commands that need nothing
//! but their block's number (NVM Express Base Specification 1.4).

use std::time::{Duration, Instant};

use super::device::Registers;
use super::region::Region;

/// Bytes of registers: the controller's, and the doorbells.
pub const REGISTERS: usize = 0x2000;
/// Guest-physical address of the submission queue of the guest.
pub const SUBMISSION: u64 = 0x8_2000;
/// Guest-physical address of the completion queue of the guest.
pub const COMPLETION: u64 = 0x8_3000;
/// Entries of either queue.
pub const ENTRIES: u32 = 16;
/// Blocks of 4 KiB that are read.
pub const BLOCKS: u32 = 0x4000;

/// Guest-physical addresses of the queues of the administrator.
const ADMIN: [u64; 2] = [0x8_0000, 0x8_1000];
/// Guest-physical address that all data goes to.
const BUFFER: u64 = 0x8_4000;
/// Bytes of a block of the namespace.
const LOGICAL: u32 = 512;

/// Registers (3.1).
mod reg {
    pub const CAP: usize = 0x00;
    pub const CC: usize = 0x14;
    pub const CSTS: usize = 0x1c;
    pub const AQA: usize = 0x24;
    pub const ASQ: usize = 0x28;
    pub const ACQ: usize = 0x30;
    pub const ADMIN_TAIL: usize = 0x1000;
    pub const ADMIN_HEAD: usize = 0x1004;
}

/// CC: enabled, entries of 64 and 16 bytes.
const ENABLE: u32 = 6 << 16 | 4 << 20 | 1;

fn wait(registers: &Registers, ready: u32) -> anyhow::Result<()> {
    let begin = Instant::now();
    while registers.read(reg::CSTS) & 1 != ready {
        anyhow::ensure!(
            begin.elapsed() < Duration::from_secs(60),
            "the controller does not follow"
        );
        std::thread::yield_now();
    }
    Ok(())
}

/// A submission queue entry (4.2).
fn entry(opcode: u32, id: u32, namespace: u32, data: u64, tail: [u32; 3]) -> [u8; 64] {
    let mut words = [0u32; 16];
    words[0] = id << 16 | opcode;
    words[1] = namespace;
    words[6] = data as u32;
    words[7] = (data >> 32) as u32;
    words[10..13].copy_from_slice(&tail);
    let mut bytes = [0; 64];
    for (to, word) in bytes.chunks_exact_mut(4).zip(words) {
        to.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

/// Switches the controller off: from now on it masters the bus no more.
pub fn stop(registers: &Registers) -> anyhow::Result<()> {
    registers.write(reg::CC, 0);
    wait(registers, 0)
}

/// Makes the queues in the guest's memory, with message 1 for completions, and fills the submission queue with reads.
pub fn start(registers: &Registers, memory: &mut Region) -> anyhow::Result<()> {
    anyhow::ensure!(
        registers.read(reg::CAP + 4) & 0xf == 0,
        "doorbells are not 4 bytes apart"
    );
    stop(registers)?;
    memory.write(ADMIN[1], &[0; 4096]);
    memory.write(COMPLETION, &[0; 4096]);
    registers.write(reg::AQA, (ENTRIES - 1) << 16 | (ENTRIES - 1));
    for (at, queue) in [(reg::ASQ, ADMIN[0]), (reg::ACQ, ADMIN[1])] {
        registers.write(at, queue as u32);
        registers.write(at + 4, (queue >> 32) as u32);
    }
    registers.write(reg::CC, ENABLE);
    wait(registers, 1)?;

    let shape = (ENTRIES - 1) << 16 | 1;
    // Create I/O Completion Queue (5.3): message 1, interrupts enabled, contiguous. Submission Queue (5.4): with it.
    let create = [
        entry(5, 1, 0, COMPLETION, [shape, 1 << 16 | 3, 0]),
        entry(1, 2, 0, SUBMISSION, [shape, 1 << 16 | 1, 0]),
    ];
    for (index, command) in create.iter().enumerate() {
        memory.write(ADMIN[0] + 64 * index as u64, command);
        registers.write(reg::ADMIN_TAIL, index as u32 + 1);
        let begin = Instant::now();
        let status = loop {
            let word = memory.read_u64(ADMIN[1] + 16 * index as u64 + 8);
            if word >> 48 & 1 != 0 {
                break word >> 49;
            }
            anyhow::ensure!(
                begin.elapsed() < Duration::from_secs(60),
                "the controller does not answer"
            );
            std::thread::yield_now();
        };
        registers.write(reg::ADMIN_HEAD, index as u32 + 1);
        anyhow::ensure!(status == 0, "a queue was refused: status {status:#x}");
    }
    for index in 0..ENTRIES {
        // Read (6.9), 4 KiB of namespace 1.
        let read = entry(2, index, 1, BUFFER, [0, 0, 4096 / LOGICAL - 1]);
        memory.write(SUBMISSION + 64 * u64::from(index), &read);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entry_layout() {
        let bytes = entry(2, 7, 1, 0x1_0000_2000, [8, 0, 7]);
        assert_eq!(bytes[..8], [2, 0, 7, 0, 1, 0, 0, 0]);
        assert_eq!(bytes[24..32], 0x1_0000_2000u64.to_le_bytes());
        assert_eq!(bytes[40..52], [8, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0]);
    }
}
