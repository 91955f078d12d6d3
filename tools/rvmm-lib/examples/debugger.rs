// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A debugger in one page, for `rvmm run --gdb`: `debugger PORT [software]` takes a Linux kernel, which is this host's
//! own and lies where it was linked to be, through everything that the protocol has, and leaves it running.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::TcpStream;

struct Debugger {
    stream: TcpStream,
    symbols: HashMap<String, u64>,
}

impl Debugger {
    fn send(&mut self, packet: &str) {
        let sum = packet.bytes().fold(0u8, u8::wrapping_add);
        write!(self.stream, "${packet}#{sum:02x}").expect("the connection");
    }

    fn byte(&mut self) -> u8 {
        let mut byte = [0];
        self.stream.read_exact(&mut byte).expect("the connection");
        byte[0]
    }

    fn answer(&mut self) -> String {
        while self.byte() != b'$' {}
        let mut text = String::new();
        loop {
            match self.byte() {
                b'#' => break,
                // A run of the last character (`Overview` of the protocol).
                b'*' => {
                    let count = self.byte() - 29;
                    let last = text.chars().last().expect("a character");
                    text.extend((0..count).map(|_| last));
                }
                byte => text.push(byte.into()),
            }
        }
        // The sum, which a socket does not need.
        self.stream.read_exact(&mut [0; 2]).expect("the connection");
        self.stream.write_all(b"+").expect("the connection");
        text
    }

    fn ask(&mut self, packet: &str) -> String {
        self.send(packet);
        self.answer()
    }

    fn expect(&mut self, packet: &str, start: &str) -> String {
        let answer = self.ask(packet);
        assert!(
            answer.starts_with(start),
            "{packet}: {answer} and not {start}"
        );
        println!("ok - {packet:.60}: {answer:.60}");
        answer
    }

    fn rip(&mut self) -> u64 {
        let registers = self.ask("g");
        let bytes = registers.get(0x100..0x110).expect("all registers");
        u64::from_str_radix(bytes, 16).expect("hex").swap_bytes()
    }

    /// The address of a symbol.
    fn at(&self, name: &str) -> u64 {
        *self
            .symbols
            .get(name)
            .unwrap_or_else(|| panic!("no symbol {name}"))
    }
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let port: u16 = arguments
        .next()
        .and_then(|port| port.parse().ok())
        .expect("a port");
    let software = arguments.next().is_some();
    let symbols = std::fs::read_to_string("/proc/kallsyms").expect("symbols");
    let symbols = symbols.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let address = u64::from_str_radix(words.next()?, 16).ok()?;
        Some((words.nth(1)?.to_owned(), address))
    });
    let mut gdb = Debugger {
        stream: TcpStream::connect(("127.0.0.1", port)).expect("a machine that waits"),
        symbols: symbols.collect(),
    };
    gdb.expect(
        "qSupported:multiprocess+;swbreak+;hwbreak+;vContSupported+",
        "PacketSize",
    );
    gdb.expect("?", "T05");
    let threads = gdb.ask("qfThreadInfo");
    assert_eq!(threads.matches("p01.").count(), 2, "{threads}");
    println!("ok - two vCPUs: {threads}");

    // Step by step from the first instruction.
    gdb.expect("Hgp1.1", "OK");
    let first = gdb.rip();
    let code = gdb.expect(&format!("m{first:x},10"), "");
    assert_eq!(code.len(), 32);
    let mut seen = vec![first];
    for _ in 0..4 {
        gdb.expect("vCont;s:p1.1;c", "T05thread:p01.01");
        let rip = gdb.rip();
        assert!(!seen.contains(&rip), "{rip:x} again");
        seen.push(rip);
    }
    println!("ok - five instructions: {seen:x?}");

    // As far as a function.
    let start = gdb.at("start_kernel");
    gdb.expect(&format!("Z1,{start:x},1"), "OK");
    gdb.expect("vCont;c", "T05thread:p01.01;hwbreak:");
    assert_eq!(gdb.rip(), start);
    gdb.expect(&format!("z1,{start:x},1"), "OK");
    println!("ok - {start:x} is start_kernel");

    // Registers and memory can be changed.
    let registers = gdb.ask("g");
    let r15 = 15 * 16;
    let changed = format!(
        "{}efcdab8967452301{}",
        &registers[..r15],
        &registers[r15 + 16..]
    );
    gdb.expect(&format!("G{changed}"), "OK");
    assert_eq!(gdb.ask("g"), changed);
    gdb.expect(&format!("G{registers}"), "OK");
    let text = gdb.ask(&format!("m{start:x},8"));
    gdb.expect(&format!("M{start:x},2:9090"), "OK");
    assert_eq!(
        gdb.ask(&format!("m{start:x},8")),
        format!("9090{}", &text[4..])
    );
    gdb.expect(&format!("M{start:x},8:{text}"), "OK");
    // A breakpoint in memory is not seen there.
    gdb.expect(&format!("Z0,{start:x},1"), "OK");
    assert_eq!(gdb.ask(&format!("m{start:x},8")), text);
    gdb.expect(&format!("z0,{start:x},1"), "OK");
    assert_eq!(gdb.ask(&format!("m{start:x},8")), text);
    gdb.expect("m0000000000001234,4", "E");

    // Emulators may not let breakpoints in memory stop a guest.
    if software {
        let rest = gdb.at("rest_init");
        gdb.expect(&format!("Z0,{rest:x},1"), "OK");
        gdb.expect("vCont;c", "T05thread:p01.01;swbreak:");
        assert_eq!(gdb.rip(), rest);
        gdb.expect(&format!("z0,{rest:x},1"), "OK");
    }

    // Somebody counts ticks.
    let jiffies = gdb.at("jiffies_64");
    gdb.expect(&format!("Z2,{jiffies:x},8"), "OK");
    let before = gdb.ask(&format!("m{jiffies:x},8"));
    gdb.expect("vCont;c", "T05thread:p01.0");
    assert_ne!(gdb.ask(&format!("m{jiffies:x},8")), before);
    gdb.expect(&format!("z2,{jiffies:x},8"), "OK");

    // A running guest is interrupted, and left alone.
    gdb.send("vCont;c");
    std::thread::sleep(std::time::Duration::from_millis(500));
    gdb.stream.write_all(b"\x03").expect("the connection");
    let answer = gdb.answer();
    assert!(answer.starts_with("T02"), "{answer}");
    gdb.expect("D;1", "OK");
    println!("the guest goes on without a debugger");
}
