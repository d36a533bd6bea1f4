#include "faults.h"

#include <cstdio>
#include <cstdlib>
#include <mutex>

#include "machine.h"

namespace rnk::sim {

namespace {

constexpr size_t kStackBytes = 256 * 1024;  // also of the text that describes the fault

std::mutex mutex;
int users = 0;
struct sigaction before;

void on_fault(int, siginfo_t* info, void*) {
  if (!current) {  // not a kernel's: let it happen again as if nobody had asked
    sigaction(SIGSEGV, &before, nullptr);
    return;
  }
  char address[32];
  std::snprintf(address, sizeof address, "%p", info->si_addr);
  fail({"fault", {}}, std::string("touches address ") + address +
                          global_memory().describe(info->si_addr) + ", and not through ptx.cuh");
}

}  // namespace

FaultsCaught::FaultsCaught() {
  stack_ = std::malloc(kStackBytes);
  stack_t stack = {};
  stack.ss_sp = stack_;
  stack.ss_size = kStackBytes;
  sigaltstack(&stack, &before_);
  const std::lock_guard lock(mutex);
  if (users++) return;
  struct sigaction action = {};
  action.sa_sigaction = on_fault;
  // The handler leaves by a switch of fibers, so the signal must not stay blocked.
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
  sigaction(SIGSEGV, &action, &before);
}

FaultsCaught::~FaultsCaught() {
  {
    const std::lock_guard lock(mutex);
    if (!--users) sigaction(SIGSEGV, &before, nullptr);
  }
  sigaltstack(&before_, nullptr);
  std::free(stack_);
}

}  // namespace rnk::sim
