// Chooses the instruction set once per process.
#include <unistd.h>

#include <cstdlib>
#include <cstring>

#include "kernels.h"

namespace rnk::cpu {
namespace {

const Kernels* const* candidates() {  // best first
#if defined(__x86_64__)
  static const Kernels* const all[] = {&avx512_bf16::table, &avx512::table, &avx2::table,
                                       &portable::table, nullptr};
#else
  static const Kernels* const all[] = {&portable::table, nullptr};
#endif
  return all;
}

bool supported(const char* name) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (!std::strcmp(name, "avx512_bf16")) return avx512 && __builtin_cpu_supports("avx512bf16");
  if (!std::strcmp(name, "avx512")) return avx512;
  if (!std::strcmp(name, "avx2"))
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
  return !std::strcmp(name, "portable");
}

const Kernels& choose() {
  const char* wanted = std::getenv("RESNEXT_KERNELS_CPU_ISA");
  const Kernels* best = nullptr;
  for (const Kernels* const* k = candidates(); *k; ++k) {
    if (!supported((*k)->name)) continue;
    if (wanted && !std::strcmp((*k)->name, wanted)) return **k;
    if (!best) best = *k;
  }
  return *best;
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

int64_t second_level_cache() {
  static const int64_t bytes = [] {
#ifdef _SC_LEVEL2_CACHE_SIZE
    if (const long told = sysconf(_SC_LEVEL2_CACHE_SIZE); told > 0) return int64_t{told};
#endif
    return int64_t{1} << 20;
  }();
  return bytes;
}

}  // namespace rnk::cpu
