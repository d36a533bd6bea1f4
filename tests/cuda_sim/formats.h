// The two 16-bit formats: conversion from and to float32, rounding to nearest even. TF32: the
// operands that matrix instructions take of a float32, and rounding to those, halves away from
// zero.
#pragma once

#include <bit>
#include <cstdint>

namespace rnk::sim {

struct Bfloat16 {
  static float to_float(uint16_t v) { return std::bit_cast<float>(static_cast<uint32_t>(v) << 16); }
  static uint16_t from_float(float f) {
    if (f != f) return 0x7fff;
    const uint32_t v = std::bit_cast<uint32_t>(f);
    return static_cast<uint16_t>((v + 0x7fff + (v >> 16 & 1)) >> 16);
  }
};

struct Float16 {
  static float to_float(uint16_t v) { return static_cast<float>(std::bit_cast<_Float16>(v)); }
  static uint16_t from_float(float f) {
    if (f != f) return 0x7fff;
    return std::bit_cast<uint16_t>(static_cast<_Float16>(f));
  }
};

struct Tfloat32 {
  static constexpr uint32_t kDropped = 0x1fff;
  static float truncated(uint32_t v) { return std::bit_cast<float>(v & ~kDropped); }
  static uint32_t rounded(uint32_t v) {
    const float f = std::bit_cast<float>(v);
    return f != f ? 0x7fffffff : (v + 0x1000) & ~kDropped;
  }
};

}  // namespace rnk::sim
