// What the lanes of a warp ask of memory by the n-th execution of an instruction is one request.
//
// In device memory a request moves the sectors of 32 bytes that it touches. In shared memory it
// takes as many wavefronts as the busiest of 32 banks has different words of four bytes to serve;
// accesses of 8 and 16 bytes are made by 16 and 8 lanes at a time.
//
// Lanes run one after the other here, so a block's requests are put together when it has ended.
// Lanes whose loops differ in length are matched by the count of executions, which a GPU, where the
// ones that left a loop wait, does as well.
#include "emulator/lint.h"

#include <algorithm>
#include <map>
#include <tuple>
#include <unordered_map>

#include "emulator/scheduler.h"

namespace brasa::simt::emulator {
namespace {

constexpr int kLanes = 32, kBanks = 32;
constexpr uint64_t kSector = 32, kWord = 4;
constexpr uint64_t kWavefrontBytes = 128;

struct Request {
  uint64_t address[kLanes];
  uint32_t lanes = 0;
};

struct Instruction {
  size_t bytes;
  bool shared, write;
  std::vector<uint32_t> times;                 // by thread
  std::vector<std::vector<Request>> requests;  // by warp, in order
};

std::map<std::tuple<const void*, const void*, bool>, AccessLine> lines;

/// How many different units of `unit` bytes the chosen lanes touch.
uint64_t units(const Request& request, uint64_t bytes, uint64_t unit) {
  std::vector<uint64_t> touched;
  for (int lane = 0; lane < kLanes; ++lane) {
    if ((request.lanes >> lane & 1) == 0) continue;
    const uint64_t first = request.address[lane] / unit;
    const uint64_t last = (request.address[lane] + bytes - 1) / unit;
    for (uint64_t u = first; u <= last; ++u) touched.push_back(u);
  }
  std::sort(touched.begin(), touched.end());
  return static_cast<uint64_t>(std::unique(touched.begin(), touched.end()) - touched.begin());
}

/// Wavefronts of the lanes from `begin` to before `end`; 0 where none takes part.
uint64_t wavefronts(const Request& request, uint64_t bytes, int begin, int end) {
  std::vector<uint64_t> of_bank[kBanks];
  for (int lane = begin; lane < end; ++lane) {
    if ((request.lanes >> lane & 1) == 0) continue;
    const uint64_t first = request.address[lane] / kWord;
    const uint64_t last = (request.address[lane] + bytes - 1) / kWord;
    for (uint64_t word = first; word <= last; ++word) {
      std::vector<uint64_t>& words = of_bank[word % kBanks];
      if (std::find(words.begin(), words.end(), word) == words.end()) words.push_back(word);
    }
  }
  size_t most = 0;
  for (const auto& words : of_bank) most = std::max(most, words.size());
  return most;
}

void add(AccessLine& line, const Instruction& instruction, const Request& request) {
  ++line.requests;
  if (!instruction.shared) {
    line.moved += units(request, instruction.bytes, kSector);
    line.ideal += (units(request, instruction.bytes, 1) + kSector - 1) / kSector;
    return;
  }
  const uint64_t bytes = std::min<uint64_t>(std::max<uint64_t>(instruction.bytes, kWord), 16);
  const int step = static_cast<int>(kWavefrontBytes / bytes);
  for (int begin = 0; begin < kLanes; begin += step) {
    const uint64_t needed = wavefronts(request, instruction.bytes, begin, begin + step);
    line.moved += needed;
    line.ideal += needed != 0;
  }
}

}  // namespace

struct BlockRequests {
  std::unordered_map<const void*, Instruction> by_pc;
};

void DeleteRequests::operator()(BlockRequests* requests) const {
  delete requests;
}

void count_access(Fiber& me, const void* pointer, size_t bytes, bool shared, unsigned kind,
                  const void* pc) {
  Block& block = *me.block;
  if (!block.requests) block.requests.reset(new BlockRequests);
  Instruction& instruction = block.requests->by_pc[pc];
  if (instruction.times.empty()) {
    instruction.times.resize(block.threads.size());
    instruction.requests.resize(block.live_lanes.size());
    instruction.bytes = bytes, instruction.shared = shared;
    instruction.write = (kind & (kWrite | kAtomic)) != 0;
  }
  const uint32_t time = instruction.times[me.index]++;
  std::vector<Request>& requests = instruction.requests[me.warp];
  if (requests.size() <= time) requests.resize(time + 1);
  requests[time].lanes |= 1u << me.lane;
  requests[time].address[me.lane] = reinterpret_cast<uint64_t>(pointer);
}

void settle_requests(Block& block, const void* kernel) {
  if (!block.requests) return;
  for (const auto& [pc, instruction] : block.requests->by_pc) {
    AccessLine& line = lines[{kernel, pc, instruction.shared}];
    line.kernel = kernel, line.pc = pc;
    line.shared = instruction.shared, line.write = instruction.write;
    for (const auto& of_warp : instruction.requests) {
      for (const Request& request : of_warp) add(line, instruction, request);
    }
  }
  block.requests.reset();
}

std::vector<AccessLine> take_access_lines() {
  std::vector<AccessLine> result;
  for (const auto& [key, line] : lines) result.push_back(line);
  lines.clear();
  return result;
}

}  // namespace brasa::simt::emulator
