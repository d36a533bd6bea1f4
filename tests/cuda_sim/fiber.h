// Fibers: a CUDA thread each. On x86-64 a switch saves three registers and the compiler saves what
// else is in use at that place; elsewhere it is ucontext's.
#pragma once

#include <cstddef>
#include <cstdint>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#define RNK_SIM_INLINE inline __attribute__((always_inline))

namespace rnk::sim {

#if defined(__x86_64__)

struct Fiber {
  void* stack = nullptr;
  void* frame = nullptr;
  void* resume = nullptr;

  // Lets `entry`, which must not return, run on the stack that ends at `top` once switched to.
  void start(char* bottom, char* top, void (*entry)()) {
    (void)bottom;
    // A function is entered with the stack pointer 8 bytes off a multiple of 16.
    stack = reinterpret_cast<char*>(reinterpret_cast<uintptr_t>(top) / 16 * 16) - 8;
    *static_cast<void**>(stack) = nullptr;
    frame = nullptr;
    resume = reinterpret_cast<void*>(entry);
  }
};

// Inline, so that the jump of each instruction of a kernel is predicted by itself.
RNK_SIM_INLINE void switch_fiber(Fiber* from, Fiber* to) {
  asm volatile(
      "leaq 1f(%%rip), %%rax\n\t"
      "movq %%rsp, 0(%0)\n\t"
      "movq %%rbp, 8(%0)\n\t"
      "movq %%rax, 16(%0)\n\t"
      "movq 0(%1), %%rsp\n\t"
      "movq 8(%1), %%rbp\n\t"
      "jmpq *16(%1)\n"
      "1:"
      : "+D"(from), "+S"(to)
      :
      : "rax", "rbx", "rcx", "rdx", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "xmm0",
        "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11",
        "xmm12", "xmm13", "xmm14", "xmm15",
#if defined(__AVX512F__)
        "xmm16", "xmm17", "xmm18", "xmm19", "xmm20", "xmm21", "xmm22", "xmm23", "xmm24", "xmm25",
        "xmm26", "xmm27", "xmm28", "xmm29", "xmm30", "xmm31", "k1", "k2", "k3", "k4", "k5", "k6",
        "k7",
#endif
        "cc", "memory");
}

#else

struct Fiber {
  ucontext_t context;

  void start(char* bottom, char* top, void (*entry)()) {
    getcontext(&context);
    context.uc_stack.ss_sp = bottom;
    context.uc_stack.ss_size = static_cast<size_t>(top - bottom);
    context.uc_link = nullptr;
    makecontext(&context, entry, 0);
  }
};

inline void switch_fiber(Fiber* from, Fiber* to) { swapcontext(&from->context, &to->context); }

#endif

}  // namespace rnk::sim
