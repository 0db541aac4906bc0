#include "core/device.cuh"
#include "core/words.h"

namespace brasa::cuda {
namespace {

struct Words {
  uint64_t word[kMostWords];
};

__global__ void __launch_bounds__(kMostWords)
    store_kernel(__grid_constant__ const Words words, int count, uint64_t* to) {
  const int i = int(threadIdx.x);
  if (i < count) to[i] = words.word[i];
}

}  // namespace

void store_words(Context ctx, const uint64_t* words, int count, uint64_t* to) {
  if (count == 0) return;
  Words copy{};
  for (int i = 0; i < count; ++i) copy.word[i] = words[i];
  simt::launch({.grid = dim3(1),
                .block = dim3(unsigned(simt::ceil_div(count, 32) * 32)),
                .stream = static_cast<simt::stream_t>(ctx.stream)},
               store_kernel, copy, count, to);
}

}  // namespace brasa::cuda
