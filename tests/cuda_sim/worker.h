// One block at a time on an OS thread.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <stdexcept>

#include "machine.h"

namespace rnk::sim {

constexpr int kMostThreads = 1024;

// The stacks of a block's threads, with a page between them that no one may touch.
class Stacks {
 public:
  Stacks() {
    void* p = mmap(nullptr, kBytes * kMostThreads, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) throw std::runtime_error("cuda_sim: no memory for stacks");
    memory_ = static_cast<char*>(p);
  }
  Stacks(const Stacks&) = delete;
  ~Stacks() { munmap(memory_, kBytes * kMostThreads); }

  char* bottom(int thread) {
    for (; guarded_ <= thread; ++guarded_) {
      mprotect(memory_ + guarded_ * kBytes, kGuard, PROT_NONE);
    }
    return memory_ + thread * kBytes + kGuard;
  }
  // Shifted from thread to thread, for else the same variable of all would crowd one set of a
  // cache.
  char* top(int thread) { return memory_ + (thread + 1) * kBytes - thread * 5 % 64 * 64; }

 private:
  static constexpr size_t kGuard = 4096, kBytes = 96 * 1024;
  char* memory_;
  int guarded_ = 0;
};

struct Worker {
  Block block;
  Stacks stacks;
};

// Runs one block of the launch that the worker's block was prepared for; an error is left in it.
void run_block(Worker& worker, int index);

}  // namespace rnk::sim
