#include "warp_instructions.h"

#include <cstring>
#include <utility>

#include "formats.h"

namespace rnk::sim {

namespace {

constexpr int kSide = 8, kRowBytes = 16;  // of a matrix of 2-byte elements

void check_rows(Warp& warp, Block& block, int rows) {
  for (int i = 0; i < rows; ++i) {
    // The lane that gives a row's address answers for it, whichever order the lanes run in.
    const uint32_t address = warp.operands.address[i];
    const int thread = static_cast<int>(&warp - block.warps.data()) * 32 + i;
    const char* what = block.shared.check_address(address, kRowBytes);
    const bool outside = what;
    if (!what && block.options.races) {
      what = block.shared.read(address, kRowBytes, thread,
                               {block.now, block.barrier, warp.synchronised});
    }
    if (!what) continue;
    current = &block.threads[thread];
    std::string text = what;
    if (!outside) text += " by " + block.shared.other();
    fail(warp.instruction, text + ": row at offset " +
                               std::to_string(static_cast<int64_t>(address) - SharedMemory::kBase) +
                               " of shared memory");
  }
}

SiteCost cost_of_rows(const uint32_t* rows) {
  unsigned seen = 0;
  for (int i = 0; i < kSide; ++i) seen |= 1u << rows[i] / kRowBytes % kSide;
  SiteCost cost;
  cost.wavefronts = 1;
  if (seen != 0xff) {
    uint64_t addresses[kSide];
    for (int i = 0; i < kSide; ++i) addresses[i] = rows[i];
    cost.wavefronts = shared_passes(addresses, kSide, kRowBytes);
  }
  cost.conflicts = cost.wavefronts - 1;
  return cost;
}

typedef float Row __attribute__((vector_size(kSide * sizeof(float)), may_alias));

template <class Format>
void to_floats(float* to, const void* from) {
  uint16_t matrix[kSide * kSide];
  std::memcpy(matrix, from, sizeof matrix);
  for (int i = 0; i < kSide * kSide; ++i) to[i] = Format::to_float(matrix[i]);
}

void transpose(uint16_t* to, const uint16_t* from) {
  for (int i = 0; i < kSide; ++i) {
    for (int j = 0; j < kSide; ++j) to[i * kSide + j] = from[j * kSide + i];
  }
}

// d += a * b; a in parts of eight columns.
template <int k>
void multiply(Operands& o, const float (&a)[k / 8][16][kSide], const Row (&b)[k]) {
  constexpr int kAtOnce = 4;  // rows, so that one sum need not wait for another
  for (int row = 0; row < 16; row += kAtOnce) {
    Row* const d = reinterpret_cast<Row*>(o.d[row]);
    Row sum0 = d[0], sum1 = d[1], sum2 = d[2], sum3 = d[3];
    for (int q = 0; q < k / 8; ++q) {
      const float (*const factors)[kSide] = a[q] + row;
      for (int i = 0; i < kSide; ++i) {
        const Row v = b[q * kSide + i];
        sum0 += factors[0][i] * v;
        sum1 += factors[1][i] * v;
        sum2 += factors[2][i] * v;
        sum3 += factors[3][i] * v;
      }
    }
    d[0] = sum0, d[1] = sum1, d[2] = sum2, d[3] = sum3;
  }
}

}  // namespace

template <int matrices, bool transposed>
void execute_ldmatrix(Warp& warp, Block& block) {
  Operands& o = warp.operands;
  check_rows(warp, block, matrices * kSide);
  SiteCost& cost = block.profile[{warp.instruction.site(), Space::ldmatrix}];
  ++cost.instructions;
  for (int m = 0; m < matrices; ++m) {
    const uint32_t* const rows = o.address + m * kSide;
    cost.add(cost_of_rows(rows));
    alignas(64) uint16_t matrix[kSide * kSide];
    for (int i = 0; i < kSide; ++i) {
      std::memcpy(matrix + i * kSide, block.shared.at(rows[i]), kRowBytes);
    }
    if (transposed) {
      alignas(64) uint16_t turned[kSide * kSide];
      transpose(turned, matrix);
      std::memcpy(o.result[m], turned, sizeof turned);
    } else {
      std::memcpy(o.result[m], matrix, sizeof matrix);
    }
  }
}

template void execute_ldmatrix<4, false>(Warp&, Block&);
template void execute_ldmatrix<4, true>(Warp&, Block&);
template void execute_ldmatrix<2, false>(Warp&, Block&);
template void execute_ldmatrix<2, true>(Warp&, Block&);

template <class Format, int k>
void execute_mma(Warp& warp, Block& block) {
  ++(k == 16 ? block.counters.mma_k16 : block.counters.mma_k8);
  Operands& o = warp.operands;
  // Over the lanes in order, a register holds an 8x8 matrix by rows: of A as it is, of B
  // transposed.
  alignas(64) float a[k / 8][16][kSide];
  Row b[k];
  for (int q = 0; q < k / 8; ++q) {
    uint16_t matrix[kSide * kSide], turned[kSide * kSide];
    to_floats<Format>(a[q][0], o.a[q * 2]);
    to_floats<Format>(a[q][kSide], o.a[q * 2 + 1]);
    std::memcpy(matrix, o.b[q], sizeof matrix);
    transpose(turned, matrix);
    to_floats<Format>(reinterpret_cast<float*>(b + q * kSide), turned);
  }
  multiply<k>(o, a, b);
}

template void execute_mma<Bfloat16, 16>(Warp&, Block&);
template void execute_mma<Float16, 16>(Warp&, Block&);
template void execute_mma<Bfloat16, 8>(Warp&, Block&);
template void execute_mma<Float16, 8>(Warp&, Block&);

void execute_mma_tf32(Warp& warp, Block& block) {
  ++block.counters.mma_tf32;
  Operands& o = warp.operands;
  alignas(64) float a[1][16][kSide];
  Row b[kSide];
  for (int lane = 0; lane < 32; ++lane) {
    const int row = lane / 4, column = lane % 4;
    for (int i = 0; i < 4; ++i) {
      a[0][row + i % 2 * 8][column + i / 2 * 4] = Tfloat32::truncated(o.a[i][lane]);
    }
    for (int i = 0; i < 2; ++i) b[column + i * 4][row] = Tfloat32::truncated(o.b[i][lane]);
  }
  multiply<kSide>(o, a, b);
}

void execute_movmatrix(Warp& warp, Block& block) {
  ++block.counters.movmatrix;
  uint16_t matrix[kSide * kSide], turned[kSide * kSide];
  std::memcpy(matrix, warp.operands.address, sizeof matrix);
  transpose(turned, matrix);
  std::memcpy(warp.operands.result[0], turned, sizeof turned);
}

void execute_shfl_xor(Warp& warp, Block& block) {
  ++block.counters.shfl;
  for (int i = 0; i < 32; ++i) {
    warp.operands.result[0][i] = warp.operands.address[(i ^ warp.operands.mask[i]) & 31];
  }
}

void execute_sync_warp(Warp& warp, Block& block) { warp.synchronised = block.now++; }

}  // namespace rnk::sim
