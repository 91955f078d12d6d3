// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Time as a processor has it where an instruction is one tick otherwise. $BOCHS_COSTS names a table (costs/ beside this
// file has some). A line is
//
//   NAME CYCLES LOW-HIGH SOURCE...
//
// and CYCLES pass beside the one tick whenever NAME happens:
//
//   a name of cpu/decoder/*.def without BX_IA_, or its beginning before a "_": CPUID, VMREAD, MOV_CR3Rq
//   RDMSR[X], WRMSR[X]  of the MSR with the hexadecimal number X, instead of what RDMSR and WRMSR cost
//   LOCK                an instruction with that prefix, or XCHG with memory
//   vmexit              a VM exit or #VMEXIT (the entry is VMLAUNCH, VMRESUME, VMRUN)
//   delivery            an interrupt or exception by the IDT, injected ones as well
//
// An instruction that makes a guest exit costs the exit alone. With $BOCHS_COSTS_AT, low or high, that end of each
// range is taken in the place of CYCLES.

#define NEED_CPU_REG_SHORTCUTS 1
#include "bochs.h"
#include "cpu.h"
#include "decoder/fetchdecode.h"
#include "costs.h"

#include <map>
#include <set>
#include <string>

extern struct bxIAOpcodeTable BxOpcodesTable[];

bool bx_costing = false;
Bit32u bx_owed[BX_MAX_SMP_THREADS_SUPPORTED];

static Bit32u by_opcode[BX_IA_LAST], transitions[BX_COST_TRANSITIONS], locked;
static bool exchanges[BX_IA_LAST];
static std::map<Bit32u, Bit32u> reads, writes;

// The instruction that was charged last on each CPU: its end is at another icount.
static struct { Bit64u icount; Bit32u cycles; } last[BX_MAX_SMP_THREADS_SUPPORTED];

static bool known(const std::string &name, Bit32u cycles)
{
  std::map<Bit32u, Bit32u> *msrs =
    name.compare(0, 6, "RDMSR[") == 0 ? &reads : name.compare(0, 6, "WRMSR[") == 0 ? &writes : NULL;
  if (msrs) {
    char *end;
    Bit32u msr = (Bit32u) strtoul(name.c_str() + 6, &end, 16);
    if (end == name.c_str() + 6 || strcmp(end, "]")) return false;
    (*msrs)[msr] = cycles;
    return true;
  }
  if (name == "vmexit") return transitions[BX_COST_VMEXIT] = cycles, true;
  if (name == "delivery") return transitions[BX_COST_DELIVERY] = cycles, true;
  if (name == "LOCK") return locked = cycles, true;

  bool found = false;
  for (unsigned opcode = 0; opcode < BX_IA_LAST; opcode++) {
    std::string whole = std::string(get_bx_opcode_name(opcode)).substr(strlen("BX_IA_"));
    if (whole != name && whole.compare(0, name.size() + 1, name + "_")) continue;
    by_opcode[opcode] = cycles;
    found = true;
  }
  return found;
}

// The log is not there yet.
static void refuse(const char *path, unsigned number, const char *what, const char *name)
{
  fprintf(stderr, "%s:%u: %s: %s\n", path, number, name, what);
  exit(1);
}

void bx_costs_init(void)
{
  const char *path = getenv("BOCHS_COSTS"), *end = getenv("BOCHS_COSTS_AT");
  if (! path) return;
  FILE *table = fopen(path, "r");
  if (! table) refuse(path, 0, "cannot be read", "the table");
  std::set<std::string> names;
  char line[1024], name[64];
  for (unsigned number = 1; fgets(line, sizeof(line), table); number++) {
    unsigned cycles, low, high;
    int at = 0;
    if (line[strspn(line, " \t\n")] == 0 || line[0] == '#') continue;
    line[strcspn(line, "\n")] = 0;
    if (sscanf(line, "%63s %u %u-%u %n", name, &cycles, &low, &high, &at) < 4 || ! at || ! line[at])
      refuse(path, number, "not NAME CYCLES LOW-HIGH SOURCE", line);
    if (cycles < low || cycles > high || high > 1000000)
      refuse(path, number, "not in its range, or that is too wide", name);
    if (end) cycles = ! strcmp(end, "low") ? low : high;
    if (! names.insert(name).second) refuse(path, number, "was there before", name);
    if (! known(name, cycles)) refuse(path, number, "nothing is called so", name);
  }
  fclose(table);
  for (unsigned opcode = 0; opcode < BX_IA_LAST; opcode++)
    exchanges[opcode] = ! strncmp(get_bx_opcode_name(opcode), "BX_IA_XCHG_E", 12);
  bx_costing = true;
}

static bool is_locked(const bxInstruction_c *i)
{
  return i->getLock() || (exchanges[i->getIaOpcode()] && ! i->modC0());
}

bool bx_is_charged(const bxInstruction_c *i)
{
  unsigned opcode = i->getIaOpcode();
  return by_opcode[opcode] || (locked && is_locked(i)) || (opcode == BX_IA_RDMSR && ! reads.empty()) ||
    (opcode == BX_IA_WRMSR && ! writes.empty());
}

static Bit32u of_msr(const std::map<Bit32u, Bit32u> &msrs, Bit32u msr, Bit32u otherwise)
{
  std::map<Bit32u, Bit32u>::const_iterator at = msrs.find(msr);
  return at == msrs.end() ? otherwise : at->second;
}

// Time follows icount; with several processors it is their mean, so that one that is charged has to wait in main.cc.
static void charge(unsigned id, Bit64s cycles)
{
  if (BX_SMP_PROCESSORS > 1) {
    bx_owed[id] += cycles;
    return;
  }
  BX_CPU(id)->icount += cycles;
  BX_CPU(id)->inhibit_icount += cycles;
}

void bx_charge_instruction(unsigned id, const bxInstruction_c *i)
{
  BX_CPU_C *cpu = BX_CPU(id);
  unsigned opcode = i->getIaOpcode();
  Bit32u cycles = by_opcode[opcode], ecx = cpu->gen_reg[BX_64BIT_REG_RCX].dword.erx;
  if (opcode == BX_IA_RDMSR) cycles = of_msr(reads, ecx, cycles);
  if (opcode == BX_IA_WRMSR) cycles = of_msr(writes, ecx, cycles);
  if (is_locked(i)) cycles += locked;
  charge(id, cycles);
  bool entry = opcode == BX_IA_VMLAUNCH || opcode == BX_IA_VMRESUME || opcode == BX_IA_VMRUN;
  last[id].icount = cpu->icount;
  last[id].cycles = entry ? 0 : cycles;
}

void bx_charge_transition(unsigned id, enum bx_transition what)
{
  if (what == BX_COST_VMEXIT && last[id].icount == BX_CPU(id)->icount) charge(id, - (Bit64s) last[id].cycles);
  last[id].cycles = 0;
  charge(id, transitions[what]);
}

void bx_pay(unsigned id, Bit32u most)
{
  Bit32u cycles = bx_owed[id] < most ? bx_owed[id] : most;
  bx_owed[id] -= cycles;
  BX_CPU(id)->icount += cycles;
  BX_CPU(id)->inhibit_icount += cycles;
}

// What assignHandler() puts in the place of the handler of an instruction that is charged.
void BX_CPP_AttrRegparmN(1) BX_CPU_C::Charged(bxInstruction_c *i)
{
  const bxIAOpcodeTable *opcode = &BxOpcodesTable[i->getIaOpcode()];
  BxExecutePtr_tR handler = i->modC0() ? opcode->execute2 : opcode->execute1;
  bx_charge_instruction(BX_CPU_ID, i);
  return BX_CPU_CALL_METHOD(handler, (i));
}
