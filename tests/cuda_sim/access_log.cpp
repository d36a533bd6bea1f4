#include "access_log.h"

#include <algorithm>

namespace rnk::sim {

namespace {

constexpr int kBanks = 32, kBankBytes = 4, kSectorBytes = 32;

// How many different sectors the lanes touch; no access straddles two, since all are aligned.
int distinct_sectors(const uint64_t* addresses, uint32_t lanes) {
  uint64_t seen[32];
  int count = 0;
  for (int lane = 0; lane < 32; ++lane) {
    if (!(lanes >> lane & 1)) continue;
    const uint64_t sector = addresses[lane] / kSectorBytes;
    if (std::find(seen, seen + count, sector) == seen + count) seen[count++] = sector;
  }
  return count;
}

}  // namespace

int shared_passes(const uint64_t* addresses, int lanes, int bytes) {
  uint64_t words[kBanks][32];
  int in_bank[kBanks] = {};
  int passes = 1;
  for (int lane = 0; lane < lanes; ++lane) {
    const uint64_t first = addresses[lane] / kBankBytes;
    for (uint64_t word = first; word * kBankBytes < addresses[lane] + bytes; ++word) {
      uint64_t* bank = words[word % kBanks];
      int& count = in_bank[word % kBanks];
      if (std::find(bank, bank + count, word) != bank + count) continue;
      bank[count++] = word;
      passes = std::max(passes, count);
    }
  }
  return passes;
}

AccessLog::Group& AccessLog::find(Space space, const void* site, int lane) {
  for (size_t tried = 0, i = next_[lane]; tried < used_; ++tried, ++i) {
    if (i >= used_) i = 0;
    Group& group = groups_[i];
    if (group.site == site && group.space == space && !(group.lanes >> lane & 1)) {
      next_[lane] = static_cast<uint32_t>(i + 1);
      return group;
    }
  }
  if (used_ == groups_.size()) groups_.emplace_back();
  Group& group = groups_[used_++];
  group.space = space;
  group.site = site;
  group.lanes = 0;
  next_[lane] = static_cast<uint32_t>(used_);
  return group;
}

SiteCost AccessLog::cost(const Group& group) {
  SiteCost cost;
  cost.instructions = 1;
  if (group.space == Space::global_read || group.space == Space::global_write) {
    cost.sectors = distinct_sectors(group.addresses, group.lanes);
    return cost;
  }
  // As many lanes are served at a time as fill the banks once: 16 bytes a quarter of the warp.
  const int lanes_at_once = std::min(32, kBanks * kBankBytes / std::max(group.bytes, kBankBytes));
  for (int first = 0; first < 32; first += lanes_at_once) {
    uint64_t addresses[32];
    int active = 0;
    for (int lane = first; lane < first + lanes_at_once; ++lane) {
      if (group.lanes >> lane & 1) addresses[active++] = group.addresses[lane];
    }
    if (!active) continue;
    const int passes = shared_passes(addresses, active, group.bytes);
    cost.wavefronts += passes;
    cost.conflicts += passes - 1;
  }
  return cost;
}

void SiteCost::add(const SiteCost& other) {
  instructions += other.instructions;
  sectors += other.sectors;
  wavefronts += other.wavefronts;
  conflicts += other.conflicts;
}

void AccessLog::flush(Profile& profile) {
  if (!used_) return;
  for (size_t i = 0; i < used_; ++i) {
    profile[{groups_[i].site, groups_[i].space}].add(cost(groups_[i]));
  }
  clear();
}

void AccessLog::clear() {
  used_ = 0;
  std::fill(next_, next_ + 32, 0);
}

}  // namespace rnk::sim
