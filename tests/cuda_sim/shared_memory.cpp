#include "shared_memory.h"

#include <cstring>

namespace rnk::sim {

void SharedMemory::resize(int bytes) {
  data_.resize(bytes);
  // Time starts anew, so what is known of other launches must go.
  words_.assign((bytes + 3) / 4, Word{});
}

void SharedMemory::poison() { std::memset(data_.data(), 0xff, data_.size()); }

const char* SharedMemory::race(const char* what, uint16_t who) {
  if (who == kSeveral) {
    other_ = "threads of several warps";
  } else if (who >= kSeveralOfWarp) {
    other_ = "threads of warp " + std::to_string(who - kSeveralOfWarp);
  } else {
    other_ = "thread " + std::to_string(who);
  }
  return what;
}

const char* SharedMemory::read(uint32_t address, int bytes, int thread, const Clock& clock) {
  const int warp = thread / 32;
  Word* const end = word(address + static_cast<uint32_t>(bytes) - 1) + 1;
  for (Word* w = word(address); w != end; ++w) {
    if (w->written > clock.barrier) {
      if (w->written == kUnderWay) return race("race: reads what cp.async still writes", w->writer);
      if (w->writer != thread && (w->writer / 32 != warp || w->written > clock.warp)) {
        return race("race: reads what was written since the last barrier", w->writer);
      }
    }
    const bool before_warp = w->read <= clock.warp;
    if (w->read <= clock.barrier || w->reader == thread) {
      w->reader = static_cast<uint16_t>(thread);
    } else if (w->reader != kSeveral) {
      const int reader_warp =
          w->reader < kSeveralOfWarp ? w->reader / 32 : w->reader - kSeveralOfWarp;
      w->reader = static_cast<uint16_t>(reader_warp != warp ? kSeveral
                                        : before_warp       ? thread
                                                            : kSeveralOfWarp + warp);
    }
    w->read = clock.now;
  }
  return nullptr;
}

const char* SharedMemory::write(uint32_t address, int bytes, int thread, const Clock& clock) {
  const int warp = thread / 32;
  Word* const end = word(address + static_cast<uint32_t>(bytes) - 1) + 1;
  for (Word* w = word(address); w != end; ++w) {
    if (w->written > clock.barrier) {
      if (w->written == kUnderWay) {
        return race("race: writes where cp.async still writes", w->writer);
      }
      if (w->writer != thread && (w->writer / 32 != warp || w->written > clock.warp)) {
        return race("race: writes what was written since the last barrier", w->writer);
      }
    }
    if (w->read > clock.barrier && w->reader != thread) {
      const int reader_warp =
          w->reader < kSeveralOfWarp ? w->reader / 32 : w->reader - kSeveralOfWarp;
      if (w->reader == kSeveral || reader_warp != warp || w->read > clock.warp) {
        return race("race: writes what was read since the last barrier", w->reader);
      }
    }
    w->written = clock.now;
    w->writer = static_cast<uint16_t>(thread);
  }
  return nullptr;
}

const char* SharedMemory::begin_copy(uint32_t address, int bytes, int thread, const Clock& clock) {
  if (const char* error = write(address, bytes, thread, clock)) return error;
  Word* const end = word(address + static_cast<uint32_t>(bytes) - 1) + 1;
  for (Word* w = word(address); w != end; ++w) w->written = kUnderWay;
  return nullptr;
}

void SharedMemory::end_copy(uint32_t address, int bytes, const Clock& clock) {
  Word* const end = word(address + static_cast<uint32_t>(bytes) - 1) + 1;
  for (Word* w = word(address); w != end; ++w) w->written = clock.now;
}

}  // namespace rnk::sim
