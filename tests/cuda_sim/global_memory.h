// Global memory: named buffers at addresses that nothing is mapped to, so that an access which does
// not go through the simulator is a fault, and one that does is checked byte by byte.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace rnk::sim {

enum class Access { read, write };

// Memory that is zero and takes room only where it is touched.
class SparseMemory {
 public:
  explicit SparseMemory(size_t bytes);
  SparseMemory(const SparseMemory&) = delete;
  ~SparseMemory();
  unsigned char* data() { return data_; }
  const unsigned char* data() const { return data_; }

 private:
  unsigned char* data_;
  size_t bytes_;
};

class Buffer {
 public:
  Buffer(std::string name, uintptr_t address, size_t bytes, bool writable);

  // Lets kernels touch some bytes. They begin as those at `initial`, or as NaN where that is
  // nullptr.
  void permit(size_t offset, size_t bytes, const void* initial);
  // Copies all bytes that may be touched to the same places from `to` on.
  void copy_to(void* to) const;

  // Whether `bytes` bytes, a power of two, at `offset` may be touched; notes the access if so.
  // `who`: 1024 * block + thread.
  bool access(Access access, int64_t offset, int bytes, uint64_t who);
  // Why not.
  std::string explain(Access access, int64_t offset, int bytes) const;

  // Begins a launch: what was written before can be read now. Returns the distinct bytes read.
  size_t next_launch();
  // Bytes that kernels may touch and that were never written, and the first of them.
  size_t unwritten(size_t* first) const;

  const std::string& name() const { return name_; }
  uintptr_t address() const { return address_; }
  size_t size() const { return bytes_; }
  unsigned char* data() { return data_.data(); }

 private:
  static constexpr size_t kCell = 16;
  struct Cell {  // a bit a byte
    uint16_t permitted, known;
    std::atomic<uint16_t> read, written;
    std::atomic<uint64_t> writer;
  };
  struct Range {
    size_t begin, end;
  };

  static uint16_t mask_of(int64_t offset, int bytes) {
    return static_cast<uint16_t>(((1u << bytes) - 1) << offset % kCell);
  }
  Cell* cells() { return reinterpret_cast<Cell*>(cells_.data()); }
  const Cell* cells() const { return reinterpret_cast<const Cell*>(cells_.data()); }

  std::string name_;
  uintptr_t address_;
  size_t bytes_;
  bool writable_;
  SparseMemory data_, cells_;
  std::vector<Range> permitted_;
};

class GlobalMemory {
 public:
  GlobalMemory();
  GlobalMemory(const GlobalMemory&) = delete;

  // A buffer of which nothing may be touched yet.
  Buffer& add(const std::string& name, size_t bytes, bool writable);
  void clear() { buffers_.clear(); }

  // Address of `bytes` checked bytes in the simulator's own memory; nullptr and `error` otherwise.
  unsigned char* access(Access access, const void* p, int bytes, uint64_t who, std::string* error);
  // As access(), of bytes that were checked before.
  const unsigned char* peek(const void* p);
  // Which buffer an address is in or near to, in words.
  std::string describe(const void* p);

  std::vector<std::unique_ptr<Buffer>>& buffers() { return buffers_; }

 private:
  static constexpr uintptr_t kSlot = uintptr_t{1} << 35, kLead = uintptr_t{1} << 33;
  static constexpr size_t kSlots = 8;

  Buffer* find(const void* p);

  uintptr_t arena_;
  std::vector<std::unique_ptr<Buffer>> buffers_;
};

}  // namespace rnk::sim
