// Loads, stores and asynchronous copies of one thread: checked, counted, done.
#pragma once

#include <cstdint>

#include "machine.h"

namespace rnk::sim {

void load_global(void* value, const void* p, int bytes, const Instruction& instruction);
void store_global(void* p, const void* value, int bytes, const Instruction& instruction);

void load_shared(void* value, uint32_t shared, int bytes, const Instruction& instruction);
void store_shared(uint32_t shared, const void* value, int bytes, const Instruction& instruction);

// `global` nullptr: zeros.
void begin_copy(uint32_t shared, const void* global, const Instruction& instruction);
void commit_copies();
void wait_for_copies(int pending);

}  // namespace rnk::sim
