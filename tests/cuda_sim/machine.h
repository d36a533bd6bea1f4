// The machine that runs CUDA blocks on a CPU: a fiber a thread, an OS thread a block at a time.
//
// The lanes of a warp run one after another until each waits in the same warp-wide instruction; the
// last one to arrive executes it for all. Warps run one after another until all wait at a barrier.
#pragma once

#include <bit>
#include <cstdint>
#include <random>
#include <source_location>
#include <string>
#include <vector>

#include "access_log.h"
#include "counters.h"
#include "fiber.h"
#include "global_memory.h"
#include "shared_memory.h"

namespace rnk::sim {

// An instruction in the source of a kernel.
struct Instruction {
  const char* name = nullptr;
  std::source_location where;

  // Tells places in the source apart: the compiler keeps one object for each.
  const void* site() const { return std::bit_cast<const void*>(where); }
};

struct Block;
struct Warp;

struct Copy {  // a cp.async that is under way
  uint32_t shared;
  const void* global;  // nullptr: zeros
  int group;
};

struct Index {
  unsigned x = 0;
};

enum class State : uint8_t { running, at_barrier, done };  // running: or in a warp's instruction

struct Thread {
  Fiber fiber;
  Index index;  // threadIdx
  int lane = 0;
  int slot = 0;  // the place in its warp's order
  State state = State::running;
  Warp* warp = nullptr;
  Block* block = nullptr;
  Instruction barrier;  // where it waits, at_barrier
  std::vector<Copy> copies;
  int committed = 0;  // groups of copies
};

// What the lanes hand to a warp-wide instruction and take from it, each at places of its own.
struct alignas(64) Operands {
  uint32_t a[4][32];
  uint32_t b[2][32];
  float d[16][8];
  uint32_t address[32];  // or the value to exchange
  uint32_t result[4][32];
  int mask[32];
};

struct Warp {
  Operands operands;
  Thread* order[32];
  uint32_t ready = 0;  // bit by slot
  int arrived = 0;
  uint32_t synchronised = 0;  // when last
  Instruction instruction;
  AccessLog log;
};

struct Block {
  Index index, threads_per_block, blocks;
  Options options;
  Fiber scheduler;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  SharedMemory shared;
  uint32_t now = 1, barrier = 0;
  int at_barrier = 0, done = 0;
  Counters counters;
  Profile profile;
  std::string error;
  std::mt19937_64 random;
  void (*body)(const void*) = nullptr;
  const void* arguments = nullptr;
};

// The thread that runs on this OS thread.
extern constinit thread_local Thread* current __attribute__((tls_model("initial-exec")));

GlobalMemory& global_memory();

// Ends the launch with an error that names block, thread and instruction.
[[noreturn]] void fail(const Instruction& instruction, const std::string& what);
[[noreturn]] void fail_divergence(const Instruction& instruction);

inline Clock clock_of(const Thread& thread) {
  return {thread.block->now, thread.block->barrier, thread.warp->synchronised};
}

// Lets the next thread of the warp run that can, or the scheduler where there is none.
RNK_SIM_INLINE void yield() {
  Thread* const self = current;
  const uint32_t ready = self->warp->ready;
  if (!ready) {
    switch_fiber(&self->fiber, &self->block->scheduler);
    return;
  }
  const uint32_t later = ready & ~((2u << self->slot) - 1);
  Thread* const next = self->warp->order[__builtin_ctz(later ? later : ready)];
  current = next;
  switch_fiber(&self->fiber, &next->fiber);
}

// Waits until the whole warp is in this instruction, which `execute` then does for all lanes. The
// lane's operands are in place before, and its results after.
RNK_SIM_INLINE void with_warp(const Instruction& instruction, void (*execute)(Warp&, Block&)) {
  Thread* const self = current;
  Warp* const warp = self->warp;
  if (warp->arrived == 0) {
    warp->instruction = instruction;
  } else if (warp->instruction.site() != instruction.site()) {
    fail_divergence(instruction);
  }
  if (++warp->arrived < 32) {
    warp->ready &= ~(1u << self->slot);
    yield();
    return;
  }
  warp->arrived = 0;
  warp->ready = ~0u;
  warp->log.flush(self->block->profile);
  execute(*warp, *self->block);
}

void wait_at_barrier(const Instruction& instruction);

struct Launch {
  int blocks, threads, shared_bytes;
  void (*body)(const void*);
  const void* arguments;
};

// nullptr, or what went wrong; valid until the next launch.
const char* run(const Launch& launch);

// Of the next launches.
void set_options(const Options& options);

struct LaunchCost {
  Counters counters;
  Profile profile;
};
// Of each launch since the last call of clear_costs(), in order.
const std::vector<LaunchCost>& costs();
void clear_costs();

}  // namespace rnk::sim
