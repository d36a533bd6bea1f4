// What the warp-wide instructions do, once all lanes of a warp have handed over their operands.
#pragma once

#include "machine.h"

namespace rnk::sim {

template <int matrices, bool transposed>
void execute_ldmatrix(Warp& warp, Block& block);
extern template void execute_ldmatrix<4, false>(Warp&, Block&);
extern template void execute_ldmatrix<4, true>(Warp&, Block&);
extern template void execute_ldmatrix<2, false>(Warp&, Block&);
extern template void execute_ldmatrix<2, true>(Warp&, Block&);

// d += a * b; see ptx.cuh for where the lanes' operands lie. Format: float of a 16-bit pattern.
template <class Format, int k>
void execute_mma(Warp& warp, Block& block);
extern template void execute_mma<struct Bfloat16, 16>(Warp&, Block&);
extern template void execute_mma<struct Float16, 16>(Warp&, Block&);
extern template void execute_mma<struct Bfloat16, 8>(Warp&, Block&);
extern template void execute_mma<struct Float16, 8>(Warp&, Block&);
void execute_mma_tf32(Warp& warp, Block& block);

void execute_movmatrix(Warp& warp, Block& block);
void execute_shfl_xor(Warp& warp, Block& block);
void execute_sync_warp(Warp& warp, Block& block);

}  // namespace rnk::sim
