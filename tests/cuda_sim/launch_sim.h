// The simulator's side of csrc/cuda/launch.cuh.
#pragma once

#include <tuple>

#include "machine.h"

namespace rnk::cuda {

template <typename... Parameters>
const char* launch(void (*kernel)(Parameters...), int blocks, int threads, int shared_bytes,
                   const Gpu&, Stream, const Parameters&... parameters) {
  static_assert((sizeof(Parameters) + ... + 0) <= 4096, "more than a kernel can be given");
  struct Call {
    void (*kernel)(Parameters...);
    std::tuple<const Parameters&...> parameters;
  };
  const Call call{kernel, {parameters...}};
  const auto body = [](const void* p) {
    const Call& c = *static_cast<const Call*>(p);
    std::apply(c.kernel, c.parameters);
  };
  return sim::run({blocks, threads, shared_bytes, body, &call});
}

}  // namespace rnk::cuda
