// The handler runs on a stack of its own, because a fiber's is small, and leaves it by switching to
// the launching context. Signals are not blocked meanwhile (SA_NODEFER), so nothing has to be
// restored.
#include "emulator/faults.h"

#include <ucontext.h>

#include <cstddef>

#include "emulator/memory.h"
#include "emulator/scheduler.h"

namespace brasa::simt::emulator {
namespace {

constexpr int kSignals[] = {SIGSEGV, SIGBUS, SIGFPE};
constexpr int kSignalCount = 3;
constexpr size_t kHandlerStackBytes = 128 * 1024;

// One launch at a time: the runtime's lock is held wherever these are used.
struct sigaction previous_action[kSignalCount];
alignas(64) std::byte handler_stack[kHandlerStackBytes];

void restore_actions() {
  for (int i = 0; i < kSignalCount; ++i) sigaction(kSignals[i], &previous_action[i], nullptr);
}

std::string describe_fault(int signal, const std::byte* address) {
  constexpr std::ptrdiff_t kBelowStack = 64 * 1024;
  if (signal == SIGFPE) return "integer division by zero";
  const std::byte* stack = running_fiber().stack.base;
  const bool below_stack = address < stack && stack - address < kBelowStack;
  if (below_stack && find_buffer(address) == nullptr) return kStackOverflow;
  return "illegal memory access: " + describe_address(address);
}

void on_fault(int signal, siginfo_t* info, void* context) {
  if (current_thread == nullptr) {  // not a kernel's: returning repeats it under the old handler
    restore_actions();
    return;
  }
  const auto pc = static_cast<ucontext_t*>(context)->uc_mcontext.gregs[REG_RIP];
  std::string what = describe_fault(signal, static_cast<const std::byte*>(info->si_addr));
  what += "\n  in " + describe(*current_thread);
  // locate() looks one byte before a return address; here it is the instruction itself.
  Scheduler::instance().abandon(
      {.message = std::move(what), .places = {{"at", reinterpret_cast<const void*>(pc + 1)}}});
}

}  // namespace

FaultGuard::FaultGuard() {
  stack_t stack{};
  stack.ss_sp = handler_stack;
  stack.ss_size = kHandlerStackBytes;
  sigaltstack(&stack, &previous_stack_);
  struct sigaction action{};
  action.sa_sigaction = &on_fault;
  action.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK;
  for (int i = 0; i < kSignalCount; ++i) sigaction(kSignals[i], &action, &previous_action[i]);
}

FaultGuard::~FaultGuard() {
  restore_actions();
  sigaltstack(&previous_stack_, nullptr);
}

}  // namespace brasa::simt::emulator
