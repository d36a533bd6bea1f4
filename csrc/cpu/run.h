// Runs computations on all threads, on a few images at a time where their operands are in planes:
// the kernels take the copies in channels_last, which then stay in the caches; included by ops.cpp.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <atomic>
#include <optional>
#include <vector>

#include "kernels.h"
#include "operands.h"
#include "workspace.h"

namespace rnk::cpu {
namespace {

int64_t threads() { return torch::stable::get_num_threads(); }

// A calling thread's memory for the tiles of its workers: one, whatever the computation.
Workspace& tiles() {
  thread_local Workspace workspace;
  return workspace;
}

// Runs `f(scratch, begin, end)` over [0, tasks) in parallel, a scratch of `words` for each range.
template <class F>
void parallel_tasks(int64_t tasks, int64_t words, F f) {
  // Apart by more than what the hardware fetches past the end of what a thread writes row by row:
  // fetched to be written, it is taken from the thread that works on it.
  constexpr int64_t kApart = 32 * 1024, kPage = 1024;
  const int64_t step = (words + kApart + kPage - 1) / kPage * kPage;
  const int64_t workers = std::min(threads(), std::max<int64_t>(tasks, 1));
  float* base = tiles().get(workers * step);
  // One range of tasks a worker: the range, not the thread, owns the scratch.
  torch::stable::parallel_for(0, workers, 1, [=](int64_t begin, int64_t end) {
    for (int64_t w = begin; w < end; ++w)
      f(base + w * step, tasks * w / workers, tasks * (w + 1) / workers);
  });
}

void run(TapConv conv) {
  const Kernels& k = kernels();
  const TapPlan plan = k.plan_taps(conv, threads());
  std::atomic<bool> done = true;
  parallel_tasks(plan.tasks, plan.scratch_words, [&](float* scratch, int64_t begin, int64_t end) {
    if (!k.run_taps(conv, plan, scratch, begin, end)) done = false;
  });
  if (done) return;
  conv.exact = true;
  run(conv);
}

// Of images that are copied at once: with all operands' copies they are to lie in the caches.
constexpr int64_t kPortionBytes = 4 << 20;

int64_t portion(int64_t batch, int64_t bytes) {
  return std::clamp<int64_t>(kPortionBytes / bytes, 1, batch);
}

void run(const Relayout& r) {
  constexpr int64_t kFewest = 4;  // tasks of a thread
  torch::stable::parallel_for(0, r.tasks(), kFewest, [&](int64_t begin, int64_t end) {
    kernels().run_relayout(r, begin, end);
  });
}

// `count` images from `first` on: as they lie or, of a tensor in planes, the copy that it makes.
const void* read(const Tensor& t, int64_t first, int64_t count, float* copy) {
  if (!is_in_planes(t)) {
    const int64_t bytes = first * t.stride(0) * element_bytes(element_of(t));
    return static_cast<const char*>(t.const_data_ptr()) + bytes;
  }
  Relayout r = from_planes(t).part(first, count);
  r.dst = copy;
  run(r);
  return copy;
}

// What portions of images are copied to.
float* copies(int64_t words, Workspace& passing) {
  thread_local Workspace kept;
  return (4 * words <= 2 * kPortionBytes ? kept : passing).get(words);
}

// Runs `c` on a few images at a time, whose copies in channels_last then stay in the caches, for
// operands in planes.
void run_in_portions(const TapConv& c, const Tensor& src, const std::optional<Tensor>& residual,
                     const Tensor& dst) {
  const int64_t most = portion(c.batch, image_bytes(src) + image_bytes(dst));
  const int64_t src_words = copy_words(src, most), dst_words = copy_words(dst, most);
  const int64_t all = src_words + dst_words + (residual ? copy_words(*residual, most) : 0);
  if (all == 0) return run(c);
  Workspace passing;
  float* const src_copy = copies(all, passing);
  float* const dst_copy = src_copy + src_words;
  float* const residual_copy = dst_copy + dst_words;
  for (int64_t first = 0; first < c.batch; first += most) {
    TapConv part = c;
    part.batch = std::min(most, c.batch - first);
    part.src = read(src, first, part.batch, src_copy);
    if (residual) part.residual = read(*residual, first, part.batch, residual_copy);
    if (!is_in_planes(dst)) {
      part.dst = static_cast<char*>(c.dst) + first * image_bytes(dst);
      run(part);
      continue;
    }
    part.dst = dst_copy;
    run(part);
    Relayout r = to_planes(dst).part(first, part.batch);
    r.src = dst_copy;
    run(r);
  }
}

// Images [first, first + w.problem.batch) of a portion, and how their sums are found.
struct WgradPortion {
  int64_t first;
  Wgrad w;
  WgradPlan plan;
};

// Portions of the batch. Each needs partial results of its own: where these would not be few beside
// the copies that they keep small, it is one.
std::vector<WgradPortion> portions(const Wgrad& w, const Tensor& input, const Tensor& grad_output) {
  const int64_t batch = w.problem.batch;
  const bool copied = is_in_planes(input) || is_in_planes(grad_output);
  const int64_t bytes = image_bytes(input) + image_bytes(grad_output);
  std::vector<WgradPortion> list;
  const auto cut = [&](int64_t most) {
    int64_t partial_bytes = 0;
    list.clear();
    for (int64_t first = 0; first < batch; first += most) {
      Wgrad part = w;
      part.problem.batch = std::min(most, batch - first);
      list.push_back({first, part, kernels().plan_wgrad(part, threads())});
      list.back().plan.whole = list.back().plan.splits == 1 && most == batch;
      partial_bytes += 4 * list.back().plan.partial_words();
    }
    return partial_bytes;
  };
  const int64_t most = copied ? portion(batch, bytes) : batch;
  if (4 * cut(most) > batch * bytes && most < batch) cut(batch);
  return list;
}

// Returns whether all of grad_weight is finite.
bool run(const Wgrad& w, const Tensor& input, const Tensor& grad_output) {
  const Kernels& k = kernels();
  const std::vector<WgradPortion> list = portions(w, input, grad_output);
  const int64_t most = list.front().w.problem.batch, input_words = copy_words(input, most);
  const int64_t copied = input_words + copy_words(grad_output, most);
  Workspace passing;
  float* const copy = copied ? copies(copied, passing) : nullptr;
  thread_local Workspace sums;
  int64_t words = 0;
  for (const WgradPortion& p : list) words += p.plan.partial_words();
  float* const partial = sums.get(words);
  std::atomic<bool> finite = true;
  WgradPlan all = list.front().plan;
  all.splits = 0;
  for (const WgradPortion& p : list) {
    Wgrad part = p.w;
    part.input = read(input, p.first, part.problem.batch, copy);
    part.grad_output = read(grad_output, p.first, part.problem.batch, copy + input_words);
    float* const to = partial + all.splits * all.units * all.unit_weights;
    all.splits += p.plan.splits;
    parallel_tasks(p.plan.tasks, p.plan.scratch_words,
                   [&](float* scratch, int64_t begin, int64_t end) {
                     if (!k.run_wgrad(part, p.plan, to, scratch, begin, end)) finite = false;
                   });
  }
  if (all.whole) return finite;
  torch::stable::parallel_for(0, all.units, 1 + 16384 / all.unit_weights,
                              [&](int64_t begin, int64_t end) {
                                if (!k.reduce_wgrad(w, all, partial, begin, end)) finite = false;
                              });
  return finite;
}

}  // namespace
}  // namespace rnk::cpu
