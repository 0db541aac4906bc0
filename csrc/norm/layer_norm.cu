// Rows are lines of softmax/lines.cuh. What is common, rows of aligned packs of float32 and 16 bits
// that registers hold, has kernels of its own for each group of threads: kept there from their one
// read to their one write. All else (an activation, a width that is not whole packs, arrays that
// are not aligned, long rows, float64) reads its rows again from L1 and L2, in kernels that learn
// the size of the group, and the activation, at run time: unrolled for every case these were 216
// kernels with 3.8 MB of machine code for one target, and are 49 with 0.8. Groups, packs and with
// them the order of all sums are the same in both.
//
// Backward is one pass too. Each thread has the same columns of all rows that its group takes, so
// that it sums their dweight and dbias in places of shared memory of its own: 16 bytes per element
// there, where a second pass over x and dy took 145 us of 580 on an H100 (65536 x 768; the floor is
// 201). kGradientBlocks blocks each leave a row of sums, which a second launch adds up, 16 threads
// per column in a fixed order: one thread per column took 64 us.
//
// Longer rows take the gradient and the sums in two launches: there a thread per column sums
// kRowBlock rows in order.
#include "core/activations.h"
#include "core/device.cuh"
#include "core/epilogue.cuh"
#include "core/order.h"
#include "norm/any_group.cuh"
#include "norm/norm.h"
#include "softmax/lines.cuh"

namespace brasa::cuda {

constexpr int kRowThreads = kLineThreads;
constexpr int64_t kWarpRow = 1024;  ///< longest row that a warp reads again
/// Two for each multiprocessor of an H100; a constant: it fixes the rounding.
constexpr int64_t kGradientBlocks = 264;
constexpr int kMergeColumns = 32, kMergeThreads = 16;  ///< columns of a block, threads of a column

template <class T, class A, class Group, int kLanes, bool kKeeps>
__global__ void __launch_bounds__(Group::kBlock, kLineBlocks<Wide<T>, Group, kLanes, 1>)
    layer_norm_kernel(LayerNormForward<T> a, LayerNormParams p, bool packs) {
  using W = Wide<T>;
  for_lines<W, Group, kLanes, kKeeps>({p.rows, p.width, 1}, kKeeps || packs, [&](const auto& line) {
    const auto held = line.hold(a.x + line.offset);
    const W count = W(p.width);
    W shift;
    if constexpr (kKeeps)
      shift = line.sum([&](auto j, int turn) { return line.get(held, j, turn); }) / count;
    else
      shift = line.read_sum(a.x + line.offset) / count;
    W offsets = 0, squares = 0;
    line.each([&](auto j, int turn) {
      const auto v = line.get(held, j, turn);
#pragma unroll
      for (int k = 0; k < kLanes; ++k) {
        const W d = v[k] - shift;
        offsets += d;
        squares += d * d;
      }
    });
    const W e = Group::sum(offsets), q = Group::sum(squares);
    const W mean = shift + e / count;
    const W rstd = W(1) / vsqrt((q - e * (e / count)) / count + W(p.eps));
    if (line.leads()) {
      a.mean[line.index] = mean;
      a.rstd[line.index] = rstd;
    }
    const auto finish = [&](auto j, auto v) {
      const auto apply = [&](const auto& f) {
#pragma unroll
        for (int k = 0; k < kLanes; ++k) v[k] = f(v[k], k);
      };
      apply([&](W value, int) { return (value - mean) * rstd; });
      if (a.weight) {
        const auto weight = line.load(a.weight, j);
        apply([&](W value, int k) { return value * weight[k]; });
      }
      if (a.bias) {
        const auto bias = line.load(a.bias, j);
        apply([&](W value, int k) { return value + bias[k]; });
      }
      if (a.residual) {
        const auto residual = line.load(a.residual + line.offset, j);
        apply([&](W value, int k) { return value + residual[k]; });
      }
      if (a.pre_activation) line.store(a.pre_activation + line.offset, j, v);
      if constexpr (std::is_same_v<A, AnyActivation>) activate_registers(p.activation, v.lane);
      line.store(a.y + line.offset, j, v);
    };
    if constexpr (kKeeps)
      line.each([&](auto j, int turn) { finish(j, line.get(held, j, turn)); });
    else
      line.walk([&](auto j) { finish(j, line.load(a.x + line.offset, j)); });
  });
}

/// What a block sums of dweight and dbias: (group, 2, width) in shared memory, each thread with
/// places of its own.
template <class W, class Group> struct ParameterSums {
  W* sums;
  int width;

  template <class Line> BRASA_DEVICE_FN void clear(const Line& line) const {
    line.each([&](auto j, int) {
      at(0, j, Line::all(0));
      at(1, j, Line::all(0));
    });
  }
  template <class Values> BRASA_DEVICE_FN void at(int which, int j, const Values& values) const {
    simt::store_wide(place(which, j), values);
  }
  template <class Values> BRASA_DEVICE_FN void add(int which, int j, Values values) const {
    constexpr int kLanes = sizeof(Values) / sizeof(W);
    const auto before = simt::load_wide<kLanes>(place(which, j));
#pragma unroll
    for (int k = 0; k < kLanes; ++k) values[k] += before[k];
    simt::store_wide(place(which, j), values);
  }
  BRASA_DEVICE_FN W* place(int which, int j) const {
    return sums + (group_place<Group>() * 2 + which) * width + j;
  }
  /// Adds the groups' up, in their order.
  BRASA_DEVICE_FN void write(W* to) const {
    __syncthreads();
    for (int i = simt::thread_rank(); i < 2 * width; i += simt::block_size()) {
      W total = 0;
#pragma unroll 4
      for (int group = 0; group < groups_of_block<Group>(); ++group)
        total += sums[group * 2 * width + i];
      to[i] = total;
    }
  }
};

/// Writes the gradient of x, and where rows are kept sums of those of weight and bias for each
/// block, (block, 2, width); what is null is not needed.
template <class T, class Group, int kLanes, bool kKeeps>
__global__ void __launch_bounds__(Group::kBlock, kLineBlocks<Wide<T>, Group, kLanes, 2>)
    layer_gradient_kernel(LayerNormBackward<T> a, LayerNormParams p, bool packs, Wide<T>* partial) {
  using W = Wide<T>;
  using OfLine = Line<W, Group, kLanes, kKeeps>;
  BRASA_DYN_SHARED(W, shared);
  const ParameterSums<W, Group> parameters{shared, int(p.width)};
  if (partial) parameters.clear(OfLine{.n = typename OfLine::Place(p.width)});
  for_lines<W, Group, kLanes, kKeeps>(
      {p.rows, p.width, 1}, kKeeps || packs, [&](const OfLine& line) {
        const auto held_x = line.hold(a.x + line.offset), held_dy = line.hold(a.dy + line.offset);
        const W mean = a.mean[line.index], rstd = a.rstd[line.index];
        const auto normalized = [&](auto j, int turn) {
          auto x = line.get(held_x, j, turn);
#pragma unroll
          for (int k = 0; k < kLanes; ++k) x[k] = (x[k] - mean) * rstd;
          return x;
        };
        const auto weighted = [&](auto j, auto g) {
          if (!a.weight) return g;
          const auto weight = line.load(a.weight, j);
#pragma unroll
          for (int k = 0; k < kLanes; ++k) g[k] *= weight[k];
          return g;
        };
        W sum = 0, products = 0;
        line.each([&](auto j, int turn) {
          const auto dy = line.get(held_dy, j, turn), x = normalized(j, turn), g = weighted(j, dy);
          auto dweight = dy;
#pragma unroll
          for (int k = 0; k < kLanes; ++k) {
            sum += g[k];
            products += g[k] * x[k];
            dweight[k] *= x[k];
          }
          if (!partial) return;
          parameters.add(0, j, dweight);
          parameters.add(1, j, dy);
        });
        if (!a.dx) return;
        const W first = Group::sum(sum) / W(p.width), second = Group::sum(products) / W(p.width);
        line.each([&](auto j, int turn) {
          const auto x = normalized(j, turn);
          auto g = weighted(j, line.get(held_dy, j, turn));
#pragma unroll
          for (int k = 0; k < kLanes; ++k) g[k] = (g[k] - first - x[k] * second) * rstd;
          line.store(a.dx + line.offset, j, g);
        });
      });
  if (partial) parameters.write(partial + 2 * p.width * blockIdx.x);
}

/// partial[2 b] = sum of dy xhat over the rows of block b, partial[2 b + 1] = sum of dy.
template <class T>
__global__ void __launch_bounds__(kRowThreads)
    parameter_sums_kernel(LayerNormBackward<T> a, LayerNormParams p, Wide<T>* partial) {
  const int64_t i = int64_t(blockIdx.x) * kRowThreads + threadIdx.x, n = p.width;
  if (i >= n) return;
  const int64_t first = blockIdx.y * order::kRowBlock;
  const int64_t end = first + order::kRowBlock < p.rows ? first + order::kRowBlock : p.rows;
  Wide<T> dweight = 0, dbias = 0;
  for (int64_t row = first; row < end; ++row) {
    const Wide<T> g = simt::widen(a.dy[row * n + i]);
    dweight += g * ((simt::widen(a.x[row * n + i]) - a.mean[row]) * a.rstd[row]);
    dbias += g;
  }
  partial[2 * blockIdx.y * n + i] = dweight;
  partial[(2 * blockIdx.y + 1) * n + i] = dbias;
}

/// Adds the blocks' sums of (dweight, dbias), a row of 2 width numbers.
template <class T>
__global__ void __launch_bounds__(kMergeColumns* kMergeThreads)
    merge_parameters_kernel(LayerNormBackward<T> a, LayerNormParams p, int64_t blocks,
                            const Wide<T>* partial) {
  BRASA_SHARED(Wide<T>, sums, [kMergeThreads][kMergeColumns]);
  const int column = int(threadIdx.x), thread = int(threadIdx.y);
  const int64_t i = int64_t(blockIdx.x) * kMergeColumns + column, n = p.width;
  Wide<T> sum = 0;
  if (i < 2 * n) {
#pragma unroll 4
    for (int64_t block = thread; block < blocks; block += kMergeThreads)
      sum += partial[block * 2 * n + i];
  }
  sums[thread][column] = sum;
  __syncthreads();
  if (thread > 0 || i >= 2 * n) return;
  for (int other = 1; other < kMergeThreads; ++other) sum += sums[other][column];
  Wide<T>* const to = i < n ? a.dweight : a.dbias;
  if (to) to[i < n ? i : i - n] = sum;
}

// ----------------------------------------------------------------------------------------
// launchers

static simt::LaunchConfig over_columns(Context ctx, int64_t columns, dim3 block, int64_t blocks) {
  return {.grid = dim3(unsigned(simt::ceil_div(columns, int64_t(block.x))), unsigned(blocks)),
          .block = block,
          .stream = static_cast<simt::stream_t>(ctx.stream)};
}

/// Rows of sums that one pass, or the launch behind it, leaves.
template <class T> static int64_t sum_rows(const LayerNormParams& p) {
  const int64_t blocks = simt::ceil_div(p.rows, order::kRowBlock);
  if (!keeps_row<T>(p.width, kRowThreads)) return blocks;
  return p.rows < kGradientBlocks ? p.rows : kGradientBlocks;
}

template <class T> size_t layer_norm_workspace(const LayerNormParams& p) {
  return size_t(2 * sum_rows<T>(p) * p.width) * sizeof(Wide<T>);
}

/// Calls f.operator()<group, lanes, keeps>(config, groups of a block), as choose_row_group does:
/// only rows of packs that are kept, of float32 and 16 bits, have a kernel for each group.
template <class T, int kArrays, class F>
static void choose_row_kernel(Context ctx, const LayerNormParams& p, bool packs, const F& f) {
  choose_row_group<T, kArrays>(
      ctx, p.rows, p.width, [&]<class Group, int kLanes, bool kKeeps>(simt::LaunchConfig config) {
        constexpr int kGroups = Group::kBlock / Group::kSize;
        if constexpr (kKeeps && kLanes > 1 && sizeof(T) < 8) {
          if (packs) return f.template operator()<Group, kLanes, true>(config, kGroups);
        }
        config.block = any_group<Group>();
        f.template operator()<AnyGroup<kLongThreads<T>>, kLanes, false>(config, kGroups);
      });
}

template <class T>
void layer_norm_forward(Context ctx, const LayerNormForward<T>& a, const LayerNormParams& p) {
  if (p.rows * p.width == 0) return;
  const bool packs = in_packs(a.x, a.residual, a.weight, a.bias, a.pre_activation, a.y);
  void (*kernel)(LayerNormForward<T>, LayerNormParams, bool) = nullptr;
  simt::LaunchConfig config;
  if (p.activation.kind == ActivationKind::none) {
    choose_row_kernel<T, 1>(
        ctx, p, packs,
        [&]<class Group, int kLanes, bool kKeeps>(const simt::LaunchConfig& chosen, int) {
          kernel = layer_norm_kernel<T, Identity, Group, kLanes, kKeeps>;
          config = chosen;
        });
  } else {
    const auto read = [&]<class Group>() {
      kernel = layer_norm_kernel<T, AnyActivation, AnyGroup<kLineThreads>, 1, false>;
      config = over_lines<Group>(ctx, p.rows);
      config.block = any_group<Group>();
    };
    p.width <= kWarpRow ? read.template operator()<WarpGroup<simt::kWarpSize>>()
                        : read.template operator()<BlockGroup<kLineThreads>>();
  }
  simt::launch(config, kernel, a, p, packs);
}

/// Writes dx and leaves rows of sums, if they are needed; returns how many.
template <class T>
static int64_t layer_gradients(Context ctx, const LayerNormBackward<T>& a, const LayerNormParams& p,
                               Wide<T>* partial) {
  const bool packs = in_packs(a.dy, a.x, a.weight, a.dx);
  const bool in_one_pass = partial && keeps_row<T>(p.width, kRowThreads);
  int64_t blocks = 0;
  void (*kernel)(LayerNormBackward<T>, LayerNormParams, bool, Wide<T>*) = nullptr;
  simt::LaunchConfig config;
  choose_row_kernel<T, 2>(
      ctx, p, packs,
      [&]<class Group, int kLanes, bool kKeeps>(const simt::LaunchConfig& chosen, int groups) {
        kernel = layer_gradient_kernel<T, Group, kLanes, kKeeps>;
        config = chosen;
        config.smem = in_one_pass ? size_t(groups) * 2 * p.width * sizeof(Wide<T>) : 0;
      });
  if (in_one_pass) {
    if (config.grid.x > kGradientBlocks) config.grid.x = unsigned(kGradientBlocks);
    blocks = config.grid.x;
  }
  if (a.dx || in_one_pass)
    simt::launch(config, kernel, a, p, packs, in_one_pass ? partial : nullptr);
  if (!partial || in_one_pass) return blocks;
  blocks = sum_rows<T>(p);
  simt::launch(over_columns(ctx, p.width, dim3(kRowThreads), blocks), parameter_sums_kernel<T>, a,
               p, partial);
  return blocks;
}

template <class T>
void layer_norm_backward(Context ctx, const LayerNormBackward<T>& a, const LayerNormParams& p) {
  if (p.width == 0) return;
  auto* const partial = a.dweight || a.dbias ? static_cast<Wide<T>*>(ctx.workspace) : nullptr;
  const int64_t blocks = p.rows > 0 ? layer_gradients(ctx, a, p, partial) : 0;
  if (!a.dweight && !a.dbias) return;
  simt::launch(over_columns(ctx, 2 * p.width, dim3(kMergeColumns, kMergeThreads), 1),
               merge_parameters_kernel<T>, a, p, blocks, partial);
}

BRASA_INSTANTIATE(layer_norm_workspace, float, double, float16, bfloat16)
BRASA_INSTANTIATE(layer_norm_forward, float, double, float16, bfloat16)
BRASA_INSTANTIATE(layer_norm_backward, float, double, float16, bfloat16)

}  // namespace brasa::cuda
