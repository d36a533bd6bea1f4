#include "tap_launch.cuh"

namespace rnk::cuda {

const char* launch_unit(const TapConv& conv, Element element, const Gpu& gpu, Stream stream) {
  return launch_taps<Unit>(conv, element, gpu, stream);
}

}  // namespace rnk::cuda
