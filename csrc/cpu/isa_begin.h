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
