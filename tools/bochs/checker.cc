// SPDX-License-Identifier: LGPL-2.1-or-later
//
// What a host must never do around guests. Each finding, of 20 of a kind, is one line on the standard error:
//
//   check: cpu N: WHAT at RIP
//
// $BOCHS_CHECK, words separated by commas, says what the processor that is played needs:
//
//   rsb        no RET that uses an entry of the return stack from before the exit, until 32 CALLs have filled it
//   rsb1       the same, but one CALL is enough (post-barrier return stack predictions)
//   untrain    no RET before a CALL of one of the functions whose addresses came by port 8A00H, or an IBPB
//   ibpb       no RET and no indirect branch before an IBPB
//   ibrs       no RET and no indirect branch before a write of SPEC_CTRL with IBRS
//   retpoline  no indirect branch before an IBPB
//   bhb        no indirect branch, and no RET to before the exit, until 32 taken branches have cleared the history, or
//              with SPEC_CTRL.BHI_DIS_S
//   user       no return to user space without an IBPB since the exit
//   verw       VERW before an entry, and no store between the two
//   state      always: MSRs and DR7 that the host set before its first entry are the same when it returns to user
//              space; a VMCS is active on one CPU; what a clean bit of a VMCB says
//
// Nothing is said of efficacy: only that what the kernel calls a mitigation is there, and in time.

#define NEED_CPU_REG_SHORTCUTS 1
#include "bochs.h"
#include "cpu.h"
#include "memory/memory-bochs.h"
#include "checker.h"

#include <map>
#include <set>
#include <string>
#include <vector>

#define LOG_THIS genlog->

unsigned bx_checks = 0, bx_tainted = 0, bx_buffers_clear = 0;

enum {
  RSB = 1, RSB1 = 2, UNTRAIN = 4, IBPB = 8, IBRS = 16, RETPOLINE = 32, BHB = 64, USER = 128, VERW = 256, STATE = 512
};

static const struct { const char *name; unsigned bit; } names[] = {
  { "rsb", RSB }, { "rsb1", RSB1 }, { "untrain", UNTRAIN }, { "ibpb", IBPB }, { "ibrs", IBRS },
  { "retpoline", RETPOLINE }, { "bhb", BHB }, { "user", USER }, { "verw", VERW }, { "state", STATE }
};

// CALLs that fill a return stack, taken branches that clear the branch history.
static const unsigned FILLED = 32, CLEARED = 32;

typedef std::vector<Bit8u> Vmcb;

static struct Cpu {
  unsigned tainted;         // what a guest has left: bits as in bx_checks
  unsigned calls, depth;    // CALLs since the exit; those whose RET is still to come
  unsigned branches;        // taken branches since the exit
  bool buffers_clear;       // a VERW, and no store since
  bool in_guest, entered;   // in a guest; there has been one
  Bit64u owned[16];         // the host's own MSRs, as it returned to user space before its first entry
  std::map<Bit64u, Vmcb> cached;  // VMCBs as this CPU may have them
} cpus[BX_MAX_SMP_THREADS_SUPPORTED];

static std::map<Bit64u, unsigned> active;  // VMCS -> CPU
static std::set<Bit64u> untraining;

static void complain(unsigned cpu, const char *what, Bit64u at)
{
  static std::map<std::string, std::set<Bit64u> > told;
  std::set<Bit64u> &places = told[what];
  if (places.size() < 20 && places.insert(at).second)
    fprintf(stderr, "check: cpu %u: %s at %016llx\n", cpu, what, (unsigned long long) at);
}

void bx_check_init(void)
{
  const char *list = getenv("BOCHS_CHECK");
  if (! list) return;
  std::string text(list);
  for (size_t at = 0; at <= text.size(); ) {
    size_t end = text.find(',', at);
    if (end == std::string::npos) end = text.size();
    std::string word = text.substr(at, end - at);
    unsigned bit = 0;
    for (unsigned n = 0; n < sizeof(names) / sizeof(names[0]); n++)
      if (word == names[n].name) bit = names[n].bit;
    if (! bit) {
      fprintf(stderr, "BOCHS_CHECK: no check is called '%s'\n", word.c_str());
      exit(1);
    }
    bx_checks |= bit;
    at = end + 1;
  }
  bx_checks |= STATE;
}

// Eight bytes, the lowest first, are an address.
void bx_check_port(Bit16u port, Bit32u value)
{
  static Bit64u address;
  static unsigned bytes;
  if (port != 0x8a00) return;
  address |= (Bit64u) (value & 0xff) << (8 * bytes);
  if (++bytes == 8) {
    untraining.insert(address);
    address = bytes = 0;
  }
}

static void taint(Cpu *cpu, unsigned bits)
{
  if (cpu->tainted == bits) return;
  cpu->tainted = bits;
  bx_tainted = 0;
  for (unsigned n = 0; n < BX_SMP_PROCESSORS; n++) bx_tainted |= cpus[n].tainted & ~USER;
}

void bx_check_branch(unsigned id, enum bx_check_branch what, Bit64u from, Bit64u to)
{
  Cpu *cpu = &cpus[id];
  if (! (cpu->tainted & ~USER) || cpu->in_guest || BX_CPU(id)->sregs[BX_SEG_REG_CS].selector.rpl) return;

  bool indirect = what == BX_CHECK_INDIRECT_JMP || what == BX_CHECK_INDIRECT_CALL;
  bool ret = what == BX_CHECK_RET, unpaired = ret && ! cpu->depth;
  if (ret) {
    if (cpu->tainted & UNTRAIN) complain(id, "RET before returns are untrained", from);
    if (unpaired && (cpu->tainted & (RSB | RSB1))) complain(id, "RET to a prediction of the guest's", from);
  }
  if (ret || indirect) {
    if (cpu->tainted & IBPB) complain(id, "RET or indirect branch before the IBPB", from);
    if (cpu->tainted & IBRS) complain(id, "RET or indirect branch before IBRS is written", from);
  }
  // BHI_DIS_S: the processor does not go by the history in the host
  if ((indirect || unpaired) && (cpu->tainted & BHB) && ! (BX_CPU(id)->msr.ia32_spec_ctrl & 1 << 10))
    complain(id, "indirect branch with the guest's branch history", from);
  if (indirect && (cpu->tainted & RETPOLINE)) complain(id, "indirect branch, not a retpoline", from);

  unsigned clean = 0;
  if (++cpu->branches >= CLEARED) clean |= BHB;
  if (what == BX_CHECK_CALL || what == BX_CHECK_INDIRECT_CALL) {
    cpu->calls++;
    cpu->depth++;
    if (cpu->calls >= FILLED) clean |= RSB;
    clean |= RSB1;
    if (untraining.count(to)) clean |= UNTRAIN;
  }
  taint(cpu, cpu->tainted & ~clean);
  if (ret && cpu->depth) cpu->depth--;
}

static void msrs(unsigned id, Bit64u *values)
{
  BX_CPU_C *cpu = BX_CPU(id);
  unsigned n = 0;
  values[n++] = cpu->msr.star;
  values[n++] = cpu->msr.lstar;
  values[n++] = cpu->msr.cstar;
  values[n++] = cpu->msr.fmask;
  values[n++] = cpu->msr.tsc_aux;
  values[n++] = cpu->msr.sysenter_cs_msr;
  values[n++] = cpu->msr.sysenter_esp_msr;
  values[n++] = cpu->msr.sysenter_eip_msr;
  values[n++] = cpu->msr.pat._u64;
  values[n++] = cpu->msr.ia32_xss;
  values[n++] = cpu->xcr0.get32();
  values[n++] = cpu->efer.get32() & ~0x1000; // SVME comes and goes with the hypervisor
  values[n++] = cpu->msr.ia32_spec_ctrl;
  values[n++] = cpu->dr7.get32() & 0xff; // the bits that enable breakpoints
}

static const char *const owned_names[] = {
  "STAR", "LSTAR", "CSTAR", "FMASK", "TSC_AUX", "SYSENTER_CS", "SYSENTER_ESP", "SYSENTER_EIP", "PAT", "XSS", "XCR0",
  "EFER", "SPEC_CTRL", "DR7"
};
static const unsigned OWNED = sizeof(owned_names) / sizeof(owned_names[0]);

void bx_check_user(unsigned id)
{
  Cpu *cpu = &cpus[id];
  if (cpu->in_guest) return;
  if (! cpu->entered) {
    msrs(id, cpu->owned);
    return;
  }
  if (cpu->tainted & USER) {
    complain(id, "return to user space without an IBPB since a guest ran", BX_CPU(id)->prev_rip);
    taint(cpu, cpu->tainted & ~USER);
  }
  Bit64u now[16];
  msrs(id, now);
  for (unsigned n = 0; n < OWNED; n++)
    if (now[n] != cpu->owned[n]) {
      complain(id, (std::string("return to user space with another ") + owned_names[n]).c_str(),
        BX_CPU(id)->prev_rip);
      cpu->owned[n] = now[n];
    }
}

void bx_check_wrmsr(unsigned id, Bit32u msr, Bit64u value)
{
  Cpu *cpu = &cpus[id];
  if (cpu->in_guest) return;
  if (msr == 0x49 && (value & 1)) taint(cpu, cpu->tainted & ~(IBPB | UNTRAIN | RETPOLINE | USER));
  if (msr == 0x48 && (value & 1)) taint(cpu, cpu->tainted & ~IBRS);
}

void bx_check_store(unsigned id)
{
  if (! cpus[id].buffers_clear) return;
  cpus[id].buffers_clear = false;
  bx_buffers_clear--;
}

void bx_check_verw(unsigned id)
{
  if (! (bx_checks & VERW) || cpus[id].in_guest || cpus[id].buffers_clear) return;
  cpus[id].buffers_clear = true;
  bx_buffers_clear++;
}

void bx_check_entry(unsigned id)
{
  Cpu *cpu = &cpus[id];
  cpu->entered = true;
  if ((bx_checks & VERW) && ! cpu->buffers_clear)
    complain(id, "entry without VERW as the last thing", BX_CPU(id)->prev_rip);
  bx_check_store(id);
  cpu->in_guest = true;
}

void bx_check_no_entry(unsigned id)
{
  cpus[id].in_guest = false;
}

void bx_check_exit(unsigned id)
{
  Cpu *cpu = &cpus[id];
  cpu->in_guest = false;
  taint(cpu, bx_checks & ~(VERW | STATE));
  cpu->calls = cpu->depth = cpu->branches = 0;
}

// SDM 3C 26.11.1: software must not have a VMCS active on more than one processor.
void bx_check_vmptrld(unsigned id, Bit64u vmcs)
{
  std::map<Bit64u, unsigned>::iterator on = active.find(vmcs);
  if (on != active.end() && on->second != id)
    complain(id, "VMPTRLD of a VMCS that is active on another CPU", BX_CPU(id)->prev_rip);
  active[vmcs] = id;
}

void bx_check_vmclear(unsigned id, Bit64u vmcs)
{
  std::map<Bit64u, unsigned>::iterator on = active.find(vmcs);
  if (on == active.end()) return;
  if (on->second != id)
    complain(id, "VMCLEAR of a VMCS that is active on another CPU", BX_CPU(id)->prev_rip);
  active.erase(on);
}

void bx_check_vmxoff(unsigned id)
{
  for (std::map<Bit64u, unsigned>::iterator on = active.begin(); on != active.end(); ) {
    if (on->second == id) {
      complain(id, "VMXOFF with an active VMCS", BX_CPU(id)->prev_rip);
      active.erase(on++);
    }
    else on++;
  }
}

#if BX_SUPPORT_SVM

// APM 2 15.15.3: the VMCB clean bits, and the ranges of the VMCB that each is for.
static const struct { unsigned bit, from, to; } groups[] = {
  { 0, 0x000, 0x018 }, { 0, 0x03c, 0x040 }, { 0, 0x050, 0x058 }, { 1, 0x040, 0x050 }, { 2, 0x058, 0x05c },
  { 3, 0x060, 0x068 }, { 4, 0x0b0, 0x0b8 }, { 4, 0x668, 0x670 }, { 5, 0x4d0, 0x4d8 }, { 5, 0x548, 0x560 },
  { 6, 0x560, 0x570 }, { 7, 0x460, 0x470 }, { 7, 0x480, 0x490 }, { 8, 0x400, 0x440 }, { 8, 0x4cb, 0x4cc },
  { 9, 0x640, 0x648 }, { 10, 0x670, 0x698 }
};

static void read_vmcb(unsigned id, Bit64u address, Vmcb &vmcb)
{
  vmcb.resize(0x698);
  for (unsigned at = 0; at < vmcb.size(); at += 8) {
    Bit64u word;
    BX_MEM(0)->readPhysicalPage(BX_CPU(id), address + at, 8, &word);
    memcpy(&vmcb[at], &word, 8);
  }
}

void bx_check_vmrun(unsigned id, Bit64u address)
{
  Cpu *cpu = &cpus[id];
  Vmcb vmcb;
  read_vmcb(id, address, vmcb);
  Bit32u clean;
  memcpy(&clean, &vmcb[0xc0], 4);
  if (! clean) return;
  std::map<Bit64u, Vmcb>::iterator cached = cpu->cached.find(address);
  if (cached == cpu->cached.end()) {
    complain(id, "VMRUN with clean bits for a VMCB that this CPU does not have", BX_CPU(id)->prev_rip);
    return;
  }
  for (unsigned n = 0; n < sizeof(groups) / sizeof(groups[0]); n++) {
    unsigned from = groups[n].from, to = groups[n].to;
    if ((clean & 1 << groups[n].bit) && memcmp(&vmcb[from], &cached->second[from], to - from)) {
      char text[80];
      snprintf(text, sizeof(text), "VMRUN with clean bit %u, but %03x to %03x changed", groups[n].bit, from, to);
      complain(id, text, BX_CPU(id)->prev_rip);
    }
  }
}

void bx_check_vmcb_cached(unsigned id, Bit64u address)
{
  read_vmcb(id, address, cpus[id].cached[address]);
}

#endif
