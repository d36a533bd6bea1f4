// Launches: blocks spread over OS threads.
#include <algorithm>
#include <atomic>
#include <memory>
#include <mutex>
#include <thread>

#include "faults.h"
#include "machine.h"
#include "worker.h"

namespace rnk::sim {

namespace {

void prepare(Block& block, const Launch& launch, const Options& options) {
  block.options = options;
  block.threads_per_block.x = launch.threads;
  block.blocks.x = launch.blocks;
  block.body = launch.body;
  block.arguments = launch.arguments;
  block.counters = {};
  block.profile.clear();
  block.error.clear();
  block.now = 1;
  block.threads.resize(launch.threads);
  block.warps.resize(launch.threads / 32);
  block.shared.resize(launch.shared_bytes);
  for (int i = 0; i < launch.threads; ++i) {
    Thread& thread = block.threads[i];
    thread.index.x = i;
    thread.lane = i % 32;
    thread.warp = &block.warps[i / 32];
    thread.block = &block;
  }
}

std::string check_launch(const Launch& launch, const Options& options) {
  const auto bad = [](const char* what, int value) {
    return std::string("invalid launch: ") + what + " " + std::to_string(value);
  };
  if (launch.blocks < 1) return bad("blocks", launch.blocks);
  if (launch.threads < 32 || launch.threads > kMostThreads || launch.threads % 32) {
    return bad("threads", launch.threads);
  }
  if (launch.shared_bytes < 0 || launch.shared_bytes > options.most_shared_bytes) {
    return bad("bytes of shared memory", launch.shared_bytes);
  }
  return {};
}

// Fills in what is known of a launch as a whole.
void finish(LaunchCost& cost, const Launch& launch) {
  Counters& c = cost.counters;
  for (auto& buffer : global_memory().buffers()) c.distinct_bytes_read += buffer->next_launch();
  c.blocks = launch.blocks;
  c.threads = launch.threads;
  c.shared_bytes = launch.shared_bytes;
  const auto shared = [](const SiteCost& site, uint64_t& wavefronts, uint64_t& conflicts) {
    wavefronts += site.wavefronts;
    conflicts += site.conflicts;
  };
  for (const auto& [key, site] : cost.profile) {
    switch (key.second) {
      case Space::global_read:
        c.sectors_read += site.sectors;
        break;
      case Space::global_write:
        c.sectors_written += site.sectors;
        break;
      case Space::ld_shared:
        shared(site, c.ld_shared_wavefronts, c.ld_shared_conflicts);
        break;
      case Space::st_shared:
        shared(site, c.st_shared_wavefronts, c.st_shared_conflicts);
        break;
      case Space::cp_async:
        shared(site, c.cp_async_wavefronts, c.cp_async_conflicts);
        break;
      case Space::ldmatrix:
        shared(site, c.ldmatrix_wavefronts, c.ldmatrix_conflicts);
        c.ldmatrix += site.instructions;
        break;
    }
  }
}

Options options;
std::vector<LaunchCost> launches;
std::string error;

}  // namespace

GlobalMemory& global_memory() {
  static GlobalMemory memory;
  return memory;
}

const char* run(const Launch& launch) {
  static std::mutex mutex;
  static std::vector<std::unique_ptr<Worker>> workers;
  const std::lock_guard lock(mutex);
  error = check_launch(launch, options);
  if (!error.empty()) return error.c_str();

  int count = options.os_threads;
  if (!count) count = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  count = std::min(count, launch.blocks);
  while (static_cast<int>(workers.size()) < count) workers.push_back(std::make_unique<Worker>());

  std::atomic<int> next{0};
  const auto work = [&](Worker& worker) {
    const FaultsCaught caught;
    prepare(worker.block, launch, options);
    for (int index; (index = next++) < launch.blocks;) {
      run_block(worker, index);
      if (!worker.block.error.empty()) next = launch.blocks;
    }
  };
  std::vector<std::thread> others;
  for (int i = 1; i < count; ++i) others.emplace_back(work, std::ref(*workers[i]));
  work(*workers[0]);
  for (std::thread& other : others) other.join();

  LaunchCost cost;
  for (int i = 0; i < count; ++i) {
    const Block& block = workers[i]->block;
    cost.counters.add(block.counters);
    for (const auto& [key, site] : block.profile) cost.profile[key].add(site);
    if (error.empty()) error = block.error;
  }
  finish(cost, launch);
  launches.push_back(cost);
  return error.empty() ? nullptr : error.c_str();
}

void set_options(const Options& value) { options = value; }
const std::vector<LaunchCost>& costs() { return launches; }
void clear_costs() { launches.clear(); }

}  // namespace rnk::sim
