// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The few terms of ACPI's machine language that this machine's description needs (ACPI 6.5, chapter 20), and resource
//! descriptors (6.4).

#![forbid(unsafe_code)]

/// A name of up to four letters, filled up (20.2.2).
pub fn name_segment(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize(4, b'_');
    bytes
}

/// An integer in its shortest form (20.2.3).
pub fn integer(value: u32) -> Vec<u8> {
    match value {
        0 | 1 => vec![value as u8],
        2..=0xff => vec![0x0a, value as u8],
        0x100..=0xffff => [&[0x0b], &(value as u16).to_le_bytes()[..]].concat(),
        _ => [&[0x0c], &value.to_le_bytes()[..]].concat(),
    }
}

/// A string.
pub fn string(text: &str) -> Vec<u8> {
    [&[0x0d], text.as_bytes(), &[0]].concat()
}

/// A compressed EISA id, such as PNP0A03 (19.3.4).
pub fn eisa_id(id: &str) -> Vec<u8> {
    let digits = u32::from_str_radix(&id[3..], 16).unwrap_or(0);
    let letters = id[..3]
        .bytes()
        .fold(0, |sum, letter| sum << 5 | u32::from(letter & 0x1f));
    [&[0x0c], &(letters << 16 | digits).to_be_bytes()[..]].concat()
}

/// A package length and what it is of (20.2.4): the length counts its own bytes.
fn sized(body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let own = match length {
        0..=0x3e => return [&[length as u8 + 1], body].concat(),
        0x3f..=0xffd => 2,
        0xffe..=0xf_fffc => 3,
        _ => 4,
    };
    let length = length + own;
    let mut bytes = vec![((own - 1) << 6 | length & 0xf) as u8];
    bytes.extend((0..own - 1).map(|n| (length >> (4 + 8 * n)) as u8));
    bytes.extend_from_slice(body);
    bytes
}

/// `Name (name, value)`.
pub fn name(name: &str, value: &[u8]) -> Vec<u8> {
    [&[0x08], &name_segment(name)[..], value].concat()
}

/// `Package () {...}`.
pub fn package(elements: &[Vec<u8>]) -> Vec<u8> {
    let body = [&[elements.len() as u8], &elements.concat()[..]].concat();
    [&[0x12], &sized(&body)[..]].concat()
}

/// `Scope (\_SB) {...}`.
pub fn system_bus(body: &[u8]) -> Vec<u8> {
    [&[0x10], &sized(&[b"\\_SB_", body].concat())[..]].concat()
}

/// `Device (name) {...}`.
pub fn device(name: &str, body: &[Vec<u8>]) -> Vec<u8> {
    let body = [name_segment(name), body.concat()].concat();
    [&[0x5b, 0x82], &sized(&body)[..]].concat()
}

/// `Method (name, arguments, Serialized) {...}`.
pub fn method(name: &str, arguments: u8, body: &[u8]) -> Vec<u8> {
    let body = [&name_segment(name)[..], &[arguments | 8], body].concat();
    [&[0x14], &sized(&body)[..]].concat()
}

/// `Notify (\_SB.name, value)`.
pub fn notify(name: &str, value: u32) -> Vec<u8> {
    [b"\x86\\\x2e_SB_", &name_segment(name)[..], &integer(value)].concat()
}

/// `Name (_CRS, ResourceTemplate () {...})`.
pub fn resources(descriptors: &[Vec<u8>]) -> Vec<u8> {
    // An end tag without checksum.
    let bytes = [&descriptors.concat()[..], &[0x79, 0]].concat();
    let buffer = [integer(bytes.len() as u32), bytes].concat();
    name("_CRS", &[&[0x11], &sized(&buffer)[..]].concat())
}

/// I/O ports, decoded by 16 bits (6.4.2.5).
pub fn ports(first: u16, length: u8) -> Vec<u8> {
    let [low, high] = first.to_le_bytes();
    vec![0x47, 1, low, high, low, high, 1, length]
}

/// An ISA interrupt, edge-triggered and active high (6.4.2.1).
pub fn irq(number: u8) -> Vec<u8> {
    let [low, high] = (1u16 << number).to_le_bytes();
    vec![0x22, low, high]
}

/// Memory at a fixed place (6.4.3.4).
pub fn memory(base: u32, length: u32) -> Vec<u8> {
    [
        &[0x86, 9, 0, 1][..],
        &base.to_le_bytes(),
        &length.to_le_bytes(),
    ]
    .concat()
}

/// Bus numbers that a bridge passes on (6.4.3.5.3).
pub fn bus_numbers(first: u16, last: u16) -> Vec<u8> {
    let words = [0, first, last, 0, last - first + 1];
    let words: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    [&[0x88, 13, 0, 2, 0x0c, 0][..], &words].concat()
}

/// Memory that a bridge passes on, not to be cached (6.4.3.5.2).
pub fn bridge_memory(first: u32, last: u32) -> Vec<u8> {
    let words = [0, first, last, 0, last - first + 1];
    let words: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    [&[0x87, 23, 0, 0, 0x0c, 1][..], &words].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_count_themselves() {
        assert_eq!(sized(&[7; 62])[..2], [63, 7]);
        assert_eq!(sized(&[7; 63])[..3], [0x41, 4, 7]);
        let long = sized(&[7; 0x1000]);
        assert_eq!(long[..4], [0x83, 0, 1, 7]);
        assert_eq!(long.len(), 0x1003);
    }

    #[test]
    fn terms_are_those_of_the_specification() {
        // As iasl writes them.
        assert_eq!(eisa_id("PNP0A03"), [0x0c, 0x41, 0xd0, 0x0a, 0x03]);
        assert_eq!(eisa_id("PNP0501"), [0x0c, 0x41, 0xd0, 0x05, 0x01]);
        assert_eq!(integer(5), [0x0a, 5]);
        assert_eq!(integer(0x1234), [0x0b, 0x34, 0x12]);
        assert_eq!(
            name("_S5", &package(&[integer(5), integer(0)])),
            [0x08, b'_', b'S', b'5', b'_', 0x12, 5, 2, 0x0a, 5, 0]
        );
        assert_eq!(
            method("_EVT", 1, &notify("VGEN", 0x80))[..],
            *b"\x14\x13_EVT\x09\x86\\\x2e_SB_VGEN\x0a\x80"
        );
        assert_eq!(device("X", &[]), [0x5b, 0x82, 5, b'X', b'_', b'_', b'_']);
    }
}
