#include "api.h"

#include <cstring>
#include <map>
#include <tuple>

using namespace rnk;

namespace {

constexpr const char* kSpaces[] = {"ld_global", "st_global", "ld_shared",
                                   "st_shared", "cp_async",  "ldmatrix"};

}  // namespace

RNK_SIM_API void rnk_sim_set_options(const sim::Options* options) { sim::set_options(*options); }

// Names of the counters, a space after each.
RNK_SIM_API const char* rnk_sim_counter_names() {
#define RNK_SIM_NAME(name) #name " "
  return RNK_SIM_COUNTERS(RNK_SIM_NAME);
#undef RNK_SIM_NAME
}

// Launches of the last call, and the counters of one of them.
RNK_SIM_API int64_t rnk_sim_launches() { return static_cast<int64_t>(sim::costs().size()); }
RNK_SIM_API void rnk_sim_counters(int64_t launch, uint64_t* values) {
  std::memcpy(values, &sim::costs()[launch].counters, sizeof(sim::Counters));
}

// A line of text for each place in the source that touched memory in a launch: file, line, kind,
// instructions of a warp, sectors, wavefronts, conflicts. An asynchronous copy has two.
RNK_SIM_API const char* rnk_sim_profile(int64_t launch) {
  // The same place in several instances of a template counts as one.
  std::map<std::tuple<std::string, unsigned, sim::Space>, sim::SiteCost> lines;
  for (const auto& [key, cost] : sim::costs()[launch].profile) {
    const auto where = std::bit_cast<std::source_location>(key.first);
    const std::string file = where.file_name();
    lines[{file.substr(file.rfind('/') + 1), where.line(), key.second}].add(cost);
  }
  static std::string text;
  text.clear();
  for (const auto& [key, cost] : lines) {
    text += std::get<0>(key) + " " + std::to_string(std::get<1>(key)) + " " +
            kSpaces[static_cast<int>(std::get<2>(key))];
    for (const uint64_t n : {cost.instructions, cost.sectors, cost.wavefronts, cost.conflicts}) {
      text += " " + std::to_string(n);
    }
    text += "\n";
  }
  return text.c_str();
}
