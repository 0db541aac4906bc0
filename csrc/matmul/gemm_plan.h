// How a matrix product is cut up: which operand is packed by whom, and the units of work.
// Everything here is speed; no choice changes a bit of the result.
#pragma once

#include "core/order.h"
#include "core/tiles.h"
#include "matmul/gemm_tile.h"
#include "matmul/matmul.h"

namespace brasa::cpu::BRASA_ISA {

/// Where the kernels read B from: as it lies; packed by each thread just before use; packed by the
/// team.
enum class Source { in_place, packed_by_thread, packed_by_team };

struct Plan {
  int64_t panel_vectors, panel_columns, tile_rows;
  int64_t row_tiles, panels, blocks;  ///< blocks: of K, over all summed products
  Source b_source;
  bool pack_a, columnwise;            ///< columnwise: the kernels read A with rows side by side
  int64_t block_panels, group;        ///< panels, and blocks of K, between two barriers
  int64_t chunk_tiles, chunk_panels;  ///< of a unit of work
  int64_t shared_elements, thread_elements;
};

BRASA_INLINE int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}
BRASA_INLINE int64_t at_most(int64_t a, int64_t b) {
  return a < b ? a : b;
}
BRASA_INLINE int64_t at_least(int64_t a, int64_t b) {
  return a > b ? a : b;
}

/// Cuts the work into chunks of whole row tiles, and of columns too where rows alone are too few.
template <class T> static void plan_chunks(Plan& plan, int threads) {
  const int64_t wanted = threads * kChunksPerThread;
  if (threads == 1) {
    plan.chunk_tiles = kGemmRows / plan.tile_rows;
    plan.chunk_panels = plan.block_panels;
    return;
  }
  if (plan.b_source == Source::packed_by_thread) {  // every panel is packed once: never split rows
    plan.chunk_tiles = plan.row_tiles;
    plan.chunk_panels = at_least(1, plan.panels / wanted);
    return;
  }
  plan.chunk_tiles =
      at_least(1, at_most(ceil_div(plan.row_tiles, wanted), kGemmRows / plan.tile_rows));
  const int64_t row_chunks = ceil_div(plan.row_tiles, plan.chunk_tiles);
  const int64_t splits = at_most(ceil_div(wanted, row_chunks), plan.block_panels);
  plan.chunk_panels = ceil_div(plan.block_panels, row_chunks >= wanted ? 1 : splits);
}

template <class T> static Plan make_plan(const MatmulParams& p, int threads) {
  Plan plan{};
  const bool wide = p.m <= kWideTileRows;
  plan.panel_vectors = wide ? kWideTileVectors : kTileVectors;
  plan.panel_columns = plan.panel_vectors * kLanes<T>;
  plan.tile_rows = wide ? kWideTileRows : kTileRows;
  plan.row_tiles = ceil_div(p.m, plan.tile_rows);
  plan.panels = ceil_div(p.n, plan.panel_columns);
  plan.blocks = p.sum.count * order::gemm_blocks<T>(p.k);
  const int64_t depth = at_most(p.k, order::kGemmDepth<T>);

  const bool near = p.b_depth * int64_t(sizeof(T)) <= kNearBytes ||
                    p.k * p.n * int64_t(sizeof(T)) <= kInPlaceBytes;
  if (p.b_column == 1 && plan.row_tiles <= (near ? kInPlaceNearTiles : kInPlaceTiles)) {
    plan.b_source = Source::in_place;
  } else if (plan.row_tiles <= kThreadPackedTiles) {
    plan.b_source = Source::packed_by_thread;
  } else {
    plan.b_source = Source::packed_by_team;
  }
  const bool a_is_small = p.m * p.k * int64_t(sizeof(T)) <= kUnpackedBytes || plan.panels <= 2;
  plan.pack_a = (p.a_row != 1 && p.a_depth != 1) || !a_is_small;
  plan.columnwise = plan.pack_a || p.a_row == 1;

  plan.block_panels = plan.panels;
  plan.group = plan.blocks;
  if (plan.b_source == Source::packed_by_team) {
    plan.block_panels = at_most(plan.panels, kGemmColumns / plan.panel_columns);
    const int64_t block_elements = plan.block_panels * plan.panel_columns * depth;
    const int64_t fit = kGemmPackedBytes / int64_t(sizeof(T)) / at_least(1, block_elements);
    plan.group = at_least(1, at_most(plan.blocks, fit));
    plan.shared_elements = block_elements * plan.group;
  }
  plan_chunks<T>(plan, threads);
  const int64_t packed_rows = at_most(plan.chunk_tiles * plan.tile_rows, p.m);
  plan.thread_elements = plan.panel_columns * depth + (plan.pack_a ? packed_rows * depth : 0);
  plan.thread_elements = ceil_div(plan.thread_elements + kPackSlack<T>, 64) * 64;
  return plan;
}

/// One position of the batch, and the scratch it is computed with.
template <class T> struct Product {
  const MatmulParams& p;
  const Plan& plan;
  const RowEpilogue<T>& epilogue;
  const T *a, *b;
  T* c;
  int64_t offset;  ///< of c in the result
  T* shared;
};

/// One block of K: of which summed product, from which k, how deep.
struct DepthBlock {
  int64_t a_offset, b_offset, depth;
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
  DepthBlock d{begin * g.p.a_depth, begin * g.p.b_depth,
               order::gemm_block_begin(g.p.k, per_product, i + 1) - begin, block == 0,
               block + 1 == g.plan.blocks};
  if (g.p.sum.rank) add_offsets(g.p.sum, block / per_product, d.a_offset, d.b_offset);
  return d;
}

}  // namespace brasa::cpu::BRASA_ISA
