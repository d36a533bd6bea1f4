// Vectors of 4 floats in plain GNU C++: any processor.
#pragma once

constexpr int kLanes = 4;
constexpr int kMaxColumns = 7;
constexpr int kBlockVectors = 1;
constexpr int kTiles = 12;
constexpr int kTilesOfTwo = 6;

typedef float Vec __attribute__((vector_size(16)));

inline Vec zero() { return Vec{0, 0, 0, 0}; }
inline Vec load(const float* p) {
  Vec v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
inline Vec broadcast(const float* p) { return Vec{*p, *p, *p, *p}; }
inline Vec add(Vec a, Vec b) { return a + b; }
inline Vec sub(Vec a, Vec b) { return a - b; }
inline Vec mul(Vec a, Vec b) { return a * b; }
inline Vec bit_or(Vec a, Vec b) {
  typedef int32_t Bits __attribute__((vector_size(16)));
  return reinterpret_cast<Vec>(reinterpret_cast<Bits>(a) | reinterpret_cast<Bits>(b));
}
inline Vec relu(Vec a) {
  Vec r;
  for (int i = 0; i < kLanes; ++i) r[i] = a[i] < 0.f ? 0.f : a[i];
  return r;
}
inline Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }
inline void store(float* p, Vec v) { __builtin_memcpy(p, &v, sizeof v); }

inline Vec load_elements(const float* p, int n) {
  Vec v = zero();
  __builtin_memcpy(&v, p, n * sizeof(float));
  return v;
}
inline void store_elements(float* p, Vec v, int n) { __builtin_memcpy(p, &v, n * sizeof(float)); }
inline Vec load_elements(const uint16_t* p, int n) {
  Vec v = zero();
  for (int i = 0; i < n; ++i) v[i] = bf16_to_float(p[i]);
  return v;
}
inline void store_elements(uint16_t* p, Vec v, int n) {
  for (int i = 0; i < n; ++i) p[i] = float_to_bf16(v[i]);
}
// What `load_elements` made of elements, as these were.
inline void store_loaded(float* p, Vec v, int n) { store_elements(p, v, n); }
inline void store_loaded(uint16_t* p, Vec v, int n) {
  uint32_t bits[kLanes];
  __builtin_memcpy(bits, &v, sizeof v);
  for (int i = 0; i < n; ++i) p[i] = static_cast<uint16_t>(bits[i] >> 16);
}

constexpr bool kStreams = false;
inline void stream(float* p, Vec v) { store(p, v); }
inline void stream_fence() {}

// Lane i takes channel STEP of its own group of WIDTH lanes.
template <int WIDTH, int STEP>
inline Vec spread(Vec v) {
  if constexpr (WIDTH == 2) {
    return Vec{v[STEP], v[STEP], v[2 + STEP], v[2 + STEP]};
  } else {
    return v;
  }
}

// rows[i][k] -> rows[k][i]
inline void transpose(Vec (&rows)[kLanes]) {
  float in[kLanes][kLanes], out[kLanes][kLanes];
  for (int i = 0; i < kLanes; ++i) store(in[i], rows[i]);
  for (int i = 0; i < kLanes; ++i)
    for (int k = 0; k < kLanes; ++k) out[k][i] = in[i][k];
  for (int i = 0; i < kLanes; ++i) rows[i] = load(out[i]);
}
