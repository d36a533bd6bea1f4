// What the simulator counts in a launch, and how it is told to run one.
#pragma once

#include <cstdint>

namespace rnk::sim {

// Bytes and sectors of global memory: as issued; a sector is 32 bytes and counts once for each
// instruction of a warp that touches it. distinct_*: once in the whole launch.
// *_wavefronts: passes over shared memory; *_conflicts: those more than without bank conflicts.
#define RNK_SIM_COUNTERS(X) \
  X(bytes_read)             \
  X(bytes_written)          \
  X(sectors_read)           \
  X(sectors_written)        \
  X(distinct_bytes_read)    \
  X(ldmatrix_wavefronts)    \
  X(ldmatrix_conflicts)     \
  X(ld_shared_wavefronts)   \
  X(ld_shared_conflicts)    \
  X(st_shared_wavefronts)   \
  X(st_shared_conflicts)    \
  X(cp_async_wavefronts)    \
  X(cp_async_conflicts)     \
  X(mma_k16)                \
  X(mma_k8)                 \
  X(mma_tf32)               \
  X(ldmatrix)               \
  X(movmatrix)              \
  X(shfl)                   \
  X(barriers)               \
  X(blocks)                 \
  X(threads)                \
  X(shared_bytes)

struct Counters {
#define RNK_SIM_FIELD(name) uint64_t name = 0;
  RNK_SIM_COUNTERS(RNK_SIM_FIELD)
#undef RNK_SIM_FIELD

  void add(const Counters& other) {
#define RNK_SIM_ADD(name) name += other.name;
    RNK_SIM_COUNTERS(RNK_SIM_ADD)
#undef RNK_SIM_ADD
  }
};

enum class Order : int32_t { forward, reverse, random };

struct Options {
  int32_t os_threads = 0;  // 0: as many as the machine has
  Order order = Order::forward;
  uint64_t seed = 0;         // of the random order
  int32_t early_copies = 0;  // cp.async copies at once; otherwise when it is waited for
  int32_t races = 1;         // check accesses to shared memory for races
  int32_t most_shared_bytes = 227 * 1024;
};

}  // namespace rnk::sim
