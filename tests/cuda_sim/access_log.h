// Puts the accesses of the lanes of a warp together into the instructions of the warp that they
// belong to, and counts what these cost in memory sectors and in passes over shared memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <utility>
#include <vector>

namespace rnk::sim {

enum class Space : uint8_t { global_read, global_write, ld_shared, st_shared, cp_async, ldmatrix };

// What the instructions at one place of the source cost together.
struct SiteCost {
  uint64_t instructions = 0;               // of a warp
  uint64_t sectors = 0;                    // of global memory
  uint64_t wavefronts = 0, conflicts = 0;  // of shared memory

  void add(const SiteCost& other);
};

// By a place in the source, as Instruction::site() has it.
using Profile = std::map<std::pair<const void*, Space>, SiteCost>;

// Passes over the 32 banks of shared memory to serve `lanes` addresses in one go.
int shared_passes(const uint64_t* addresses, int lanes, int bytes);

// Between two points where a warp comes together, lanes that execute the same place of the source
// for the same time are taken to be one instruction of the warp. Where lanes go different numbers
// of times through a loop that lies in another, that is a guess.
class AccessLog {
 public:
  void note(Space space, const void* site, int lane, uint64_t address, int bytes) {
    Group& group = find(space, site, lane);
    group.bytes = bytes;
    group.lanes |= 1u << lane;
    group.addresses[lane] = address;
  }
  // The warp comes together: adds up the costs of all groups and forgets them.
  void flush(Profile& profile);
  void clear();

 private:
  struct Group {
    Space space;
    const void* site;
    int bytes;
    uint32_t lanes;
    uint64_t addresses[32];
  };

  Group& find(Space space, const void* site, int lane);
  static SiteCost cost(const Group& group);

  std::vector<Group> groups_;
  size_t used_ = 0;
  uint32_t next_[32] = {};  // where each lane's next access is likely to belong
};

}  // namespace rnk::sim
