// The two 16-bit formats: conversion from and to float32, rounding to nearest even.
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

}  // namespace rnk::sim
