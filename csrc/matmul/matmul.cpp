#include "matmul/matmul.h"

#include "core/elementwise.h"
#include "core/order.h"
#include "core/parallel.h"
#include "core/tiles.h"
#include "matmul/gemm_plan.h"
#include "matmul/gemm_row.h"
#include "matmul/gemm_tile.h"

namespace brasa::cpu::BRASA_ISA {

// ------------------------------------------------------------------------------------- one product

/// Next pieces of work of a team: panels to pack, chunks to multiply.
struct Counters {
  alignas(64) int64_t panel;
  alignas(64) int64_t chunk;
};
BRASA_INLINE int64_t take(int64_t* counter) {
  return __atomic_fetch_add(counter, 1, __ATOMIC_RELAXED);
}
BRASA_INLINE void restart(int64_t* counter) {
  __atomic_store_n(counter, 0, __ATOMIC_RELAXED);
}

/// A range of panels and of blocks of K that is packed at once.
struct Group {
  int64_t panel_begin, panel_end, block_begin, block_end;
};

template <class T> BRASA_INLINE int64_t tile_begin(const Product<T>& g, int64_t tile) {
  return g.p.m * tile / g.plan.row_tiles;  // balanced heights beat one low last tile
}

template <class T> BRASA_INLINE int64_t panel_width(const Product<T>& g, int64_t panel) {
  return at_most(g.plan.panel_columns, g.p.n - panel * g.plan.panel_columns);
}

/// Where a panel packed by the team lies. Blocks of one group may differ in depth by one: the place
/// is reserved for the deepest.
template <class T>
BRASA_INLINE T* shared_panel(const Product<T>& g, const Group& group, int64_t panel,
                             int64_t block) {
  const int64_t depth = at_most(g.p.k, order::kGemmDepth<T>);
  const int64_t index =
      (block - group.block_begin) * g.plan.block_panels + panel - group.panel_begin;
  return g.shared + index * g.plan.panel_columns * depth;
}

template <class T>
static void pack_panel(const Product<T>& g, const DepthBlock& d, int64_t panel, T* to) {
  const T* from = g.b + d.b_offset + panel * g.plan.panel_columns * g.p.b_column;
  pack_b(from, g.p.b_depth, g.p.b_column, d.depth, panel_width(g, panel), g.plan.panel_columns, to);
}

/// A panel as the kernels read it, packed now when it has to be.
template <class T>
static const T* panel_of_b(const Product<T>& g, const Group& group, const DepthBlock& d,
                           int64_t block, int64_t panel, T* own, int64_t& stride) {
  stride = g.plan.panel_columns;
  if (g.plan.b_source == Source::packed_by_team) return shared_panel(g, group, panel, block);
  if (g.plan.b_source == Source::in_place && panel_width(g, panel) == g.plan.panel_columns) {
    stride = g.p.b_depth;
    return g.b + d.b_offset + panel * g.plan.panel_columns;
  }
  pack_panel(g, d, panel, own);
  return own;
}

template <class T>
static void finish_tile(const Product<T>& g, const TileOperands<T>& t, int64_t rows, int64_t row,
                        int64_t column) {
  for (int64_t i = 0; i < rows; ++i)
    g.epilogue.apply(t.c + i * t.c_stride, t.columns, column,
                     g.offset + (row + i) * g.p.n + column);
}

/// All tiles of rows [tile_begin, tile_end) against one panel.
template <class T>
static void multiply_panel(const Product<T>& g, const DepthBlock& d, TileOperands<T> t,
                           int64_t panel, int64_t first_tile, int64_t last_tile,
                           const T* packed_a) {
  const int64_t column = panel * g.plan.panel_columns, first_row = tile_begin(g, first_tile);
  const int64_t vectors = ceil_div(panel_width(g, panel), kLanes<T>);
  const bool finish = d.last && !g.epilogue.epilogue.is_trivial();
  t.columns = panel_width(g, panel);
  for (int64_t tile = first_tile; tile < last_tile; ++tile) {
    const int64_t row = tile_begin(g, tile), rows = tile_begin(g, tile + 1) - row;
    if (g.plan.pack_a) {
      t.a = packed_a + (row - first_row) * d.depth;
      t.a_stride = rows;
    } else {
      t.a = g.a + d.a_offset + row * g.p.a_row;
      t.a_stride = g.plan.columnwise ? g.p.a_depth : g.p.a_row;
    }
    t.c = g.c + row * g.p.n + column;
    tile_kernel<T>(rows, vectors, g.plan.columnwise)(t);
    if (finish) finish_tile(g, t, rows, row, column);
  }
}

/// A chunk: some row tiles against some panels of a group, over all its blocks of K.
template <class T>
static void multiply_chunk(const Product<T>& g, const Group& group, int64_t first_tile,
                           int64_t last_tile, int64_t first_panel, int64_t last_panel, T* own) {
  const int64_t first_row = tile_begin(g, first_tile);
  const int64_t depth = at_most(g.p.k, order::kGemmDepth<T>);
  T* const own_panel = own;
  T* const own_rows = own + g.plan.panel_columns * depth;
  for (int64_t block = group.block_begin; block < group.block_end; ++block) {
    const DepthBlock d = depth_block(g, block);
    if (g.plan.pack_a) {
      for (int64_t tile = first_tile; tile < last_tile; ++tile) {
        const int64_t row = tile_begin(g, tile);
        pack_a(g.a + d.a_offset + row * g.p.a_row, g.p.a_row, g.p.a_depth, d.depth,
               tile_begin(g, tile + 1) - row, own_rows + (row - first_row) * d.depth);
      }
    }
    TileOperands<T> t{.depth = d.depth, .c_stride = g.p.n, .accumulate = !d.first};
    for (int64_t panel = first_panel; panel < last_panel; ++panel) {
      t.b = panel_of_b(g, group, d, block, panel, own_panel, t.b_stride);
      multiply_panel(g, d, t, panel, first_tile, last_tile, own_rows);
    }
  }
}

template <class T>
static void pack_group(const Product<T>& g, const Group& group, Counters& counters) {
  const int64_t panels = group.panel_end - group.panel_begin;
  const int64_t pieces = panels * (group.block_end - group.block_begin);
  for (int64_t i; (i = take(&counters.panel)) < pieces;) {
    const int64_t block = group.block_begin + i / panels, panel = group.panel_begin + i % panels;
    pack_panel(g, depth_block(g, block), panel, shared_panel(g, group, panel, block));
  }
}

template <class T>
static void multiply_group(const Product<T>& g, const Group& group, Counters& counters, T* own) {
  const Plan& plan = g.plan;
  const int64_t panels = group.panel_end - group.panel_begin;
  const int64_t column_chunks = ceil_div(panels, plan.chunk_panels);
  const int64_t chunks = ceil_div(plan.row_tiles, plan.chunk_tiles) * column_chunks;
  for (int64_t i; (i = take(&counters.chunk)) < chunks;) {
    const int64_t tile = i / column_chunks * plan.chunk_tiles;
    const int64_t panel = group.panel_begin + i % column_chunks * plan.chunk_panels;
    multiply_chunk(g, group, tile, at_most(tile + plan.chunk_tiles, plan.row_tiles), panel,
                   at_most(panel + plan.chunk_panels, group.panel_end), own);
  }
}

/// One member's part of a product; every member calls it. A counter is set back while no member can
/// be in the phase that uses it: between the barriers around the other phase.
template <class T>
static void multiply(const Product<T>& g, Counters& counters, int member, const Barrier& barrier,
                     T* own) {
  const Plan& plan = g.plan;
  const bool team = plan.b_source == Source::packed_by_team;
  for (int64_t panel = 0; panel < plan.panels; panel += plan.block_panels) {
    for (int64_t block = 0; block < plan.blocks; block += plan.group) {
      const Group group{panel, at_most(panel + plan.block_panels, plan.panels), block,
                        at_most(block + plan.group, plan.blocks)};
      if (team) {
        pack_group(g, group, counters);
        barrier();
        if (member == 0) restart(&counters.panel);
      }
      multiply_group(g, group, counters, own);
      if (team) {
        barrier();
        if (member == 0) restart(&counters.chunk);
      }
    }
  }
}

// ------------------------------------------------------------------------------------ entry points

static bool is_row(const MatmulParams& p) {
  return p.m == 1 && (p.b_column == 1 || p.b_depth == 1);
}

static int64_t work(const MatmulParams& p) {
  return p.m * p.n * p.k * p.sum.count;
}

/// A batch of products too small to share is shared out product by product.
static bool by_product(const MatmulParams& p, int threads) {
  return p.batch.count > 1 &&
         (work(p) < kGemmSerialWork || p.batch.count >= threads * kChunksPerThread);
}

static int team_size(const MatmulParams& p, int threads) {
  return work(p) * p.batch.count < kGemmSerialWork ? 1 : threads;
}

template <class T> size_t matmul_workspace(const MatmulParams& p, int threads) {
  if (is_row(p) || p.m == 0 || p.n == 0) return 0;
  threads = team_size(p, threads);
  const bool apart = by_product(p, threads);
  const Plan plan = make_plan<T>(p, apart ? 1 : threads);
  const int64_t shared = apart ? plan.shared_elements * threads : plan.shared_elements;
  return size_t(shared + plan.thread_elements * threads) * sizeof(T);
}

template <class T>
static Product<T> product_at(const MatmulParams& p, const Plan& plan,
                             const RowEpilogue<T>& epilogue, const T* a, const T* b, T* y,
                             int64_t index) {
  int64_t a_offset = 0, b_offset = 0;
  add_offsets(p.batch, index, a_offset, b_offset);
  const int64_t offset = index * p.m * p.n;
  return {p, plan, epilogue, a + a_offset, b + b_offset, y + offset, offset, nullptr};
}

/// Batches of one row: strips of columns of all products, handed out together.
template <class T>
static void multiply_rows(Context ctx, const MatmulParams& p, const T* a, const T* b, T* y,
                          const RowEpilogue<T>& epilogue) {
  Plan plan{};
  plan.blocks = p.sum.count * order::gemm_blocks<T>(p.k);
  ctx.threads = team_size(p, ctx.threads);
  const int64_t share = ceil_div(p.n, ctx.threads * kLanes<T>) * kLanes<T>;
  const int64_t strip = at_least(at_most(share, kStripColumns<T>), kLanes<T>);
  const int64_t strips = ceil_div(p.n, strip);
  parallel_for(ctx, strips * p.batch.count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Product<T> g = product_at(p, plan, epilogue, a, b, y, i / strips);
      const int64_t column = i % strips * strip;
      multiply_row(g, column, at_most(column + strip, p.n));
    }
  });
}

template <class T>
void matmul(Context ctx, const MatmulParams& p, const T* a, const T* b, T* y,
            const Epilogue<T>& epilogue) {
  if (p.m == 0 || p.n == 0 || p.batch.count == 0) return;
  const RowEpilogue<T> rows(epilogue);
  if (is_row(p)) return multiply_rows(ctx, p, a, b, y, rows);
  ctx.threads = team_size(p, ctx.threads);
  const bool apart = by_product(p, ctx.threads);
  const Plan plan = make_plan<T>(p, apart ? 1 : ctx.threads);
  T* const scratch = static_cast<T*>(ctx.workspace);
  Counters team{};
  const auto body = [&](int member, int, const Barrier& barrier) {
    if (!apart) {
      T* const own = scratch + plan.shared_elements + member * plan.thread_elements;
      for (int64_t i = 0; i < p.batch.count; ++i) {
        Product<T> g = product_at(p, plan, rows, a, b, y, i);
        g.shared = scratch;
        multiply(g, team, member, barrier, own);
        if (i + 1 < p.batch.count && plan.b_source != Source::packed_by_team) {
          barrier();
          if (member == 0) restart(&team.chunk);
          barrier();
        }
      }
      return;
    }
    T* const own = scratch + member * (plan.shared_elements + plan.thread_elements);
    for (int64_t i; (i = take(&team.chunk)) < p.batch.count;) {
      Counters alone{};
      Product<T> g = product_at(p, plan, rows, a, b, y, i);
      g.shared = own + plan.thread_elements;
      multiply(g, alone, 0, Barrier{nullptr}, own);
    }
  };
  if (ctx.threads == 1)
    body(0, 1, Barrier{nullptr});
  else
    parallel_team(ctx, body);
}

/// Columns that one chunk of column_sums adds up: 8 vectors of AVX-512 in registers.
constexpr int64_t kSumColumns = 128;

template <class T> void column_sums(Context ctx, const T* x, T* y, int64_t rows, int64_t columns) {
  parallel_for(ctx, columns, kSumColumns, [&](int64_t begin, int64_t end) {
    for (int64_t column = begin; column < end; column += kSumColumns) {
      const int64_t width = at_most(end - column, kSumColumns);
      const auto zero = [] { return Vec<T>{}; };
      const auto add = [](Vec<T> s, Vec<T> v) { return s + v; };
      alignas(64) T block[kSumColumns];
      map_range(0, width, zero, y + column);
      for (int64_t row = 0; row < rows; row += order::kRowBlock) {
        const int64_t last = at_most(row + order::kRowBlock, rows);
        map_range(0, width, zero, block);
        for (int64_t i = row; i < last; ++i)
          map_range(0, width, add, block, block, x + i * columns + column);
        map_range(0, width, add, y + column, y + column, block);
      }
    }
  });
}

BRASA_INSTANTIATE(matmul_workspace, float, double)
BRASA_INSTANTIATE(matmul, float, double)
BRASA_INSTANTIATE(column_sums, float, double)

}  // namespace brasa::cpu::BRASA_ISA
