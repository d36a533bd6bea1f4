#include "global_memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <stdexcept>
#include <utility>

namespace rnk::sim {

namespace {

unsigned char* map(size_t bytes, int protection) {
  void* p = mmap(nullptr, bytes, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) throw std::runtime_error("cuda_sim: no address space for a buffer");
  return static_cast<unsigned char*>(p);
}

}  // namespace

SparseMemory::SparseMemory(size_t bytes)
    : data_(map(bytes, PROT_READ | PROT_WRITE)), bytes_(bytes) {}

SparseMemory::~SparseMemory() { munmap(data_, bytes_); }

Buffer::Buffer(std::string name, uintptr_t address, size_t bytes, bool writable)
    : name_(std::move(name)),
      address_(address),
      bytes_(bytes),
      writable_(writable),
      data_(bytes + kCell),
      cells_((bytes / kCell + 1) * sizeof(Cell)) {}

void Buffer::permit(size_t offset, size_t bytes, const void* initial) {
  if (offset + bytes > bytes_) throw std::out_of_range("permit: beyond the end of " + name_);
  if (initial) {
    std::memcpy(data() + offset, initial, bytes);
  } else {
    std::memset(data() + offset, 0xff, bytes);
  }
  const size_t end = offset + bytes;
  for (size_t i = offset; i < end;) {
    Cell& cell = cells()[i / kCell];
    const size_t next = std::min(end, (i / kCell + 1) * kCell);
    const uint16_t mask = mask_of(static_cast<int64_t>(i), static_cast<int>(next - i));
    cell.permitted |= mask;
    if (initial) cell.known |= mask;
    i = next;
  }
  if (!permitted_.empty() && permitted_.back().end == offset) {
    permitted_.back().end = end;
  } else {
    permitted_.push_back({offset, end});
  }
}

void Buffer::copy_to(void* to) const {
  for (const Range& range : permitted_) {
    std::memcpy(static_cast<unsigned char*>(to) + range.begin, data_.data() + range.begin,
                range.end - range.begin);
  }
}

bool Buffer::access(Access access, int64_t offset, int bytes, uint64_t who) {
  if (offset < 0 || offset + bytes > static_cast<int64_t>(bytes_) || offset & (bytes - 1)) {
    return false;
  }
  Cell& cell = cells()[offset / kCell];
  const uint16_t mask = mask_of(offset, bytes);
  if ((cell.permitted & mask) != mask) return false;
  if (access == Access::read) {
    if ((cell.known & mask) != mask) return false;
    if ((cell.read.load(std::memory_order_relaxed) & mask) != mask) {
      cell.read.fetch_or(mask, std::memory_order_relaxed);
    }
    return true;
  }
  if (!writable_ || cell.written.fetch_or(mask, std::memory_order_relaxed) & mask) return false;
  cell.writer.store(who, std::memory_order_relaxed);
  return true;
}

std::string Buffer::explain(Access access, int64_t offset, int bytes) const {
  const bool reads = access == Access::read;
  const std::string text = (reads ? "reads " : "writes ") + std::to_string(bytes) +
                           " bytes at offset " + std::to_string(offset) + " of '" + name_ + "' (" +
                           std::to_string(bytes_) + " bytes): ";
  if (offset < 0 || offset + bytes > static_cast<int64_t>(bytes_)) return text + "out of range";
  if (offset & (bytes - 1)) return text + "misaligned";
  const Cell& cell = cells()[offset / kCell];
  const uint16_t mask = mask_of(offset, bytes);
  if ((cell.permitted & mask) != mask)
    return text + "out of range, beside what belongs to the tensor";
  if (reads) return text + "not written by an earlier launch";
  if (!writable_) return text + "it is read-only";
  const uint64_t writer = cell.writer.load(std::memory_order_relaxed);
  return text + "written twice; the last to write these 16 bytes was block " +
         std::to_string(writer / 1024) + ", thread " + std::to_string(writer % 1024);
}

size_t Buffer::next_launch() {
  size_t read = 0;
  for (const Range& range : permitted_) {
    for (size_t i = range.begin / kCell; i * kCell < range.end; ++i) {
      Cell& cell = cells()[i];
      read += std::popcount(cell.read.exchange(0, std::memory_order_relaxed));
      cell.known |= cell.written.exchange(0, std::memory_order_relaxed);
    }
  }
  return read;
}

size_t Buffer::unwritten(size_t* first) const {
  size_t count = 0;
  for (const Range& range : permitted_) {
    for (size_t i = range.begin; i < range.end; ++i) {
      if (cells()[i / kCell].known >> i % kCell & 1) continue;
      if (count++ == 0) *first = i;
    }
  }
  return count;
}

GlobalMemory::GlobalMemory()
    : arena_(reinterpret_cast<uintptr_t>(map(kSlot * kSlots, PROT_NONE))) {}

Buffer& GlobalMemory::add(const std::string& name, size_t bytes, bool writable) {
  if (buffers_.size() == kSlots || bytes > kSlot - 2 * kLead) {
    throw std::runtime_error("cuda_sim: too many or too large buffers");
  }
  const uintptr_t address = arena_ + buffers_.size() * kSlot + kLead;
  return *buffers_.emplace_back(std::make_unique<Buffer>(name, address, bytes, writable));
}

Buffer* GlobalMemory::find(const void* p) {
  const uintptr_t slot = (reinterpret_cast<uintptr_t>(p) - arena_) / kSlot;
  return slot < buffers_.size() ? buffers_[slot].get() : nullptr;
}

unsigned char* GlobalMemory::access(Access access, const void* p, int bytes, uint64_t who,
                                    std::string* error) {
  Buffer* buffer = find(p);
  if (!buffer) {
    *error = (access == Access::read ? "reads" : "writes") + describe(p);
    return nullptr;
  }
  const auto offset = static_cast<int64_t>(reinterpret_cast<uintptr_t>(p) - buffer->address());
  if (buffer->access(access, offset, bytes, who)) return buffer->data() + offset;
  *error = buffer->explain(access, offset, bytes);
  return nullptr;
}

const unsigned char* GlobalMemory::peek(const void* p) {
  Buffer* buffer = find(p);
  return buffer->data() + (reinterpret_cast<uintptr_t>(p) - buffer->address());
}

std::string GlobalMemory::describe(const void* p) {
  Buffer* buffer = find(p);
  if (!buffer) return " outside every buffer";
  const auto offset = static_cast<int64_t>(reinterpret_cast<uintptr_t>(p) - buffer->address());
  return " at offset " + std::to_string(offset) + " of '" + buffer->name() + "' (" +
         std::to_string(buffer->size()) + " bytes)";
}

}  // namespace rnk::sim
