#include "memory_instructions.h"

#include <cstring>

namespace rnk::sim {

namespace {

constexpr int kCopyBytes = 16;

unsigned char* checked_global(Access access, const void* p, int bytes,
                              const Instruction& instruction) {
  const Thread& thread = *current;
  const uint64_t who = thread.block->index.x * uint64_t{1024} + thread.index.x;
  std::string error;
  unsigned char* const memory = global_memory().access(access, p, bytes, who, &error);
  if (!memory) fail(instruction, error);
  const bool reads = access == Access::read;
  thread.warp->log.note(reads ? Space::global_read : Space::global_write, instruction.site(),
                        thread.lane, reinterpret_cast<uintptr_t>(p), bytes);
  Counters& counters = thread.block->counters;
  (reads ? counters.bytes_read : counters.bytes_written) += bytes;
  return memory;
}

std::string shared_error(uint32_t shared, int bytes, const char* what, bool race) {
  std::string text = what;
  if (race) text += " by " + current->block->shared.other();
  return text + ": " + std::to_string(bytes) + " bytes at offset " +
         std::to_string(static_cast<int64_t>(shared) - SharedMemory::kBase) + " of shared memory";
}

void check_shared_address(uint32_t shared, int bytes, const Instruction& instruction) {
  const char* const error = current->block->shared.check_address(shared, bytes);
  if (error) fail(instruction, shared_error(shared, bytes, error, false));
}

void finish_copy(const Copy& copy, SharedMemory& shared) {
  if (copy.global) {
    std::memcpy(shared.at(copy.shared), global_memory().peek(copy.global), kCopyBytes);
  } else {
    std::memset(shared.at(copy.shared), 0, kCopyBytes);
  }
}

}  // namespace

void load_global(void* value, const void* p, int bytes, const Instruction& instruction) {
  std::memcpy(value, checked_global(Access::read, p, bytes, instruction), bytes);
}

void store_global(void* p, const void* value, int bytes, const Instruction& instruction) {
  std::memcpy(checked_global(Access::write, p, bytes, instruction), value, bytes);
}

void load_shared(void* value, uint32_t shared, int bytes, const Instruction& instruction) {
  const Thread& thread = *current;
  Block& block = *thread.block;
  check_shared_address(shared, bytes, instruction);
  if (block.options.races) {
    const char* const race = block.shared.read(shared, bytes, thread.index.x, clock_of(thread));
    if (race) fail(instruction, shared_error(shared, bytes, race, true));
  }
  thread.warp->log.note(Space::ld_shared, instruction.site(), thread.lane, shared, bytes);
  std::memcpy(value, block.shared.at(shared), bytes);
}

void store_shared(uint32_t shared, const void* value, int bytes, const Instruction& instruction) {
  const Thread& thread = *current;
  Block& block = *thread.block;
  check_shared_address(shared, bytes, instruction);
  if (block.options.races) {
    const char* const race = block.shared.write(shared, bytes, thread.index.x, clock_of(thread));
    if (race) fail(instruction, shared_error(shared, bytes, race, true));
  }
  thread.warp->log.note(Space::st_shared, instruction.site(), thread.lane, shared, bytes);
  std::memcpy(block.shared.at(shared), value, bytes);
}

void begin_copy(uint32_t shared, const void* global, const Instruction& instruction) {
  Thread& thread = *current;
  Block& block = *thread.block;
  check_shared_address(shared, kCopyBytes, instruction);
  if (global) checked_global(Access::read, global, kCopyBytes, instruction);
  if (block.options.races) {
    const char* const race =
        block.shared.begin_copy(shared, kCopyBytes, thread.index.x, clock_of(thread));
    if (race) fail(instruction, shared_error(shared, kCopyBytes, race, true));
  }
  thread.warp->log.note(Space::cp_async, instruction.site(), thread.lane, shared, kCopyBytes);
  thread.copies.push_back({shared, global, thread.committed});
  if (block.options.early_copies) {
    finish_copy(thread.copies.back(), block.shared);
  } else {
    std::memset(block.shared.at(shared), 0xff, kCopyBytes);
  }
}

void commit_copies() { ++current->committed; }

void wait_for_copies(int pending) {
  Thread& thread = *current;
  Block& block = *thread.block;
  auto end = thread.copies.begin();
  for (; end != thread.copies.end() && end->group < thread.committed - pending; ++end) {
    if (!block.options.early_copies) finish_copy(*end, block.shared);
    if (block.options.races) block.shared.end_copy(end->shared, kCopyBytes, clock_of(thread));
  }
  thread.copies.erase(thread.copies.begin(), end);
}

}  // namespace rnk::sim
