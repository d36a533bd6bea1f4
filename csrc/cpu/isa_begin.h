// Standard headers that the kernels use: included before any target is switched on, so that no
// shared inline function of theirs is compiled with instructions the processor may lack.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <type_traits>
#include <utility>

#include "bf16.h"
#include "kernels.h"
#if defined(__x86_64__)
#include <immintrin.h>
#endif

// Between these, functions are compiled for the features that `features` names; by GCC to the end
// of the file, where it instantiates templates.
#define RNK_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define RNK_TARGET_BEGIN(features) \
  RNK_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define RNK_TARGET_END RNK_PRAGMA(clang attribute pop)
#else
#define RNK_TARGET_BEGIN(features) RNK_PRAGMA(GCC target(features))
#define RNK_TARGET_END
#endif
