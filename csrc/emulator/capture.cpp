// Captured work is a list of closures that own copies of a launch's arguments, as a graph's kernel
// nodes do: what a kernel reads through a pointer is read at the replay, what it was passed by
// value stays as it was.
#include "emulator/capture.h"

#include <map>
#include <string>
#include <vector>

#include "emulator/memory.h"
#include "emulator/runtime.h"

namespace brasa::simt::emulator {
namespace {

using Graph = std::vector<Work>;

std::map<const void*, Graph> capturing;  // by stream
std::map<int64_t, Graph> graphs;
int64_t next_graph = 1;

Graph& capture_on(const void* stream) {
  const auto found = capturing.find(stream);
  if (found == capturing.end())
    throw std::invalid_argument("emulator: the stream is not capturing");
  return found->second;
}

}  // namespace

bool is_capturing(const void* stream) {
  const RuntimeLock lock;
  return capturing.count(stream) != 0;
}

void keep(const void* stream, Work work) {
  const RuntimeLock lock;
  capture_on(stream).push_back(std::move(work));
}

void begin_capture(const void* stream) {
  const RuntimeLock lock;
  if (stream == nullptr) throw std::invalid_argument("emulator: the default stream cannot capture");
  if (!capturing.emplace(stream, Graph()).second)
    throw std::invalid_argument("emulator: the stream is capturing already");
}

size_t captured(const void* stream) {
  const RuntimeLock lock;
  return capture_on(stream).size();
}

int64_t end_capture(const void* stream) {
  const RuntimeLock lock;
  graphs[next_graph] = std::move(capture_on(stream));
  capturing.erase(stream);
  return next_graph++;
}

void replay(int64_t graph, size_t first, size_t last) {
  const RuntimeLock lock;
  const auto found = graphs.find(graph);
  if (found == graphs.end() || first > last || last > found->second.size())
    throw std::invalid_argument("emulator: no such part of a graph");
  for (size_t i = first; i < last; ++i) found->second[i]();
}

void forget(int64_t graph) {
  const RuntimeLock lock;
  graphs.erase(graph);
}

void refuse_while_capturing(const void* stream, const char* operation) {
  if (is_capturing(stream))
    throw Error(std::string("CUDA: ") + operation +
                ": operation not permitted when stream is capturing");
}

}  // namespace brasa::simt::emulator
