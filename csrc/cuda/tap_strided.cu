#include "tap_launch.cuh"

namespace rnk::cuda {

const char* launch_strided(const TapConv& conv, Element element, const Gpu& gpu, Stream stream) {
  return launch_taps<Strided>(conv, element, gpu, stream);
}

}  // namespace rnk::cuda
