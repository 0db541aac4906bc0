#include "core/driver.cuh"
#include "matmul/gemm_finish.cuh"
#include "matmul/matmul_mma.cuh"
#include "matmul/matmul_tensor.cuh"

namespace brasa::cuda {

// ------------------------------------------------------------------------------------------
// kernels

constexpr int kCopySide = 32, kCopyThreads = 256;
constexpr int64_t kMaxGridY = 65535;

/// Where an operand comes from and where its copy goes: (items, extent, pitch), contiguous along
/// the depth, products summed one behind the other.
template <class T> struct OperandCopy {
  const T* from;
  T* to;
  int64_t extent, depth, minor, step, pitch, items;
  BatchDims batch, sum;  ///< strides of this operand are a_strides
};

/// Writes what a square's row has of the depth from `first_k` on: a lane an element.
template <bool kSplit, class T>
BRASA_DEVICE_FN void write_depth(const OperandCopy<T>& c, T* row, int64_t product, int64_t k, T x) {
  if constexpr (kSplit) {
    const int64_t depth = (c.depth + kSplitLine - 1) / kSplitLine * kSplitLine;
    if (k >= depth) return;
    const SplitFloat parts = split_tf32(k < c.depth ? x : 0.0f);
    row += 2 * (product * depth + k / kSplitLine * kSplitLine) + k % kSplitLine;
    row[0] = parts.hi, row[kSplitLine] = parts.lo;
  } else if (k < c.depth) {
    row[product * c.depth + k] = x;
  }
}

/// A block copies squares of 32 x 32: it reads along the direction that is contiguous and writes
/// along the depth, for 3xTF32 in two parts.
template <class T, bool kSplit>
__global__ void __launch_bounds__(kCopyThreads, 2) copy_operand_kernel(OperandCopy<T> c) {
  BRASA_SHARED(T, square, [kCopySide][kCopySide + 2]);
  const int lane = int(threadIdx.x) % kCopySide, line = int(threadIdx.x) / kCopySide;
  const int64_t across = (c.depth + kCopySide - 1) / kCopySide;
  const int64_t first_k = blockIdx.x % across * kCopySide, first = blockIdx.x / across * kCopySide;
  for (int64_t z = blockIdx.y; z < c.items * c.sum.count; z += gridDim.y) {
    const int64_t item = z / c.sum.count, product = z % c.sum.count;
    int64_t offset = 0, unused = 0;
    add_offsets(c.batch, item, offset, unused);
    add_offsets(c.sum, product, offset, unused);
    for (int r = line; r < kCopySide; r += kCopyThreads / kCopySide) {
      const int i = c.minor == 1 ? lane : r, k = c.minor == 1 ? r : lane;
      if (first + i < c.extent && first_k + k < c.depth)
        square[i][k] = c.from[offset + (first + i) * c.minor + (first_k + k) * c.step];
    }
    __syncthreads();
    for (int r = line; r < kCopySide; r += kCopyThreads / kCopySide) {
      if (first + r < c.extent)
        write_depth<kSplit>(c, c.to + (item * c.extent + first + r) * c.pitch, product,
                            first_k + lane, square[r][lane]);
    }
    __syncthreads();
  }
}

// ------------------------------------------------------------------------------------------- plans

static int64_t round_up(int64_t n, int64_t unit) {
  return (n + unit - 1) / unit * unit;
}

/// Whether every position starts at a multiple of a piece.
static bool whole_pieces(const BatchDims& dims, const int64_t* strides, int64_t piece) {
  for (int d = 0; d < dims.rank; ++d)
    if (strides[d] % piece) return false;
  return true;
}

/// How an operand is read: as it lies, if it can be.
template <class T>
static TensorOperand read_operand(bool pieces, int64_t minor, int64_t step, int64_t extent,
                                  int64_t depth) {
  const bool rows = step == 1 && (extent == 1 || (minor > 0 && minor % kPiece<T> == 0));
  const bool columns = minor == 1 && (depth == 1 || (step > 0 && step % kPiece<T> == 0));
  if (pieces && rows) return {extent == 1 ? round_up(depth, kPiece<T>) : minor, true, false, 0};
  if (pieces && columns) return {depth == 1 ? round_up(extent, kPiece<T>) : step, false, false, 0};
  return {0, true, true, 0};
}

/// Whether all positions have the same operand.
static bool repeats(const BatchDims& dims, const int64_t* strides) {
  for (int d = 0; d < dims.rank; ++d)
    if (strides[d]) return false;
  return true;
}

/// Turns an operand that is copied into what the copy is.
template <class T>
static void plan_copy(TensorOperand& operand, const MatmulParams& p, int64_t extent, int64_t depth,
                      const int64_t* from, int64_t* to) {
  const bool repeated = repeats(p.batch, from);
  operand.stride = round_up(depth, kPiece<T>);
  int64_t stride = extent * operand.stride;
  for (int d = p.batch.rank - 1; d >= 0; --d) {
    to[d] = repeated ? 0 : stride;
    stride *= p.batch.shape[d];
  }
  if (repeated) stride = extent * operand.stride;
  operand.bytes = round_up(stride * int64_t(sizeof(T)), 256);
}

constexpr int64_t kMultiprocessors = 132;  // an H100's; fixed, so that rounding is
constexpr int64_t kMostBlocks = 8;         // of a cluster

static int64_t tiles_of(const MatmulParams& p, int64_t rows, int64_t columns) {
  return simt::ceil_div(p.m, rows) * simt::ceil_div(p.n, columns) * p.batch.count;
}

/// Cuts the depth into `splits` parts or fewer. Blocks of a cluster, eight at most, add up parts
/// without a trip through memory.
template <class T> static void cut_depth(TensorPlan& plan, int64_t splits, bool clusters) {
  plan.split_depth = round_up(simt::ceil_div(plan.p.k < 1 ? 1 : plan.p.k, splits), kLine<T>);
  plan.splits = plan.p.k < 1 ? 1 : simt::ceil_div(plan.p.k, plan.split_depth);
  plan.in_cluster = clusters && plan.splits > 1;
  plan.parts_bytes =
      plan.splits == 1 || plan.in_cluster
          ? 0
          : plan.splits * plan.p.batch.count * plan.p.m * plan.p.n * int64_t(sizeof(float));
}

/// Splits the depth where there are too few tiles for a GPU, into parts of at least 4 lines.
template <class T>
static void plan_splits(TensorPlan& plan, int64_t tiles, int64_t wanted, bool clusters) {
  constexpr int64_t kLeastDepth = 4 * kLine<T>;
  clusters = clusters && simt::device_properties().capability >= 90;
  int64_t splits = tiles < 1 || 2 * tiles > wanted ? 1 : simt::ceil_div(wanted, tiles);
  const int64_t most = simt::ceil_div(plan.p.k, kLeastDepth);
  if (splits > most) splits = most;
  if (clusters && splits > kMostBlocks) splits = kMostBlocks;
  cut_depth<T>(plan, splits < 1 ? 1 : splits, clusters);
}

/// Whether the copy engine finds the items of the batch: it walks one stride.
static bool has_one_stride(const BatchDims& dims, const int64_t* strides) {
  for (int d = 0; d < dims.rank; ++d) {
    if (strides[d] < 0 || (strides[d] == 0 && !repeats(dims, strides))) return false;
    if (d > 0 && strides[d - 1] != strides[d] * dims.shape[d]) return false;
  }
  return true;
}

/// Cycles that Hopper's tiles take for a line of the depth, on one multiprocessor; narrow ones wait
/// for shared memory.
struct WgmmaCost {
  TensorTile tile;
  int64_t rows, columns, cycles;
};
constexpr WgmmaCost kWgmmaCosts[] = {{TensorTile::wgmma_flat, 64, 128, 420},
                                     {TensorTile::wgmma_64, 128, 64, 420},
                                     {TensorTile::wgmma_128, 128, 128, 563},
                                     {TensorTile::wgmma_192, 128, 192, 790},
                                     {TensorTile::wgmma_256, 128, 256, 1024}};

/// Blocks that surely run at one time in clusters of so many. A cluster lies in one of eight groups
/// of 14 to 18 multiprocessors; which groups are short differs from one H100 to the next, and one
/// cluster too many waits for all others.
static int64_t reached_by_clusters(int64_t blocks) {
  return blocks <= 2 ? kMultiprocessors : blocks * (blocks <= 4 ? 8 * (12 / blocks) + 2 : 8);
}

/// The tile that makes a product in the least cycles, its depth split, on so many multiprocessors:
/// blocks take tiles in turn, fill their stages once and store 32 bytes a cycle. All blocks share
/// what L2 and memory deliver. A cluster, whose blocks meet twice and read the tile's sums from
/// each other, and the kernel that adds up parts cost some beside. The flat tile is for up to 64
/// rows that need not be copied first; 3xTF32 has one tile, and six products for four.
template <class T>
static int64_t fastest_tile(const TensorPlan& plan, int64_t splits, int64_t multiprocessors,
                            TensorTile& tile) {
  const MatmulParams& p = plan.p;
  constexpr int64_t kStart = 5000, kCluster = 1200, kClusterSums = 3;
  constexpr int64_t kFinish = 5500, kPartBytes = 5000, kStored = 32;
  constexpr int64_t kFromL2 = 5600, kFromMemory = 2250;  // bytes a cycle, all blocks together
  const int64_t lines = simt::ceil_div(simt::ceil_div<int64_t>(p.k, kLine<T>), splits);
  const bool in_parts = splits > kMostBlocks, in_cluster = splits > 1 && !in_parts;
  const int64_t reached = in_cluster && multiprocessors == kMultiprocessors
                              ? reached_by_clusters(splits)
                              : multiprocessors;
  const int64_t memory = (p.m + p.n) * p.k * p.batch.count * int64_t(sizeof(T)) / kFromMemory;
  const int64_t item = in_parts ? int64_t(sizeof(float)) : int64_t(sizeof(T));
  int64_t least = 0;
  for (const WgmmaCost& cost : kWgmmaCosts) {
    if (cost.rows == 64 && (p.m > 64 || !plan.a.along_depth)) continue;
    if (plan.thrice && cost.tile != TensorTile::wgmma_128) continue;
    const int64_t line = plan.thrice ? cost.cycles * 8 / 5 : cost.cycles;
    const int64_t results = cost.rows * cost.columns;
    const int64_t blocks = tiles_of(p, cost.rows, cost.columns) * splits;
    const int64_t waves = simt::ceil_div(blocks, reached);
    const int64_t read = (cost.rows + cost.columns) * 128 * simt::ceil_div(blocks, waves) / kFromL2;
    const int64_t loop = waves * lines * (line > read ? line : read);
    const int64_t streams = loop > memory ? loop + memory / 4 : memory + loop / 4;
    const int64_t stores = results * item / kStored + (in_cluster ? results / kClusterSums : 0);
    const int64_t cycles = streams + waves * stores;
    if (least == 0 || cycles < least) least = cycles, tile = cost.tile;
  }
  if (splits == 1) return least + kStart;
  if (!in_parts) return least + kStart + kCluster;
  const int64_t parts = splits * p.batch.count * p.m * p.n * 2 * int64_t(sizeof(float));
  return least + kStart + kFinish + parts / kPartBytes;
}

/// Hopper's tiles and a split of the depth, whichever are predicted to take the least time. The
/// split depends on shapes alone; the tile, which changes no rounding, on the GPU, too. Small
/// products are faster in smaller tiles, whose kernel starts sooner.
///
/// Microseconds on an H200 at about 1.8 GHz, bfloat16, as predicted and as measured:
///   128 x 4096 x 4096     128 wide, 4 parts              19.0   17.0
///                         128 wide, 32 clusters of 4     22.8   26.2
///   128 x 9216 x 4096     128 wide, 4 parts              31.8   32.0
///                         128 wide, 32 clusters of 4     38.0   44.5
///   256 x 4096 x 4096     128 wide                       25.6   23.0
///                         128 wide, 64 clusters of 2     22.5   19.5
///   512 x 512 x 512       64 wide, 32 clusters of 4       8.0   12.0   (small tiles: 5.8)
///   256 x 256 x 256       64 wide                         4.0    5.0   (small tiles: 4.1)
///   1024 x 1024 x 1024    64 wide                         8.3    8.7
///                         128 wide                        8.6    8.3
///   2048 x 2048 x 2048    256 wide                       24.9   24.1 to 27.4
/// So 32 clusters of 4 need two waves; clusters of 2, which always fit, and of 3 are left.
template <class T> static void cut_for_wgmma(TensorPlan& plan, int64_t multiprocessors) {
  constexpr int64_t kSplits[] = {1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 32, 48, 64};
  const MatmulParams& p = plan.p;
  const int64_t lines = simt::ceil_div<int64_t>(p.k, kLine<T>);
  int64_t least = 0, best = 1;
  for (const int64_t splits : kSplits) {
    if (splits > lines || (splits > 1 && tiles_of(p, 128, 256) * splits > 2 * kMultiprocessors))
      break;
    const int64_t cycles = fastest_tile<T>(plan, splits, kMultiprocessors, plan.tile);
    if (least == 0 || cycles < least) least = cycles, best = splits;
  }
  cut_depth<T>(plan, best, best <= kMostBlocks);
  fastest_tile<T>(plan, plan.splits, multiprocessors, plan.tile);
}

template <class T> static bool plan_wgmma(TensorPlan& plan) {
  constexpr int64_t kFewRows = 16, kFewColumns = 32, kFewTiles = 32, kLeastWork = 512;
  const MatmulParams& p = plan.p;
  const simt::DeviceProperties gpu = simt::device_properties();
  if (gpu.capability != 90 || p.m <= kFewRows || p.n <= kFewColumns || p.k == 0) return false;
  const int64_t lines = simt::ceil_div<int64_t>(p.k, kLine<T>), tiles = tiles_of(p, 128, 128);
  if (tiles < kFewTiles && tiles * lines < kLeastWork && tiles < gpu.multiprocessors) return false;
  cut_for_wgmma<T>(plan, gpu.multiprocessors);
  if (!has_one_stride(p.batch, p.batch.a_strides) || (sizeof(T) == 4 && !plan.a.along_depth))
    plan.a = {0, true, true, 0};
  if (!has_one_stride(p.batch, p.batch.b_strides) || (sizeof(T) == 4 && !plan.b.along_depth))
    plan.b = {0, true, true, 0};
  return true;
}

/// The tile of a kernel that copies the left operand where its rows are not contiguous.
template <class T, class Tile> static void plan_rows(TensorPlan& plan, TensorTile tile) {
  plan.tile = tile;
  if (!plan.a.along_depth) plan.a = {0, true, true, 0};
  plan_splits<T>(plan, tiles_of(plan.p, Tile::kRows, Tile::kColumns), 2 * kMultiprocessors, true);
}

template <class T> static void plan_tile(TensorPlan& plan) {
  constexpr int64_t kLongRow = 1024;
  const MatmulParams& p = plan.p;
  if (plan_wgmma<T>(plan)) return;
  if (p.m <= FewRowsTile::kRows) return plan_rows<T, FewRowsTile>(plan, TensorTile::few_rows);
  if (p.m <= FlatTile::kRows && p.n >= kLongRow)
    return plan_rows<T, FlatTile>(plan, TensorTile::flat);
  const int64_t large = tiles_of(p, LargeTile::kRows, LargeTile::kColumns);
  if (p.m > 64 && p.n > 64 && large >= kMultiprocessors) {
    plan.tile = TensorTile::large;
    return plan_splits<T>(plan, large, 1, false);
  }
  plan.tile = TensorTile::small;
  plan_splits<T>(plan, tiles_of(p, SmallTile::kRows, SmallTile::kColumns), 2 * kMultiprocessors,
                 true);
}

/// 3xTF32: both operands are copied in two parts, and tiles are of 128 x 128.
static void plan_thrice(TensorPlan& plan) {
  const simt::DeviceProperties gpu = simt::device_properties();
  plan.a = plan.b = {0, true, true, 0};
  plan.thrice = true;
  plan.p.k = split_depth(plan.p.k) * plan.p.sum.count;
  if (gpu.capability == 90) return cut_for_wgmma<float>(plan, gpu.multiprocessors);
  plan.tile = TensorTile::large;
  plan_splits<float>(plan, tiles_of(plan.p, ThriceTile::kRows, ThriceTile::kColumns),
                     kMultiprocessors, false);
}

/// One product, its operands as they lie where they can be read so.
template <class T> static void plan_once(TensorPlan& plan) {
  const MatmulParams p = plan.p;
  const bool one = p.aligned && p.sum.count == 1;
  plan.a = read_operand<T>(one && whole_pieces(p.batch, p.batch.a_strides, kPiece<T>), p.a_row,
                           p.a_depth, p.m, p.k);
  plan.b = read_operand<T>(one && whole_pieces(p.batch, p.batch.b_strides, kPiece<T>), p.b_column,
                           p.b_depth, p.n, p.k);
  plan.p.k = p.k * p.sum.count;
  plan_tile<T>(plan);
}

template <class T> TensorPlan plan_tensor(const MatmulParams& p, MathMode mode) {
  TensorPlan plan{.p = p};
  const int64_t& depth = plan.p.k;
  sizeof(T) == 4 && mode == MathMode::tf32x3 ? plan_thrice(plan) : plan_once<T>(plan);
  if (plan.a.copied) plan_copy<T>(plan.a, p, p.m, depth, p.batch.a_strides, plan.p.batch.a_strides);
  if (plan.b.copied) plan_copy<T>(plan.b, p, p.n, depth, p.batch.b_strides, plan.p.batch.b_strides);
  return plan;
}

// --------------------------------------------------------------------------------------- launchers

template <class T>
static void copy_operand(simt::stream_t stream, bool split, const OperandCopy<T>& copy) {
  if (copy.depth == 0) return;
  const int64_t squares = simt::ceil_div<int64_t>(copy.depth, kCopySide) *
                          simt::ceil_div<int64_t>(copy.extent, kCopySide);
  const int64_t products = copy.items * copy.sum.count;
  auto* kernel = copy_operand_kernel<T, false>;
  if constexpr (sizeof(T) == 4) {
    if (split) kernel = copy_operand_kernel<T, true>;
  }
  simt::launch(
      {.grid = dim3(unsigned(squares), unsigned(products < kMaxGridY ? products : kMaxGridY)),
       .block = dim3(kCopyThreads),
       .stream = stream},
      kernel, copy);
}

/// The operand at `copy`, where it is copied to, or itself.
template <class T>
static const T* laid_out(simt::stream_t stream, const TensorOperand& operand, bool split,
                         const T* from, void* copy, OperandCopy<T> how) {
  if (!operand.copied) return from;
  how.from = from, how.to = static_cast<T*>(copy), how.pitch = operand.stride;
  const int64_t item = how.extent * how.pitch * int64_t(sizeof(T));
  how.items = item == 0 ? 0 : operand.bytes / item < how.batch.count ? 1 : how.batch.count;
  copy_operand(stream, split, how);
  return how.to;
}

template <class T>
static bool whole_packs(const TensorPlan& plan, const T* y, const Epilogue<T>& e) {
  return plan.p.n % kPiece<T> == 0 && simt::pack_aligned(y) && simt::pack_aligned(e.bias) &&
         simt::pack_aligned(e.wide_bias) && simt::pack_aligned(e.residual) &&
         simt::pack_aligned(e.pre_activation);
}

template <class T>
void multiply_tensor(Context ctx, const MatmulParams& p, const TensorPlan& plan, const T* a,
                     const T* b, T* y, const Epilogue<T>& epilogue) {
  const auto stream = static_cast<simt::stream_t>(ctx.stream);
  auto* scratch = static_cast<unsigned char*>(ctx.workspace);
  OperandCopy<T> how{.extent = p.m,
                     .depth = p.k,
                     .minor = p.a_row,
                     .step = p.a_depth,
                     .batch = p.batch,
                     .sum = p.sum};
  a = laid_out(stream, plan.a, plan.thrice, a, scratch, how);
  for (BatchDims* dims : {&how.batch, &how.sum})
    for (int d = 0; d < dims->rank; ++d) dims->a_strides[d] = dims->b_strides[d];
  how.extent = p.n, how.minor = p.b_column, how.step = p.b_depth;
  b = laid_out(stream, plan.b, plan.thrice, b, scratch + plan.a.bytes, how);
  Results<T> results{p.m, p.n, 0, y, nullptr, epilogue, whole_packs(plan, y, epilogue), {p.n}};
  const bool in_parts = plan.splits > 1 && !plan.in_cluster;
  if (in_parts) results.parts = reinterpret_cast<float*>(scratch + plan.a.bytes + plan.b.bytes);
  plan.tile >= TensorTile::wgmma_flat ? launch_wgmma(stream, plan, a, b, results)
                                      : launch_mma(stream, plan, a, b, results);
  if (in_parts) finish_parts(stream, plan.splits, p.m * p.batch.count, results);
}

#define BRASA_TENSOR(T)                                                                       \
  template TensorPlan plan_tensor<T>(const MatmulParams&, MathMode);                          \
  template void multiply_tensor<T>(Context, const MatmulParams&, const TensorPlan&, const T*, \
                                   const T*, T*, const Epilogue<T>&);
BRASA_TENSOR(float)
BRASA_TENSOR(float16)
BRASA_TENSOR(bfloat16)

}  // namespace brasa::cuda
