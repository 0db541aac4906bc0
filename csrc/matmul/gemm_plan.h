// How a matrix product is cut up: tiles, strips of columns, parts of rows, and what is packed.
// Everything here is speed; no choice changes a bit of the result.
#pragma once

#include "core/order.h"
#include "core/tiles.h"
#include "matmul/gemm_tile.h"
#include "matmul/matmul.h"

namespace brasa::cpu::BRASA_ISA {

/// A chunk of work is a strip of columns (some panels) in one part of the rows, over all of K. The
/// chunks of a strip follow each other, so that a thread mostly finds the strip's B packed already.
/// Where A is packed too, and K deep, the team packs B together first, some blocks of K at a time
/// (a pass): parts can then be low, and a strip so wide that few of them pack the same A.
///
/// A turned product is planned as Y^T = B^T A^T, rows and columns, A and B having changed places; a
/// chunk's results wait in scratch until they are transposed into Y.
struct Plan {
  int64_t panel_vectors, panel_columns, tile_rows;
  int64_t row_tiles, panels, blocks;  ///< blocks: of K, over all summed products
  int64_t depth;                      ///< of the deepest block
  bool pack_b, pack_a, columnwise;    ///< columnwise: the kernels read A with rows side by side.
                                      ///< A last panel that is not full is always packed
  bool keep_b;                        ///< a strip's packed B is kept from one chunk to the next
  bool share_b;                       ///< B is packed by all threads, for all of them
  int64_t pass_blocks, passes;        ///< of K; one pass unless B is shared
  int64_t strip_panels, strips, part_tiles, parts;
  bool turned;
  int64_t rows_elements, result_elements, thread_elements,
      shared_elements;  ///< of scratch: packed rows of A; a chunk's results; all that a thread
                        ///< needs; B of all
};

/// Whether the product is better turned. Where B lies along K its tiles need it transposed: an
/// element takes as long as kTransposeWork multiply-adds of this product. Turned, B's rows are read
/// as they lie, and A is what gets packed: less of it where there are fewer rows than columns, or
/// nearly for nothing where its columns are contiguous. Against that the result is transposed,
/// which a deep K makes up for, and lanes stay empty when the rows fill no whole vectors.
template <class T> static bool is_turned(const MatmulParams& p) {
  if (p.packed_b || p.b_depth != 1 || p.b_column == 1 || p.k < kTurnedDepth) return false;
  if (p.a_depth == 1 ? p.m > p.n : p.a_row != 1) return false;
  const int64_t rows = ceil_div(p.m, kLanes<T>) * kLanes<T>;
  const int64_t columns = ceil_div(p.n, kLanes<T>) * kLanes<T>;
  const int64_t transposed_a = p.a_depth == 1 ? p.m : 0;
  return rows * p.n + kTransposeWork * transposed_a < columns * p.m + kTransposeWork * p.n;
}

static void exchange_operands(BatchDims& dims) {
  for (int d = 0; d < dims.rank; ++d) {
    const int64_t a = dims.a_strides[d];
    dims.a_strides[d] = dims.b_strides[d], dims.b_strides[d] = a;
  }
}

/// The turned product's parameters, where it is better turned.
template <class T> static MatmulParams oriented(const MatmulParams& p) {
  if (!is_turned<T>(p)) return p;
  MatmulParams turned = p;
  turned.m = p.n, turned.n = p.m;
  turned.a_row = p.b_column, turned.a_depth = p.b_depth;
  turned.b_depth = p.a_depth, turned.b_column = p.a_row;
  exchange_operands(turned.batch);
  exchange_operands(turned.sum);
  return turned;
}

/// Vectors in a panel of B, which is wide or as narrow as the columns ask for.
template <class T> static int64_t panel_vectors(int64_t n, bool wide) {
  return wide ? kWideTileVectors : n <= kLanes<T> ? 1 : kTileVectors;
}

/// Panels that are packed once serve products of any number of rows.
template <class T> static bool packs_wide(int64_t n) {
  return kWideMainTile && n > kTileVectors * kLanes<T>;
}

template <class T> static void plan_tiles(Plan& plan, const MatmulParams& p) {
  const bool wide = kWideMainTile || p.packed_b ? packs_wide<T>(p.n) : p.m <= kWideTileRows;
  plan.panel_vectors = panel_vectors<T>(p.n, wide);
  plan.panel_columns = plan.panel_vectors * kLanes<T>;
  plan.tile_rows = wide ? kWideTileRows : kTileRows;
  plan.row_tiles = ceil_div(p.m, plan.tile_rows);
  plan.panels = ceil_div(p.n, plan.panel_columns);
  plan.blocks = p.sum.count * order::gemm_blocks<T>(p.k);
  plan.depth = at_most(p.k, order::kGemmDepth<T>);
}

template <class T> static void plan_packing(Plan& plan, const MatmulParams& p) {
  const bool near = p.b_depth * int64_t(sizeof(T)) <= kNearBytes ||
                    p.k * p.n * int64_t(sizeof(T)) <= kInPlaceBytes;
  plan.pack_b = !p.packed_b &&
                (p.b_column != 1 || plan.row_tiles > (near ? kInPlaceNearTiles : kInPlaceTiles));
  const bool a_is_small = p.m * p.k * int64_t(sizeof(T)) <= kUnpackedBytes || plan.panels <= 2;
  plan.pack_a = p.a_depth != 1 && (p.a_row != 1 || !a_is_small);
  plan.columnwise = p.a_depth != 1;
  // One block of K is packed as fast by each thread as it goes: 512 cubes lose 5 % by waiting.
  plan.share_b =
      plan.pack_a && plan.pack_b && p.batch.count == 1 && p.m >= 2 * kGemmRows && plan.blocks > 1;
  const int64_t block = plan.panels * plan.panel_columns * plan.depth;
  const int64_t most = at_least(1, kSharedBytes / at_least(1, block * int64_t(sizeof(T))));
  plan.passes = plan.share_b ? ceil_div(plan.blocks, most) : 1;
  plan.pass_blocks = ceil_div(plan.blocks, plan.passes);
  plan.shared_elements = plan.share_b ? block * plan.pass_blocks + kPackSlack<T> : 0;
  plan.shared_elements = ceil_div(plan.shared_elements, 64) * 64;
}

/// Strips are narrow, as more of them share out better, but where A is packed once for each.
template <class T> static void plan_chunks(Plan& plan, const MatmulParams& p, int threads) {
  const int64_t columns = plan.pack_a ? kPackedStripColumns : kStripColumns;
  plan.strip_panels = at_most(at_least(1, columns / plan.panel_columns), plan.panels);
  if (plan.pack_a && !plan.share_b)
    plan.strip_panels = at_most(plan.strip_panels, ceil_div(plan.panels, threads));
  plan.strips = ceil_div(plan.panels, plan.strip_panels);
  const int64_t units = plan.strips * p.batch.count;
  int64_t parts = 1;
  if (threads > 1) {
    const int64_t wanted = threads * kChunksPerThread * (units % threads ? 2 : 1);
    const int64_t unit_work = p.m * plan.strip_panels * plan.panel_columns * p.k * p.sum.count;
    const int64_t fine = at_most(ceil_div(wanted, units), ceil_div(unit_work, kLeastChunkWork));
    parts = at_least(fine, at_most(unit_work / kChunkWork, plan.row_tiles / 8));
  }
  if (plan.pack_a) parts = at_least(parts, ceil_div(p.m, kGemmRows));
  const int64_t strip_elements = plan.strip_panels * plan.panel_columns * plan.depth;
  const bool fits = strip_elements * plan.blocks * int64_t(sizeof(T)) <= kKeptBytes;
  if (plan.pack_b && !fits && !plan.pack_a) parts = at_most(parts, ceil_div(p.m, kRepackRows));
  plan.part_tiles = ceil_div(plan.row_tiles, at_most(parts, plan.row_tiles));
  plan.parts = ceil_div(plan.row_tiles, plan.part_tiles);
  const bool packs = plan.pack_b || (!p.packed_b && p.n % plan.panel_columns);
  plan.keep_b = packs && fits && plan.parts > 1 && !plan.share_b;
  plan.rows_elements =
      plan.pack_a ? at_most(plan.part_tiles * plan.tile_rows, p.m) * plan.depth + kPackSlack<T> : 0;
  plan.rows_elements = ceil_div(plan.rows_elements, 64) * 64;
  plan.result_elements = plan.turned ? at_most(plan.part_tiles * plan.tile_rows, p.m) *
                                           plan.strip_panels * plan.panel_columns
                                     : 0;
  const int64_t kept = plan.share_b  ? 0
                       : plan.keep_b ? strip_elements * plan.blocks
                                     : plan.panel_columns * plan.depth;
  plan.thread_elements =
      ceil_div(plan.rows_elements + plan.result_elements + kept + kPackSlack<T>, 64) * 64;
}

/// The plan of an oriented product.
template <class T> static Plan make_plan(const MatmulParams& p, bool turned, int threads) {
  Plan plan{.turned = turned};
  plan_tiles<T>(plan, p);
  plan_packing<T>(plan, p);
  plan_chunks<T>(plan, p, threads);
  return plan;
}

/// One position of the batch.
template <class T> struct Product {
  const MatmulParams& p;
  const Plan& plan;
  const RowEpilogue<T>& epilogue;
  const T *a, *b;
  T* c;
  int64_t offset;  ///< of c in the result
  const T* bias;   ///< null where the epilogue adds it
};

/// One block of K: of which summed product, from which k, how deep.
struct DepthBlock {
  int64_t index, a_offset, b_offset, depth;
  bool first, last;
};

static void add_offsets(const BatchDims& dims, int64_t index, int64_t& a, int64_t& b) {
  for (int d = dims.rank - 1; d >= 0; --d) {
    const int64_t i = index % dims.shape[d];
    index /= dims.shape[d];
    a += i * dims.a_strides[d];
    b += i * dims.b_strides[d];
  }
}

template <class T> static DepthBlock depth_block(const Product<T>& g, int64_t block) {
  const int64_t per_product = order::gemm_blocks<T>(g.p.k), i = block % per_product;
  const int64_t begin = order::gemm_block_begin(g.p.k, per_product, i);
  DepthBlock d{block,
               begin * g.p.a_depth,
               begin * g.p.b_depth,
               order::gemm_block_begin(g.p.k, per_product, i + 1) - begin,
               block == 0,
               block + 1 == g.plan.blocks};
  if (g.p.sum.rank) add_offsets(g.p.sum, block / per_product, d.a_offset, d.b_offset);
  return d;
}

}  // namespace brasa::cpu::BRASA_ISA
