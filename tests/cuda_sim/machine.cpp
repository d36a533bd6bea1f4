#include "machine.h"

#include <algorithm>
#include <cstdlib>

#include "worker.h"

namespace rnk::sim {

constinit thread_local Thread* current = nullptr;

namespace {

std::string place(const Instruction& instruction) {
  std::string text = instruction.name;
  if (!instruction.where.line()) return text;
  const std::string file = instruction.where.file_name();
  return text + " (" + file.substr(file.rfind('/') + 1) + ":" +
         std::to_string(instruction.where.line()) + ")";
}

std::string name_of(const Thread& thread) {
  return "block " + std::to_string(thread.block->index.x) + ", thread " +
         std::to_string(thread.index.x);
}

void thread_main() {
  Thread* const self = current;
  Block* const block = self->block;
  block->body(block->arguments);
  if (!self->copies.empty()) {
    fail({"exit", {}}, "ends with a cp.async that it never waited for");
  }
  self->state = State::done;
  ++block->done;
  self->warp->ready &= ~(1u << self->slot);
  yield();
  std::abort();
}

void order_lanes(Warp& warp, Thread* threads, Block& block) {
  for (int i = 0; i < 32; ++i) {
    warp.order[i] = threads + (block.options.order == Order::reverse ? 31 - i : i);
  }
  if (block.options.order == Order::random) {
    std::shuffle(warp.order, warp.order + 32, block.random);
  }
  for (int i = 0; i < 32; ++i) warp.order[i]->slot = i;
}

void start_threads(Worker& worker) {
  Block& block = worker.block;
  const int count = static_cast<int>(block.threads.size());
  for (int i = 0; i < count; ++i) {
    Thread& thread = block.threads[i];
    thread.state = State::running;
    thread.copies.clear();
    thread.committed = 0;
    thread.fiber.start(worker.stacks.bottom(i), worker.stacks.top(i), thread_main);
  }
  for (int w = 0; w < count / 32; ++w) {
    Warp& warp = block.warps[w];
    order_lanes(warp, &block.threads[w * 32], block);
    warp.ready = ~0u;
    warp.arrived = 0;
    warp.log.clear();
  }
}

void synchronise(Block& block) {
  block.barrier = block.now++;
  for (Warp& warp : block.warps) {
    warp.synchronised = block.barrier;
    warp.log.flush(block.profile);
  }
}

void run_warps(Block& block, std::vector<int>& order) {
  const int count = static_cast<int>(block.warps.size());
  order.resize(count);
  for (int i = 0; i < count; ++i) {
    order[i] = block.options.order == Order::reverse ? count - 1 - i : i;
  }
  if (block.options.order == Order::random) {
    std::shuffle(order.begin(), order.end(), block.random);
  }
  for (const int w : order) {
    Warp& warp = block.warps[w];
    if (!warp.ready) continue;
    current = warp.order[__builtin_ctz(warp.ready)];
    switch_fiber(&block.scheduler, &current->fiber);
    current = nullptr;
    if (!block.error.empty()) return;
  }
}

// Why no thread can run although some are not done.
std::string explain_standstill(const Block& block) {
  std::string waiting, barrier;
  for (const Thread& thread : block.threads) {
    if (thread.state == State::running && waiting.empty()) {
      waiting = name_of(thread) + " waits in " + place(thread.warp->instruction) +
                " for the rest of its warp";
    }
    if (thread.state == State::at_barrier && barrier.empty()) {
      barrier = name_of(thread) + " waits in " + place(thread.barrier);
    }
  }
  if (waiting.empty()) {
    return "missed barrier: " + barrier + ", but " + std::to_string(block.done) +
           " threads of the block have ended";
  }
  std::string text = "deadlock: " + waiting;
  if (!barrier.empty()) text += "; " + barrier;
  if (block.done) text += "; " + std::to_string(block.done) + " threads have ended";
  return text;
}

// Each thread that waits at a barrier must wait at the same one.
std::string check_barrier(const Block& block) {
  const Thread& first = block.threads.front();
  for (const Thread& thread : block.threads) {
    if (thread.barrier.site() == first.barrier.site()) continue;
    return "mismatched barriers: " + name_of(first) + " waits in " + place(first.barrier) + ", " +
           name_of(thread) + " in " + place(thread.barrier);
  }
  return {};
}

}  // namespace

void fail(const Instruction& instruction, const std::string& what) {
  Block* const block = current->block;
  block->error = name_of(*current) + ": " + place(instruction) + ": " + what;
  switch_fiber(&current->fiber, &block->scheduler);
  std::abort();
}

void fail_divergence(const Instruction& instruction) {
  fail(instruction,
       "divergence: other lanes of its warp wait in " + place(current->warp->instruction));
}

void wait_at_barrier(const Instruction& instruction) {
  Thread* const self = current;
  self->state = State::at_barrier;
  self->barrier = instruction;
  ++self->block->at_barrier;
  self->warp->ready &= ~(1u << self->slot);
  yield();
}

void run_block(Worker& worker, int index) {
  Block& block = worker.block;
  block.index.x = index;
  block.random.seed(block.options.seed * 0x9e3779b97f4a7c15u + index);
  block.shared.poison();
  block.at_barrier = block.done = 0;
  start_threads(worker);
  synchronise(block);
  const int count = static_cast<int>(block.threads.size());
  for (std::vector<int> order;;) {
    run_warps(block, order);
    if (!block.error.empty()) return;
    if (block.done == count) break;
    block.error = block.at_barrier == count ? check_barrier(block) : explain_standstill(block);
    if (!block.error.empty()) return;
    synchronise(block);
    ++block.counters.barriers;
    block.at_barrier = 0;
    for (Thread& thread : block.threads) thread.state = State::running;
    for (Warp& warp : block.warps) warp.ready = ~0u;
  }
  synchronise(block);
}

}  // namespace rnk::sim
