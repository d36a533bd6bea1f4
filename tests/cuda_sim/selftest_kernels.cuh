// Small kernels that test the simulator itself: right ones, and the same with one bug planted.
#pragma once

#include "launch.cuh"

namespace rnk::cuda {

enum class Bug {
  none,
  dropped_barrier,
  wrong_wait_count,
  early_load,  // before the barrier, so over what other warps may still read
  read_one_too_far,
  unguarded_tail,
  no_wait_at_exit,
  double_write,
  missing_block,
  misaligned_global,
  misaligned_shared,
  outside_shared,
  write_to_input,
  swapped_fragment,
  divergent_ldmatrix,
  early_return,
  different_barriers,
  half_a_warp,
  dropped_warp_sync,
  plain_dereference,
};

struct SelfTest {
  const unsigned char* a = nullptr;
  const unsigned char* b = nullptr;
  unsigned char* out = nullptr;
  int n = 0;
};

constexpr int kCopyThreads = 64, kStages = 3, kVector = 16;
constexpr int kStageBytes = kCopyThreads * kVector;

// out = a, n vectors of 16 bytes, through a ring in shared memory. A thread stores what a thread of
// the other warp loaded.
template <Bug bug>
RNK_KERNEL(kCopyThreads, 1)
ring_copy(const SelfTest task) {
  const int thread = threadIdx.x, other = kCopyThreads - 1 - thread;
  const int tiles = (task.n + kCopyThreads - 1) / kCopyThreads;
  const int last = bug == Bug::read_one_too_far ? task.n : task.n - 1;
  const auto slot = [](int step) { return shared_base() + step % kStages * kStageBytes; };
  const auto load = [&](int step) {
    const int tile = blockIdx.x + step * gridDim.x, vector = tile * kCopyThreads + thread;
    if (bug != Bug::no_wait_at_exit && tile >= tiles) return;
    cp_async_16(slot(step) + thread * kVector + (bug == Bug::misaligned_shared ? 8 : 0),
                task.a + vector * kVector + (bug == Bug::misaligned_global ? 8 : 0),
                vector <= last);
  };
  for (int step = 0; step < kStages - 1; ++step) {
    load(step);
    cp_async_commit();
  }
  int step = 0;
  for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x, ++step) {
    cp_async_wait<bug == Bug::wrong_wait_count ? kStages - 1 : kStages - 2>();
    if (bug == Bug::early_load) load(step + kStages - 1);
    if (bug != Bug::dropped_barrier) sync_threads();
    if (bug != Bug::early_load) load(step + kStages - 1);
    cp_async_commit();
    const Vec16 v = ld_shared_16(slot(step) + other * kVector);
    const int vector = tile * kCopyThreads + other;
    if (bug == Bug::unguarded_tail || vector < task.n) st_global_16(task.out + vector * kVector, v);
    if (bug == Bug::double_write && vector == 100) st_global_16(task.out, v);
    if (bug == Bug::write_to_input && vector == 100) {
      st_global_16(const_cast<unsigned char*>(task.a), v);
    }
  }
}

constexpr int kMatmulThreads = 64;
constexpr int kDepth = 32;                // the sum's length
constexpr int kPitchA = kDepth * 2 + 16;  // bytes of a row in shared memory, off the same bank
constexpr int kColumns = 16, kPitchB = kColumns * 2 + 16;
constexpr int kRowsOfBlock = kMatmulThreads / 32 * 16;
constexpr int kMatmulShared = kRowsOfBlock * kPitchA + kDepth * kPitchB;

// out = a * b in float32, a: n x 32 by rows, b: 32 x 16 by rows. A warp owns 16 rows.
template <class Format, int k, Bug bug>
RNK_KERNEL(kMatmulThreads, 1)
matmul(const SelfTest task) {
  const int thread = threadIdx.x, lane = thread % 32, first = blockIdx.x * kRowsOfBlock;
  const uint32_t shared_a = shared_base(), shared_b = shared_a + kRowsOfBlock * kPitchA;
  for (int i = thread; i < kRowsOfBlock * kDepth / 8; i += kMatmulThreads) {
    const int row = i / (kDepth / 8), vector = i % (kDepth / 8) * kVector;
    cp_async_16(shared_a + row * kPitchA + vector, task.a + (first + row) * kDepth * 2 + vector,
                first + row < task.n);
  }
  cp_async_commit();
  for (int i = thread; i < kDepth * kColumns / 8; i += kMatmulThreads) {
    const int row = i / (kColumns / 8), vector = i % (kColumns / 8) * kVector;
    st_shared_16(shared_b + row * kPitchB + vector, ld_global_16(task.b + i * kVector));
  }
  cp_async_wait<0>();
  if (bug != Bug::dropped_barrier) sync_threads();

  const int warp_row = thread / 32 * 16;
  const uint32_t operand_a = shared_a + (warp_row + lane % 16) * kPitchA;
  const uint32_t operand_b = shared_b + (bug == Bug::outside_shared ? kMatmulShared : 0);
  float sums[2][4] = {};
  for (int step = 0; step < kDepth; step += k) {
    if constexpr (k == 16) {
      uint32_t a[4], b[4];
      if (bug != Bug::divergent_ldmatrix || lane != 5) {
        ldmatrix_x4(a, operand_a + step * 2 + lane / 16 * kVector +
                           (bug == Bug::misaligned_shared ? 4 : 0));
      }
      ldmatrix_x4_trans(b, operand_b + (step + lane % 16) * kPitchB + lane / 16 * kVector);
      const bool swapped = bug == Bug::swapped_fragment;
      mma_k16(Format{}, sums[0], a, b[swapped], b[!swapped]);
      mma_k16(Format{}, sums[1], a, b[2], b[3]);
    } else {
      uint32_t a[2], b[2];
      ldmatrix_x2(a, operand_a + step * 2);
      ldmatrix_x2_trans(b, operand_b + (step + lane % 8) * kPitchB + lane / 8 % 2 * kVector);
      mma_k8(Format{}, sums[0], a[0], a[1], b[0]);
      mma_k8(Format{}, sums[1], a[0], a[1], b[1]);
    }
  }
  for (int tile = 0; tile < 2; ++tile) {
    for (int half = 0; half < 2; ++half) {
      const int row = first + warp_row + half * 8 + lane / 4, column = tile * 8 + lane % 4 * 2;
      const float* const pair = sums[tile] + half * 2;
      if (row < task.n) {
        st_global_8(task.out + (row * kColumns + column) * 4, float_bits(pair[0]),
                    float_bits(pair[1]));
      }
    }
  }
}

// out = a * b, a: 16 x 8 by rows, not rounded; b: 8 x 8 by rows, rounded.
RNK_KERNEL(32, 1)
matmul_tf32(const SelfTest task) {
  const int lane = threadIdx.x;
  st_shared_16(shared_base() + lane * kVector, ld_global_16(task.a + lane * kVector));
  sync_threads();
  uint32_t a[4], b[2];
  ldmatrix_x4(a, shared_base() + lane % 16 * 32 + lane / 16 * kVector);
  for (int k = 0; k < 2; ++k) {
    b[k] = to_tf32(ld_global_4(task.b + ((lane % 4 + k * 4) * 8 + lane / 4) * 4));
  }
  float sums[4] = {};
  mma_tf32(sums, a, b[0], b[1]);
  for (int half = 0; half < 2; ++half) {
    const int row = half * 8 + lane / 4, column = lane % 4 * 2;
    st_global_8(task.out + (row * 8 + column) * 4, float_bits(sums[half * 2]),
                float_bits(sums[half * 2 + 1]));
  }
}

// Of 32 words of a: the transposed 8x8 matrix, those of lane ^ n, and by way of shared memory those
// of lane + 1.
template <Bug bug>
RNK_KERNEL(32, 1)
exchange_words(const SelfTest task) {
  const int lane = threadIdx.x;
  const uint32_t v = ld_global_4(task.a + lane * 4);
  st_global_4(task.out + lane * 4, movmatrix_trans(v));
  st_global_4(task.out + 128 + lane * 4, shfl_xor(v, task.n));
  st_shared_4(shared_base() + lane * 4, v);
  if (bug != Bug::dropped_warp_sync) sync_warp();
  st_global_4(task.out + 256 + lane * 4, ld_shared_4(shared_base() + (lane + 1) % 32 * 4));
}

// The words of a, but in ways that do not come to an end.
template <Bug bug>
RNK_KERNEL(64, 1)
stuck(const SelfTest task) {
  const int thread = threadIdx.x;
  if (bug == Bug::missing_block && blockIdx.x == 0) return;
  if (bug == Bug::early_return && thread == 40) return;
  uint32_t v = 0;
  if (bug == Bug::plain_dereference) {
    v = *reinterpret_cast<const volatile uint32_t*>(task.a + thread * 4);
  } else {
    v = ld_global_4(task.a + (blockIdx.x * 64 + thread) * 4);
  }
  if (bug == Bug::different_barriers && thread >= 32) {
    sync_threads();
  } else if (bug == Bug::half_a_warp && thread < 16) {
    v = shfl_xor(v, 1);
  } else {
    sync_threads();
  }
  st_global_4(task.out + (blockIdx.x * 64 + thread) * 4, v);
}

// Accesses whose cost is known: each lane of a warp reads `n` bytes after the one before it.
RNK_KERNEL(32, 1)
cost_of_stride(const SelfTest task) {
  const int lane = threadIdx.x;
  uint32_t sum = ld_global_4(task.a + lane * task.n);
  if (lane < 8) sum += ld_global_16(task.a + lane * 16).x[0];
  sum += ld_shared_4(shared_base() + lane * task.n);
  sum += ld_shared_16(shared_base() + lane * 16).x[0];
  uint32_t r[4];
  ldmatrix_x4(r, shared_base() + lane * task.n / 16 * 16);
  st_global_2(task.out + lane * 2, static_cast<uint16_t>(sum + r[0]));
}

}  // namespace rnk::cuda
