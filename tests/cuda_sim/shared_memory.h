// The dynamic shared memory of a block, with a record of who touched each word when, which tells
// races: two accesses of different threads, one of them a write, that nothing orders.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace rnk::sim {

// Who accesses shared memory, and until when the accesses of others lie before this one. Time is
// counted in synchronisations of the block or of any of its warps.
struct Clock {
  uint32_t now = 0;
  uint32_t barrier = 0;  // what happened up to here happened before, in every thread
  uint32_t warp = 0;     // ... in the threads of the same warp
};

class SharedMemory {
 public:
  // Where it begins: not 0, so that an address without shared_base() shows, and a multiple of no
  // more than the 128 bytes that the device promises.
  static constexpr uint32_t kBase = 1024 + 128;

  void resize(int bytes);
  // Begins a block: NaN everywhere.
  void poison();

  // Each returns nullptr or what is wrong with an access.
  const char* check_address(uint32_t address, int bytes) const {
    if (address < kBase || address + static_cast<uint64_t>(bytes) > kBase + data_.size()) {
      return "outside the block's shared memory";
    }
    return address % static_cast<uint32_t>(bytes) ? "misaligned" : nullptr;
  }
  const char* read(uint32_t address, int bytes, int thread, const Clock& clock);
  const char* write(uint32_t address, int bytes, int thread, const Clock& clock);
  // A copy is a write that goes on from the first of these calls to the second.
  const char* begin_copy(uint32_t address, int bytes, int thread, const Clock& clock);
  void end_copy(uint32_t address, int bytes, const Clock& clock);

  unsigned char* at(uint32_t address) { return data_.data() + (address - kBase); }
  // The other thread of the race that was found last.
  const std::string& other() const { return other_; }

 private:
  static constexpr uint32_t kUnderWay = UINT32_MAX;
  static constexpr uint16_t kSeveralOfWarp = 1024, kSeveral = UINT16_MAX;

  struct Word {
    uint32_t written = 0, read = 0;  // when last
    uint16_t writer = 0;
    uint16_t reader = 0;  // a thread, kSeveralOfWarp + warp, or kSeveral
  };

  Word* word(uint32_t address) { return words_.data() + (address - kBase) / 4; }
  const char* race(const char* what, uint16_t who);

  std::vector<unsigned char> data_;
  std::vector<Word> words_;
  std::string other_;
};

}  // namespace rnk::sim
