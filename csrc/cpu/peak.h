// The peak rate of multiply-adds, measured: independent chains that never leave the registers.
#pragma once

constexpr int kChains = kLanes == 16 ? 14 : 10;

template <class Math>
inline float peak_rounds(int64_t rounds) {
  Vec acc[kChains];
#pragma GCC unroll 16
  for (int i = 0; i < kChains; ++i) acc[i] = zero();
  const float one = 1.f, small = 1e-6f;
  const Vec a = broadcast(&one), b = broadcast(&small);
  for (int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 16
    for (int i = 0; i < kChains; ++i) {
      acc[i] = Math::madd(acc[i], a, b);
      asm volatile("" : RNK_VECTOR_OPERAND(acc[i]));  // keeps the chain from being folded away
    }
  }
  Vec sum = zero();
#pragma GCC unroll 16
  for (int i = 0; i < kChains; ++i) sum = add(sum, acc[i]);
  float out[kLanes];
  store(out, sum);
  return out[0];
}

// FLOPs of one round of one thread.
template <class Math>
constexpr int64_t round_flops() {
  return int64_t{2} * Math::kPerWord * kLanes * kChains;
}

inline int64_t run_peak(Element element, int64_t rounds, float* sink) {
  if (element == Element::bf16) {
    *sink = peak_rounds<Bf16Math>(rounds);
    return rounds * round_flops<Bf16Math>();
  }
  *sink = peak_rounds<F32>(rounds);
  return rounds * round_flops<F32>();
}
