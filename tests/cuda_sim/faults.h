// Turns a fault of a kernel, as of an access that goes round the simulator, into an error of the
// launch.
#pragma once

#include <signal.h>

namespace rnk::sim {

// On this OS thread, as long as it exists.
class FaultsCaught {
 public:
  FaultsCaught();
  ~FaultsCaught();
  FaultsCaught(const FaultsCaught&) = delete;

 private:
  stack_t before_ = {};
  void* stack_ = nullptr;
};

}  // namespace rnk::sim
