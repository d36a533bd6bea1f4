// Vectors of 8 floats: AVX2 with FMA.
#pragma once

constexpr int kLanes = 8;
constexpr int kMaxColumns = 7;  // 16 registers
constexpr int kBlockVectors = 1;
constexpr int kTiles = 12;      // of Winograd's way, with one channel vector
constexpr int kTilesOfTwo = 6;  // with two

using Vec = __m256;

inline Vec zero() { return _mm256_setzero_ps(); }
inline Vec load(const float* p) { return _mm256_loadu_ps(p); }
inline Vec broadcast(const float* p) { return _mm256_broadcast_ss(p); }
inline Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
inline Vec sub(Vec a, Vec b) { return _mm256_sub_ps(a, b); }
inline Vec mul(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
inline Vec relu(Vec a) { return _mm256_max_ps(_mm256_setzero_ps(), a); }
inline Vec bit_or(Vec a, Vec b) { return _mm256_or_ps(a, b); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
inline void store(float* p, Vec v) { _mm256_storeu_ps(p, v); }

inline __m256i first(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline Vec load_elements(const float* p, int n) {
  return n == kLanes ? _mm256_loadu_ps(p) : _mm256_maskload_ps(p, first(n));
}
inline void store_elements(float* p, Vec v, int n) {
  if (n == kLanes) {
    _mm256_storeu_ps(p, v);
  } else {
    _mm256_maskstore_ps(p, first(n), v);
  }
}
inline Vec load_elements(const uint16_t* p, int n) {
  alignas(16) uint16_t partial[kLanes] = {};
  const uint16_t* from = p;
  if (n != kLanes) {
    for (int i = 0; i < n; ++i) partial[i] = p[i];
    from = partial;
  }
  const __m128i v = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(v), 16));
}
// An aligned half of a cache line past the caches; the other half has to follow at once.
constexpr bool kStreams = true;
inline void stream(float* p, Vec v) { _mm256_stream_ps(p, v); }
// Makes streamed lines visible to other threads before what follows.
inline void stream_fence() { _mm_sfence(); }

// What `load_elements` made of elements, as these were.
inline void store_loaded(float* p, Vec v, int n) { store_elements(p, v, n); }
inline void store_loaded(uint16_t* p, Vec v, int n) {
  const __m256i high = _mm256_srli_epi32(_mm256_castps_si256(v), 16);
  const __m128i packed =
      _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
  if (n == kLanes) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), packed);
  } else {
    alignas(16) uint16_t partial[kLanes];
    _mm_store_si128(reinterpret_cast<__m128i*>(partial), packed);
    for (int i = 0; i < n; ++i) p[i] = partial[i];
  }
}

// Round to nearest even; NaN stays NaN.
inline void store_elements(uint16_t* p, Vec v, int n) {
  const __m256i bits = _mm256_castps_si256(v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const Vec nan = _mm256_cmp_ps(v, v, _CMP_UNORD_Q);
  const Vec safe = _mm256_blendv_ps(_mm256_castsi256_ps(rounded),
                                    _mm256_castsi256_ps(_mm256_set1_epi32(0x7fc00000)), nan);
  store_loaded(p, safe, n);
}

// Lane i takes channel STEP of its own group of WIDTH lanes.
template <int WIDTH, int STEP>
inline Vec spread(Vec v) {
  if constexpr (WIDTH == 4) {
    return _mm256_permute_ps(v, STEP * 0x55);
  } else if constexpr (WIDTH == 2) {
    return _mm256_permute_ps(v, STEP ? 0xF5 : 0xA0);
  } else {
    return v;
  }
}

// rows[i][k] -> rows[k][i], in blocks of 2, 4 and 8.
[[gnu::always_inline]] inline void transpose(Vec (&rows)[kLanes]) {
  Vec pairs[kLanes], fours[kLanes];
  for (int i = 0; i < kLanes; i += 2) {
    pairs[i] = _mm256_unpacklo_ps(rows[i], rows[i + 1]);
    pairs[i + 1] = _mm256_unpackhi_ps(rows[i], rows[i + 1]);
  }
  for (int i = 0; i < kLanes; i += 4)
    for (int k = 0; k < 2; ++k) {
      fours[i + 2 * k] = _mm256_shuffle_ps(pairs[i + k], pairs[i + k + 2], 0x44);
      fours[i + 2 * k + 1] = _mm256_shuffle_ps(pairs[i + k], pairs[i + k + 2], 0xEE);
    }
  for (int i = 0; i < kLanes / 2; ++i) {
    rows[i] = _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x20);
    rows[i + 4] = _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x31);
  }
}
