#include "tap_launch.cuh"

namespace rnk::cuda {

const char* launch_phased(const TapConv& conv, Element element, const Gpu& gpu, Stream stream) {
  return launch_taps<Phased>(conv, element, gpu, stream);
}

}  // namespace rnk::cuda
