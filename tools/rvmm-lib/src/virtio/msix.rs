// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The table of MSI-X and its masks (PCI Local Bus Specification 3.0, 6.8.2). Registers only; who sends is elsewhere.

#![forbid(unsafe_code)]

/// Bytes of an entry of the table.
const ENTRY: u64 = 16;
/// Bit of an entry's last word: masked.
const MASKED: u32 = 1;
/// Bit of the message control register: on.
const ENABLE: u16 = 1 << 15;
/// Bit of the message control register: all masked.
const MASK_ALL: u16 = 1 << 14;

/// A message: address and data.
pub type Message = (u64, u32);

/// The table.
pub struct Table {
    entries: Vec<[u32; 4]>,
    control: u16,
}

impl Table {
    /// A table of `vectors` entries, all masked, and off.
    pub fn new(vectors: u16) -> Self {
        Self {
            entries: vec![[0, 0, 0, MASKED]; vectors.into()],
            control: 0,
        }
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Takes the message control register, as the driver has written it.
    pub fn set_control(&mut self, control: u16) {
        self.control = control;
    }

    /// The entries, and the message control register.
    pub fn state(&self) -> (Vec<[u32; 4]>, u16) {
        (self.entries.clone(), self.control)
    }

    /// Becomes what it was; false if it had another number of entries.
    pub fn restore(&mut self, (entries, control): &(Vec<[u32; 4]>, u16)) -> bool {
        let fits = entries.len() == self.entries.len();
        if fits {
            (self.entries, self.control) = (entries.clone(), *control);
        }
        fits
    }

    /// What a vector sends, unless it is masked or off.
    pub fn message(&self, vector: usize) -> Option<Message> {
        let [low, high, data, masked] = *self.entries.get(vector)?;
        let on = self.control & ENABLE != 0 && self.control & MASK_ALL == 0;
        (on && masked & MASKED == 0).then_some((u64::from(high) << 32 | u64::from(low), data))
    }

    fn word(&mut self, offset: u64) -> Option<(usize, &mut u32)> {
        let index = usize::try_from(offset / ENTRY).ok()?;
        let word = (offset % ENTRY / 4) as usize;
        Some((word, self.entries.get_mut(index)?.get_mut(word)?))
    }

    /// The driver reads words of the table: 4 or 8 bytes, aligned.
    pub fn read(&mut self, offset: u64, data: &mut [u8]) {
        for (n, bytes) in (0..).zip(data.chunks_exact_mut(4)) {
            if let Some((_, word)) = self.word(offset + 4 * n).filter(|_| offset % 4 == 0) {
                bytes.copy_from_slice(&word.to_le_bytes());
            }
        }
    }

    /// The driver writes words of the table: 4 or 8 bytes, aligned.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        for (n, bytes) in (0..).zip(data.chunks_exact(4)) {
            let value = bytes
                .iter()
                .rev()
                .fold(0, |sum, byte| sum << 8 | u32::from(*byte));
            if let Some((at, word)) = self.word(offset + 4 * n).filter(|_| offset % 4 == 0) {
                *word = match at {
                    0 => value & !3,
                    3 => value & MASKED,
                    _ => value,
                };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vector_sends_when_nothing_masks_it() {
        let mut table = Table::new(2);
        table.write(16, &0xfee0_1000u64.to_le_bytes());
        table.write(24, &0x41u32.to_le_bytes());
        table.write(28, &[0; 4]);
        assert_eq!(table.message(1), None, "off");
        table.set_control(ENABLE);
        assert_eq!(table.message(1), Some((0xfee0_1000, 0x41)));
        assert_eq!(table.message(0), None, "masked from the start");
        table.set_control(ENABLE | MASK_ALL);
        assert_eq!(table.message(1), None);
        table.set_control(ENABLE);
        table.write(28, &[1, 0, 0, 0]);
        assert_eq!(table.message(1), None);
        assert_eq!(table.message(2), None);
    }

    #[test]
    fn accesses_beside_the_table_are_survived() {
        let mut table = Table::new(3);
        for offset in (0..80).chain([u64::MAX / 2]) {
            for length in 0..9 {
                table.write(offset, &[0xff; 8][..length]);
                table.read(offset, &mut [0; 8][..length]);
            }
        }
        let mut word = [0; 4];
        table.read(28, &mut word);
        assert_eq!(word, [1, 0, 0, 0]);
    }
}
