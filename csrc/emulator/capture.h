// Stream capture: work on a stream that captures is kept, not done, and done by every replay.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <utility>

namespace brasa::simt::emulator {

using Work = std::function<void()>;

bool is_capturing(const void* stream);
void keep(const void* stream, Work work);

/// Does `work`, or keeps a copy of it, with all its arguments, where the stream captures.
template <class F> void enqueue(const void* stream, F&& work) {
  if (is_capturing(stream))
    keep(stream, Work(std::forward<F>(work)));
  else
    work();
}

// ---- for the tests' array library; a mistake is a std::invalid_argument

void begin_capture(const void* stream);
/// How much work the stream's capture holds so far.
size_t captured(const void* stream);
/// Ends the capture; returns the number that replay() and forget() know its work by.
int64_t end_capture(const void* stream);
/// Does what was captured from the `first` piece of work to before the `last`.
void replay(int64_t graph, size_t first, size_t last);
void forget(int64_t graph);

/// Throws what CUDA calls an operation that is not permitted while a stream is capturing.
void refuse_while_capturing(const void* stream, const char* operation);

}  // namespace brasa::simt::emulator
