// Memory that a calling thread keeps between calls for the packed weights and tiles of its workers.
// Fresh memory would cost a page fault every 4 KiB in every call, more than a small layer takes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace rnk::cpu {

class Workspace {
 public:
  Workspace() = default;
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  ~Workspace() { std::free(data_); }

  // At least `words` 32-bit words, uninitialised, aligned to a cache line; throws bad_alloc.
  float* get(int64_t words) {
    const size_t bytes = (static_cast<size_t>(words) * 4 + kHugePage - 1) / kHugePage * kHugePage;
    if (bytes > bytes_) {
      std::free(data_);
      bytes_ = 0;
      data_ = std::aligned_alloc(kHugePage, bytes);
      if (!data_) throw std::bad_alloc();
      bytes_ = bytes;
#if defined(__linux__) && defined(MADV_HUGEPAGE)
      madvise(data_, bytes, MADV_HUGEPAGE);
#endif
    }
    return static_cast<float*>(data_);
  }

 private:
  static constexpr size_t kHugePage = size_t{2} << 20;
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace rnk::cpu
