// Vectors of 16 floats: AVX-512, optionally with the bfloat16 dot product.
#pragma once

constexpr int kLanes = 16;
constexpr int kMaxColumns = 14;   // accumulators of one channel vector: 14 of 32 registers
constexpr int kBlockVectors = 2;  // channel vectors of the broadcast kernel: 28 accumulators
constexpr int kTiles = 14;        // of Winograd's way, with one channel vector
constexpr int kTilesOfTwo = 8;    // with two: points then overlap better than with all registers

using Vec = __m512;

inline Vec zero() { return _mm512_setzero_ps(); }
inline Vec load(const float* p) { return _mm512_loadu_ps(p); }
inline Vec broadcast(const float* p) { return _mm512_set1_ps(*p); }
inline Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
inline Vec sub(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
inline Vec mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
inline Vec relu(Vec a) { return _mm512_max_ps(_mm512_setzero_ps(), a); }
inline Vec bit_or(Vec a, Vec b) { return _mm512_or_ps(a, b); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
inline void store(float* p, Vec v) { _mm512_storeu_ps(p, v); }

inline __mmask16 first(int n) { return static_cast<__mmask16>((1u << n) - 1); }

inline Vec load_elements(const float* p, int n) {
  return n == kLanes ? _mm512_loadu_ps(p) : _mm512_maskz_loadu_ps(first(n), p);
}
inline void store_elements(float* p, Vec v, int n) {
  if (n == kLanes) {
    _mm512_storeu_ps(p, v);
  } else {
    _mm512_mask_storeu_ps(p, first(n), v);
  }
}
// An aligned cache line past the caches.
constexpr bool kStreams = true;
inline void stream(float* p, Vec v) { _mm512_stream_ps(p, v); }
// Makes streamed lines visible to other threads before what follows.
inline void stream_fence() { _mm_sfence(); }

inline __m256i load_bf16(const uint16_t* p, int n) {
  return n == kLanes ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))
                     : _mm256_maskz_loadu_epi16(first(n), p);
}
inline Vec load_elements(const uint16_t* p, int n) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(load_bf16(p, n)), 16));
}
// Round to nearest even; NaN stays NaN.
inline __m256i to_bf16(Vec v) {
#if RNK_BF16_DOT
  return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(v));
#else
  const __m512i bits = _mm512_castps_si512(v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
  const __m512i safe = _mm512_mask_mov_epi32(rounded, nan, _mm512_set1_epi32(0x7fc00000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(safe, 16));
#endif
}
inline void store_elements(uint16_t* p, Vec v, int n) {
  if (n == kLanes) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), to_bf16(v));
  } else {
    _mm256_mask_storeu_epi16(p, first(n), to_bf16(v));
  }
}
// What `load_elements` made of elements, as these were.
inline void store_loaded(float* p, Vec v, int n) { store_elements(p, v, n); }
inline void store_loaded(uint16_t* p, Vec v, int n) {
  const __m512i high = _mm512_srli_epi32(_mm512_castps_si512(v), 16);
  if (n == kLanes) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(high));
  } else {
    _mm512_mask_cvtepi32_storeu_epi16(p, first(n), high);
  }
}

// Lane i takes channel STEP of its own group of WIDTH lanes.
template <int WIDTH, int STEP>
inline Vec spread(Vec v) {
  if constexpr (WIDTH == 8) {
    const __m512i first = _mm512_set1_epi32(STEP);
    const __m512i index = _mm512_mask_set1_epi32(first, 0xFF00, 8 + STEP);
    return _mm512_permutexvar_ps(index, v);
  } else if constexpr (WIDTH == 4) {
    return _mm512_permute_ps(v, STEP * 0x55);
  } else if constexpr (WIDTH == 2) {
    return _mm512_permute_ps(v, STEP ? 0xF5 : 0xA0);
  } else {
    return v;
  }
}

// Channels 4 * HALF to 4 * HALF + 3 of each group of 8, twice, so that spread<4> finds them.
template <int HALF>
inline Vec half_groups(const float* p) {
  return _mm512_castpd_ps(_mm512_permutex_pd(_mm512_castps_pd(load(p)), HALF ? 0xEE : 0x44));
}

// rows[i][k] -> rows[k][i]
inline void transpose(Vec (&rows)[kLanes]) {
  Vec a[kLanes], b[kLanes];
  for (int i = 0; i < kLanes; i += 2) {  // 2x2 blocks inside quads
    a[i] = _mm512_unpacklo_ps(rows[i], rows[i + 1]);
    a[i + 1] = _mm512_unpackhi_ps(rows[i], rows[i + 1]);
  }
  for (int i = 0; i < kLanes; i += 4) {  // quads: b[i + k] holds column 4q + k of rows i..i+3
    for (int half = 0; half < 2; ++half) {
      const __m512d lo = _mm512_castps_pd(a[i + half]), hi = _mm512_castps_pd(a[i + 2 + half]);
      b[i + 2 * half] = _mm512_castpd_ps(_mm512_unpacklo_pd(lo, hi));
      b[i + 2 * half + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(lo, hi));
    }
  }
  for (int k = 0; k < 4; ++k) {  // a 4x4 transpose of quads
    const Vec p = _mm512_shuffle_f32x4(b[k], b[4 + k], 0x88);
    const Vec q = _mm512_shuffle_f32x4(b[8 + k], b[12 + k], 0x88);
    const Vec r = _mm512_shuffle_f32x4(b[k], b[4 + k], 0xDD);
    const Vec s = _mm512_shuffle_f32x4(b[8 + k], b[12 + k], 0xDD);
    rows[k] = _mm512_shuffle_f32x4(p, q, 0x88);
    rows[8 + k] = _mm512_shuffle_f32x4(p, q, 0xDD);
    rows[4 + k] = _mm512_shuffle_f32x4(r, s, 0x88);
    rows[12 + k] = _mm512_shuffle_f32x4(r, s, 0xDD);
  }
}

#if RNK_BF16_DOT
// The words of two source channels, each given as bf16 values widened to floats.
inline Vec pair_words(Vec even, Vec odd) {
  const __m512i low = _mm512_srli_epi32(_mm512_castps_si512(even), 16);
  return _mm512_castsi512_ps(_mm512_or_si512(low, _mm512_castps_si512(odd)));
}
inline Vec dot_bf16(Vec acc, Vec a, Vec b) {
  return _mm512_dpbf16_ps(acc, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
}
// Turns [channel][tap] of bf16, 3x3 taps each, into 16 words [pair of channels][tap] from tap `tap`
// of the first pair on. Of the elements only the first `left` are read.
constexpr int kPairTaps = 9;
class PairGather {
 public:
  PairGather(int64_t tap, int64_t left)
      : order_(_mm512_loadu_si512(kOrder[tap].data())), low_(mask(left)), high_(mask(left - 32)) {}

  Vec operator()(const uint16_t* from) const {
    const __m512i low = _mm512_maskz_loadu_epi16(low_, from);
    const __m512i high = _mm512_maskz_loadu_epi16(high_, from + 32);
    return _mm512_castsi512_ps(_mm512_permutex2var_epi16(low, order_, high));
  }

 private:
  static __mmask32 mask(int64_t n) {
    return static_cast<__mmask32>((uint64_t{1} << std::clamp<int64_t>(n, 0, 32)) - 1);
  }

  static constexpr auto kOrder = [] {
    std::array<std::array<uint16_t, 2 * kLanes>, kPairTaps> order{};
    for (int tap = 0; tap < kPairTaps; ++tap)
      for (int i = 0; i < 2 * kLanes; ++i) {
        const int word = tap + i / 2, channel = word / kPairTaps * 2 + i % 2;
        order[tap][i] = static_cast<uint16_t>(channel * kPairTaps + word % kPairTaps);
      }
    return order;
  }();
  __m512i order_;
  __mmask32 low_, high_;
};
// 16 bf16 channels as pairs (32-bit words), such that each quarter of four outputs finds the words
// of its own group: width 8 as (w0 w1 w2 w3), narrower ones as (w0 w0 w1 w1).
template <int WIDTH>
inline Vec unfold_pairs(__m256i v) {
  if constexpr (WIDTH == 8) {
    const __m512i wide = _mm512_castsi256_si512(v);
    return _mm512_castsi512_ps(
        _mm512_permutexvar_epi64(_mm512_set_epi64(3, 2, 3, 2, 1, 0, 1, 0), wide));
  } else {
    const __m512i wide = _mm512_cvtepu32_epi64(v);
    return _mm512_castsi512_ps(_mm512_shuffle_epi32(wide, static_cast<_MM_PERM_ENUM>(0xA0)));
  }
}
// Lane i takes pair STEP of its own group of WIDTH channels from unfolded pairs.
template <int WIDTH, int STEP>
inline Vec spread_pairs(Vec v) {
  if constexpr (WIDTH == 8) {
    return _mm512_permute_ps(v, STEP * 0x55);
  } else if constexpr (WIDTH == 4) {
    return _mm512_permute_ps(v, STEP ? 0xAA : 0x00);
  } else {
    return v;
  }
}
#endif
