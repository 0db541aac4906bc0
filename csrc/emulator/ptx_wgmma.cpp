// Products of a warpgroup. Each warp makes its 16 rows of them, when they are started or when they
// are waited for (option "async"); the wait is one of all four warps.
#include "emulator/ptx_wgmma.h"

#include <bit>
#include <cstring>

#include "core/half.h"
#include "emulator/proxy.h"
#include "emulator/scheduler.h"
#include "emulator/tensor_sum.h"

namespace brasa::simt::emulator {
namespace {

constexpr uint32_t kAllLanes = 0xffffffffu;
constexpr int kDepthBytes = 32, kLineBytes = 128, kPieceBytes = 16, kRows = 16;

struct Argument {
  WgmmaType type;
  int n;
  bool a_along, b_along;
  float* d;
  uint64_t a, b;
  bool accumulate;
  const uint32_t* a_registers;  // null where `a` tells of shared memory
  const void* pc;               // behind the instruction
};

int item_bytes(WgmmaType type) {
  return type == WgmmaType::tf32 ? 4 : 2;
}

float read(WgmmaType type, const std::byte* at) {
  if (type == WgmmaType::tf32) {
    uint32_t bits;
    std::memcpy(&bits, at, sizeof bits);
    return std::bit_cast<float>(bits & ~0x1fffu);
  }
  uint16_t bits;
  std::memcpy(&bits, at, sizeof bits);
  return type == WgmmaType::f16 ? host::widen(float16{bits}) : host::widen(bfloat16{bits});
}

/// Where element (i, k) of the operand that `descriptor` tells of begins, i along its rows
/// (columns).
int place(uint64_t descriptor, bool along, WgmmaType type, int i, int k) {
  const auto field = [&](int bit) { return static_cast<int>(descriptor >> bit & 0x3fff) << 4; };
  const int item = item_bytes(type), per_line = kLineBytes / item;
  const int eight_lines = field(32), panel = field(16);
  const int line = along ? i : k;
  int byte = field(0) + line / 8 * eight_lines + line % 8 * kLineBytes;
  byte += along ? k * item : i / per_line * panel + i % per_line * item;
  return byte ^ (byte >> 3 & 0x70);
}

float element(const Block& block, uint64_t descriptor, bool along, WgmmaType type, int i, int k) {
  return read(type, block.arena + place(descriptor, along, type, i, k));
}

/// Whether what was written of the operands is for the tensor cores to see; they read it until
/// somebody waits for the warp's open group.
void check_operands(Fiber& me, const Argument& p) {
  if (!Scheduler::instance().options.race) return;
  Block& block = *me.block;
  const int item = item_bytes(p.type), depth = kDepthBytes / item, piece = kPieceBytes / item;
  const auto check = [&](uint64_t descriptor, bool along, int first, int count) {
    const int i_step = along ? 1 : piece, k_step = along ? piece : 1;
    for (int i = first; i < first + count; i += i_step) {
      for (int k = 0; k < depth; k += k_step) {
        const auto byte = static_cast<size_t>(place(descriptor, along, p.type, i, k));
        require_fenced(block, byte, kPieceBytes, "wgmma");
        check_for(block, byte, kPieceBytes, kRead, block.clocks->warpgroup(me),
                  block.wgmma_commits[me.warp] + 1, p.pc);
      }
    }
  };
  if (p.a_registers == nullptr) check(p.a, p.a_along, static_cast<int>(me.warp) % 4 * kRows, kRows);
  check(p.b, p.b_along, 0, p.n);
}

/// Element (i, k) of the warp's 16 rows, from the registers of the lane that has it.
float element(const WgmmaProduct& p, WgmmaType type, int i, int k) {
  const int per_lane = 4 / item_bytes(type);  // neighbours in a register
  const int of_half = k % (4 * per_lane);
  const int lane = i % 8 * 4 + of_half / per_lane, which = i / 8 + 2 * (k / (4 * per_lane));
  const auto* bytes = reinterpret_cast<const std::byte*>(&p.a[lane][which]);
  return read(type, bytes + of_half % per_lane * item_bytes(type));
}

void multiply(const Block& block, int warp, const WgmmaProduct& p) {
  const Argument& first = *static_cast<const Argument*>(static_cast<const void*>(&p.argument));
  const int depth = kDepthBytes / item_bytes(first.type);
  float a[kRows][16], b[16];
  for (int i = 0; i < kRows; ++i) {
    for (int k = 0; k < depth; ++k)
      a[i][k] = first.a_registers
                    ? element(p, first.type, i, k)
                    : element(block, first.a, first.a_along, first.type, warp % 4 * kRows + i, k);
  }
  for (int j = 0; j < first.n; ++j) {
    for (int k = 0; k < depth; ++k) b[k] = element(block, first.b, first.b_along, first.type, j, k);
    for (int i = 0; i < kRows; ++i) {
      float& d = p.d[i % 8 * 4 + j % 8 / 2][j / 8 * 4 + i / 8 * 2 + j % 2];
      d = tensor_sum(first.accumulate ? d : 0.0f, a[i], b, depth);
    }
  }
}

std::vector<WgmmaGroup>& groups_of_warp() {
  Fiber& me = running_fiber();
  std::vector<WgmmaGroup>& groups = me.block->wgmma_groups[me.warp];
  if (groups.empty()) groups.emplace_back();
  return groups;
}

void run_product(void* const* arguments, uint32_t lanes) {
  if (lanes != kAllLanes) fail("wgmma: all 32 lanes must take part");
  static_assert(sizeof(Argument) <= sizeof(WgmmaProduct::argument));
  WgmmaProduct product;
  std::memcpy(&product.argument, arguments[0], sizeof(Argument));
  for (int lane = 0; lane < 32; ++lane) {
    const auto& mine = *static_cast<const Argument*>(arguments[lane]);
    const auto& first = *static_cast<const Argument*>(arguments[0]);
    if (mine.a != first.a || mine.b != first.b) fail("wgmma: operands differ between lanes");
    product.d[lane] = mine.d;
    product.a[lane] = mine.a_registers;
  }
  Fiber& me = running_fiber();
  if (!me.block->wgmma_fenced[me.warp])
    fail("wgmma without wgmma_fence() since the kernel began or waited for a product");
  check_operands(me, *static_cast<const Argument*>(arguments[0]));
  if (Scheduler::instance().copies_land_at_once() && groups_of_warp().back().empty() &&
      groups_of_warp().size() == 1) {
    multiply(*me.block, static_cast<int>(me.warp), product);  // nothing before it waits
  } else {
    groups_of_warp().back().push_back(product);
  }
}

constexpr WarpFunction kProduct{"wgmma", &run_product, false};

void run_fence(void* const*, uint32_t) {
  const Fiber& me = running_fiber();
  me.block->wgmma_fenced[me.warp] = true;
}

void run_commit(void* const*, uint32_t) {
  const Fiber& me = running_fiber();
  ++me.block->wgmma_commits[me.warp];
  groups_of_warp().emplace_back();
}

constexpr WarpFunction kFence{"wgmma_fence", &run_fence, false};
constexpr WarpFunction kCommit{"wgmma_commit", &run_commit, false};

void run_wait(void* const* arguments, uint32_t) {
  std::vector<WgmmaGroup>& groups = groups_of_warp();
  const auto kept = static_cast<size_t>(*static_cast<const int*>(arguments[0])) + 1;
  Fiber& me = running_fiber();
  while (groups.size() > kept) {
    for (const WgmmaProduct& product : groups.front())
      multiply(*me.block, static_cast<int>(me.warp), product);
    groups.erase(groups.begin());
  }
  me.block->wgmma_fenced[me.warp] = false;
  if (!Scheduler::instance().options.race) return;
  const uint32_t commits = me.block->wgmma_commits[me.warp];
  const auto under_way = static_cast<uint32_t>(kept - 1);
  Clocks& clocks = *me.block->clocks;
  for (unsigned lane = 0; lane < 32 && commits > under_way; ++lane) {
    const Fiber& thread = me.block->threads[me.warp * 32 + lane];
    clocks.learn(thread, clocks.warpgroup(thread), commits - under_way);
  }
}

constexpr WarpFunction kWait{"wgmma_wait", &run_wait, false};

}  // namespace

void wgmma(WgmmaType type, int n, bool a_along, bool b_along, float* d, uint64_t a, uint64_t b,
           bool accumulate, Location where) {
  Argument argument{type, n, a_along,    b_along, d,
                    a,    b, accumulate, nullptr, __builtin_return_address(0)};
  join_warp(kProduct, kAllLanes, &argument, where);
}

void wgmma_from_registers(WgmmaType type, int n, bool b_along, float* d, const uint32_t* a,
                          uint64_t b, bool accumulate, Location where) {
  Argument argument{type, n, true, b_along, d, 0, b, accumulate, a, __builtin_return_address(0)};
  join_warp(kProduct, kAllLanes, &argument, where);
}

void wgmma_fence(Location where) {
  join_warp(kFence, kAllLanes, nullptr, where);
}

void wgmma_commit(Location where) {
  join_warp(kCommit, kAllLanes, nullptr, where);
}

void wgmma_wait(int groups_left, Location where) {
  join_warp(kWait, kAllLanes, &groups_left, where);
  warpgroup_barrier(where);
}

uint32_t shared_offset(const void* pointer) {
  return static_cast<uint32_t>(static_cast<const std::byte*>(pointer) -
                               running_fiber().block->arena);
}

}  // namespace brasa::simt::emulator
