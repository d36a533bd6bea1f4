// What the simulator's shared libraries offer to Python (__init__.py), beside their own functions.
#pragma once

#include <cstdint>
#include <exception>
#include <string>

#include "machine.h"

#define RNK_SIM_API extern "C" __attribute__((visibility("default")))

namespace rnk::sim {

// A function of the interface returns nullptr or the text of an error, valid until the next call.
template <class Function>
const char* guarded(const Function& function) {
  static std::string text;
  try {
    text = function();
  } catch (const std::exception& e) {
    text = e.what();
  }
  return text.empty() ? nullptr : text.c_str();
}

// Forgets the buffers and the costs of the call before.
inline void begin_call() {
  global_memory().clear();
  clear_costs();
}

// "", or how much of a buffer the kernels left unwritten.
inline std::string check_written(const Buffer& buffer) {
  size_t first = 0;
  const size_t count = buffer.unwritten(&first);
  if (!count) return {};
  return "'" + buffer.name() + "': " + std::to_string(count) +
         " bytes were never written, the first at offset " + std::to_string(first);
}

}  // namespace rnk::sim
