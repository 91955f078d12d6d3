// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Rows of one exit each in the modes that are not the 64-bit one: a template of guest code, assembled for each code
//! size, in which a row puts its instruction.

use std::ptr;

use anyhow::Context as _;
use kvm_bindings::{kvm_regs, kvm_segment};
use rvmm_vm::{layout, paging};

use super::guest;
use super::machine::{drive_to_end, failed, set_slot, Machine};
use super::report::Ticks;
use super::rows::Bench;

/// Where there is nothing, within reach of a real-mode segment: accesses go to user space.
const HOLE: u64 = 0xa_0000;
/// Guest-physical addresses of code, of FS with what the template uses, and of the stack's segment.
const CODE: u64 = 0x2_0000;
const VARIABLES: u64 = 0x3_0000;
const STACK: u64 = 0x4_0000;
/// Offset of the results in FS.
const RESULTS: u64 = 0x100;
/// Bytes in the template for the instruction.
const SLOT: usize = 16;
/// Most iterations, by the size of FS.
const MOST: usize = 7000;

// FS holds how many iterations are left, where the next result goes, and what [E]BX and [E]DI, [E]SI and [E]SP are
// before the instruction. ECX is 4 then, EAX is 0.
std::arch::global_asm!(
    r#"
    .pushsection .rodata.rvmm_bench_modes, "a", @progbits
    .macro template size, bx
    .code\size
    .globl  rvmm_bench_template\size
    .globl  rvmm_bench_slot\size
    .globl  rvmm_bench_end\size
rvmm_bench_template\size:
2:
    mov     ebx, fs:[8]
    mov     esi, fs:[12]
    mov     esp, fs:[16]
    mov     edi, ebx
    lfence
    rdtsc
    mov     ebp, eax
    xor     eax, eax
    mov     ecx, 4
    mov     edx, {idle}
rvmm_bench_slot\size:
    .fill   {slot}, 1, 0x90
    lfence
    rdtsc
    sub     eax, ebp
    mov     ebx, fs:[4]
    mov     fs:[\bx], eax
    add     dword ptr fs:[4], 8
    dec     dword ptr fs:[0]
    jnz     2b
    mov     edx, {done}
    out     dx, al
rvmm_bench_end\size:
    .endm

    template 16, bx
    template 32, ebx
    template 64, rbx
    .purgem template
    .popsection
    "#,
    idle = const guest::IDLE,
    done = const guest::DONE,
    slot = const SLOT,
);

macro_rules! templates {
    ($($size:literal: $start:ident, $slot:ident, $end:ident;)*) => {
        extern "C" {
            $(static $start: u8; static $slot: u8; static $end: u8;)*
        }

        /// The template for a code size, and where its slot is.
        fn template(size: u8) -> (&'static [u8], usize) {
            let (start, slot, end) = match size {
                $($size => (&raw const $start, &raw const $slot, &raw const $end),)*
                _ => unreachable!("no such code size"),
            };
            let length = end as usize - start as usize;
            // SAFETY: the two symbols enclose the read-only bytes that the assembler emitted above, in one section
            // without gaps.
            (unsafe { &*ptr::slice_from_raw_parts(start, length) }, slot as usize - start as usize)
        }
    };
}

templates! {
    16: rvmm_bench_template16, rvmm_bench_slot16, rvmm_bench_end16;
    32: rvmm_bench_template32, rvmm_bench_slot32, rvmm_bench_end32;
    64: rvmm_bench_template64, rvmm_bench_slot64, rvmm_bench_end64;
}

/// A mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mode {
    /// As in the names of rows.
    name: &'static str,
    /// As tables show it.
    meaning: &'static str,
    /// Bits of its code: 16, 32 or 64.
    size: u8,
    cr0: u64,
    cr4: u64,
    efer: u64,
    tables: Tables,
}

/// Page tables, which map all memory to itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tables {
    None,
    Bits32,
    Pae,
    Levels4,
}

const PE: u64 = 1;
const ET_NE: u64 = 1 << 4 | 1 << 5;
const PG: u64 = 1 << 31;
const PAE: u64 = 1 << 5;
const LONG: u64 = 1 << 8 | 1 << 10;

macro_rules! modes {
    ($($name:literal $meaning:literal $size:literal $cr0:expr, $cr4:expr, $efer:expr, $tables:ident;)*) => {
        const MODES: &[Mode] = &[$(Mode {
            name: $name, meaning: $meaning, size: $size, cr0: $cr0 | ET_NE, cr4: $cr4, efer: $efer,
            tables: Tables::$tables,
        },)*];
    };
}

modes! {
    "real16"   "real mode"            16 0,       0,   0,    None;
    "prot16"   "16-bit protected"     16 PE,      0,   0,    None;
    "flat32"   "32-bit, no paging"    32 PE,      0,   0,    None;
    "paged32"  "32-bit paging"        32 PE | PG, 0,   0,    Bits32;
    "pae32"    "PAE paging"           32 PE | PG, PAE, 0,    Pae;
    "compat16" "16-bit compatibility" 16 PE | PG, PAE, LONG, Levels4;
    "compat32" "32-bit compatibility" 32 PE | PG, PAE, LONG, Levels4;
    "long"     "64-bit"               64 PE | PG, PAE, LONG, Levels4;
}

/// An instruction that exits, the same bytes in every code size; its memory operand is at [BX], [EDI] or [RDI].
struct Form {
    name: &'static str,
    meaning: &'static str,
    bytes: &'static [u8],
    /// Measured without being asked for, but in 64-bit code, which has rows of its own.
    usual: bool,
}

macro_rules! forms {
    ($($name:literal $meaning:literal $usual:literal $($byte:literal)*;)*) => {
        const FORMS: &[Form] = &[$(Form { name: $name, meaning: $meaning, bytes: &[$($byte),*], usual: $usual },)*];
    };
}

forms! {
    "cpuid"      "CPUID"              true  0x0f 0xa2;
    "port_in"    "port in"            true  0xec;
    "port_out"   "port out"           true  0xee;
    "mmio_read"  "MMIO read"          true  0x8b 0x07;
    "mmio_write" "MMIO write"         true  0x89 0x07;
    "mov_66"     "MOV r, m with 66"   false 0x66 0x8b 0x07;
    "mov_r8"     "MOV r8, m"          false 0x8a 0x07;
    "mov_m8"     "MOV m, r8"          false 0x88 0x07;
    "mov_imm"    "MOV m, imm8"        false 0xc6 0x07 0x05;
    "mov_a1"     "MOV A1"             false 0xa1;
    "mov_a3"     "MOV A3"             false 0xa3;
    "movzx"      "MOVZX r, m8"        false 0x0f 0xb6 0x07;
    "movsx"      "MOVSX r, m8"        false 0x0f 0xbe 0x07;
    "stos"       "STOSB"              false 0xaa;
    "rep_stos"   "REP STOSB, 4 bytes" false 0xf3 0xaa;
    "movs"       "MOVSB to MMIO"      false 0x64 0xa4;
    "push"       "PUSH m"             false 0xff 0x37;
    "pop"        "POP m"              false 0x8f 0x07;
    "or"         "OR m, r"            false 0x09 0x07;
    "add"        "ADD r, m"           false 0x03 0x07;
    "cmp"        "CMP m, r"           false 0x39 0x07;
    "test"       "TEST m8, imm8"      false 0xf6 0x07 0x01;
    "xchg"       "XCHG m, r"          false 0x87 0x07;
}

/// The rows: name, meaning, form, mode.
fn all() -> impl Iterator<Item = (String, String, &'static Form, &'static Mode)> {
    MODES.iter().flat_map(|mode| {
        FORMS.iter().map(move |form| {
            let name = format!("{}.{}", form.name, mode.name);
            let meaning = format!("{}, {}", form.meaning, mode.meaning);
            (name, meaning, form, mode)
        })
    })
}

/// Names and meanings of the rows.
pub fn names() -> impl Iterator<Item = (String, String)> {
    all().map(|(name, meaning, ..)| (name, meaning))
}

/// Measures the rows that are wanted: those asked for, by their name, their mode's or their form's.
pub fn rows(bench: &mut Bench) {
    let asked = bench.args.rows.clone();
    let mut empty = None;
    for (name, _, form, mode) in all() {
        let usual = form.usual && mode.size != 64;
        let group = |row: &String| {
            *row == name || row == mode.name || row.strip_prefix('.') == Some(form.name)
        };
        if asked.is_empty() && usual || asked.iter().any(group) {
            bench.measure_row(&name, |bench| {
                let overhead = match empty {
                    Some((of, ticks)) if of == mode.name => ticks,
                    _ => bench.template(mode)?,
                };
                empty = Some((mode.name, overhead));
                bench.in_mode(mode, form, overhead)
            });
        }
    }
}

impl Bench<'_> {
    /// Ticks of the template in a mode.
    fn template(&self, mode: &Mode) -> anyhow::Result<u64> {
        let samples = self.run_in(mode, &[])?;
        samples.into_iter().min().context("no samples")
    }

    /// Ticks of an instruction in a mode, without the `overhead` of the template.
    fn in_mode(&self, mode: &Mode, form: &Form, overhead: u64) -> anyhow::Result<Ticks> {
        let mut bytes = form.bytes.to_vec();
        if matches!(bytes[..], [0xa1 | 0xa3]) {
            // The address, in the address size.
            let address = mode.address(HOLE).to_le_bytes();
            bytes.extend_from_slice(&address[..usize::from(mode.size / 8)]);
        }
        Ticks::of(&self.run_in(mode, &bytes)?, overhead).context("no samples")
    }

    fn run_in(&self, mode: &Mode, bytes: &[u8]) -> anyhow::Result<Vec<u64>> {
        let count = (self.count() / 4).clamp(1, MOST);
        Machine::new(&self.kvm, self.irqchip())?.run_in(mode, bytes, count)
    }
}

impl Mode {
    /// The base of a segment that begins at `at`: only 16-bit code needs one, and FS has one always.
    fn base(&self, at: u64) -> u64 {
        if self.size == 16 {
            at
        } else {
            0
        }
    }

    /// The offset of `at`, in the segment that begins there.
    fn address(&self, at: u64) -> u64 {
        at - self.base(at)
    }

    fn segment(&self, base: u64, kind: u8) -> kvm_segment {
        let narrow = self.size == 16;
        kvm_segment {
            base,
            limit: if narrow { 0xffff } else { 0xffff_ffff },
            selector: if self.cr0 & PE == 0 {
                (base >> 4) as u16
            } else {
                8
            },
            type_: kind,
            present: 1,
            s: 1,
            g: (!narrow).into(),
            db: (self.size == 32 || self.size == 64 && kind == 3).into(),
            l: (self.size == 64 && kind != 3).into(),
            ..Default::default()
        }
    }

    /// Page tables for memory below 4 MiB, to be placed at `base`.
    fn page_tables(&self, base: u64) -> Vec<u8> {
        // Present, writable, accessed, dirty.
        const ENTRY: u64 = 0x63;
        let page = |n: u64| base + n * 4096;
        let bytes = |entries: &[u64]| {
            entries
                .iter()
                .flat_map(|e| e.to_le_bytes())
                .collect::<Vec<_>>()
        };
        let pages = (0..1024).map(|n| n << 12 | ENTRY);
        match self.tables {
            Tables::None => Vec::new(),
            Tables::Levels4 => paging::identity_map(base),
            Tables::Bits32 => {
                let mut directory = bytes(&[page(1) | ENTRY]);
                directory.resize(4096, 0);
                directory.extend(pages.flat_map(|entry| (entry as u32).to_le_bytes()));
                directory
            }
            Tables::Pae => {
                let mut all = bytes(&[page(1) | 1]);
                all.resize(4096, 0);
                all.extend(bytes(&[page(2) | ENTRY, page(3) | ENTRY]));
                all.resize(8192, 0);
                all.extend(bytes(&pages.collect::<Vec<_>>()));
                all
            }
        }
    }
}

impl Machine {
    /// Runs the template with these bytes of code in `mode`, and returns the ticks of each iteration.
    fn run_in(&mut self, mode: &Mode, bytes: &[u8], count: usize) -> anyhow::Result<Vec<u64>> {
        let warm = count / 10 + 1;
        let (code, slot) = template(mode.size);
        let mut code = code.to_vec();
        code[slot..][..bytes.len()].copy_from_slice(bytes);
        // Over the rest of the slot.
        let rest = SLOT - bytes.len() - 2;
        code[slot + bytes.len()..][..2].copy_from_slice(&[0xeb, rest as u8]);
        self.low.write(CODE, &code);
        self.low
            .write(layout::PAGE_TABLES, &mode.page_tables(layout::PAGE_TABLES));
        let variables = [
            (warm + count) as u64,
            RESULTS,
            mode.address(HOLE),
            RESULTS - 8,
            mode.address(STACK) + 0x1000,
        ];
        for (n, value) in (0..).zip(variables) {
            self.low
                .write(VARIABLES + n * 4, &(value as u32).to_le_bytes());
        }
        set_slot(&self.vm, 0, 0, self.low.address(), 0)?;
        set_slot(&self.vm, 0, 0, self.low.address(), HOLE)?;

        let vcpu = self.vcpus.first_mut().context("no CPU")?;
        let mut sregs = vcpu.get_sregs().map_err(failed("KVM_GET_SREGS"))?;
        sregs.cs = mode.segment(mode.base(CODE), 0xb);
        let data = |at| mode.segment(mode.base(at), 3);
        (sregs.ds, sregs.es, sregs.gs, sregs.ss) =
            (data(HOLE), data(HOLE), data(HOLE), data(STACK));
        sregs.fs = mode.segment(VARIABLES, 3);
        (sregs.cr0, sregs.cr4, sregs.efer, sregs.cr3) =
            (mode.cr0, mode.cr4, mode.efer, layout::PAGE_TABLES);
        vcpu.set_sregs(&sregs).map_err(failed("KVM_SET_SREGS"))?;
        let regs = kvm_regs {
            rip: mode.address(CODE),
            rflags: 2,
            ..Default::default()
        };
        vcpu.set_regs(&regs).map_err(failed("KVM_SET_REGS"))?;
        drive_to_end(vcpu).with_context(|| mode.meaning)?;
        let at = |n: usize| VARIABLES + RESULTS + n as u64 * 8;
        Ok((warm..warm + count)
            .map(|n| self.low.read_u64(at(n)))
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_have_their_slots() {
        for size in [16, 32, 64] {
            let (code, slot) = template(size);
            assert_eq!(code[slot..][..SLOT], [0x90; SLOT]);
            assert!(code.len() < 256);
        }
    }

    #[test]
    fn instructions_leave_room_for_the_jump() {
        assert!(FORMS.iter().all(|form| form.bytes.len() + 8 + 2 <= SLOT));
    }
}
