#include "matmul/matmul.h"

#include "core/elementwise.h"
#include "core/order.h"
#include "core/parallel.h"
#include "core/tiles.h"
#include "matmul/gemm_plan.h"
#include "matmul/gemm_rows.h"
#include "matmul/gemm_tile.h"

namespace brasa::cpu::BRASA_ISA {

// --------------------------------------------------------------------------------------- one chunk

/// What a thread has of its own: the strip whose B it has packed, packed rows of A, results of a
/// turned product, packed B.
template <class T> struct Scratch {
  int64_t* packed_strip;
  T *rows, *results, *panels;
  T* shared;  ///< the team's

  Scratch(void* workspace, const Plan& plan, int member) : shared(static_cast<T*>(workspace)) {
    char* const own = reinterpret_cast<char*>(shared + plan.shared_elements) + member * bytes(plan);
    packed_strip = reinterpret_cast<int64_t*>(own);
    rows = reinterpret_cast<T*>(own + kHeader);
    results = rows + plan.rows_elements;
    panels = results + plan.result_elements;
  }
  static constexpr int64_t kHeader = 64;
  static int64_t bytes_of_all(const Plan& plan, int threads) {
    return plan.shared_elements * int64_t(sizeof(T)) + threads * bytes(plan);
  }
  static int64_t bytes(const Plan& plan) {
    return kHeader + plan.thread_elements * int64_t(sizeof(T));
  }
};

template <class T> BRASA_INLINE int64_t tile_begin(const Product<T>& g, int64_t tile) {
  return g.p.m * tile / g.plan.row_tiles;  // balanced heights beat one low last tile
}

template <class T> BRASA_INLINE int64_t panel_width(const Product<T>& g, int64_t panel) {
  return at_most(g.plan.panel_columns, g.p.n - panel * g.plan.panel_columns);
}

/// Tiles [begin, end) of the rows, panels [first_panel, last_panel) of the columns, for a pass over
/// blocks of K.
struct Chunk {
  int64_t begin, end, first_panel, last_panel, pass;
  bool packed;  ///< this strip's B is in the thread's scratch
};

BRASA_INLINE int64_t chunk_columns(const Plan& plan, const Chunk& chunk) {
  return (chunk.last_panel - chunk.first_panel) * plan.panel_columns;
}

/// Where the team keeps a panel of one of the pass's blocks of K.
template <class T>
static T* shared_panel(const Plan& plan, T* shared, int64_t block, int64_t panel) {
  const int64_t slot = block % plan.pass_blocks * plan.panels + panel;
  return shared + slot * plan.panel_columns * plan.depth;
}

/// A panel of B for the tiles of a chunk.
template <class T> struct Panel {
  const T* b;
  int64_t stride;
  T* packed;  ///< where the first tile packs it, or null
};

/// A panel of B as the kernels read it, packed now when it has to be and the first tile cannot.
template <class T>
static Panel<T> panel_of_b(const Product<T>& g, const Chunk& chunk, const DepthBlock& d,
                           int64_t panel, const Scratch<T>& own) {
  const Plan& plan = g.plan;
  const int64_t columns = panel_width(g, panel);
  const T* from = g.b + d.b_offset + panel * plan.panel_columns * g.p.b_column;
  const bool whole = columns == plan.panel_columns;
  if (!plan.pack_b && (whole || g.p.packed_b)) return {from, g.p.b_depth, nullptr};
  if (plan.share_b)
    return {shared_panel(plan, own.shared, d.index, panel), plan.panel_columns, nullptr};
  T* to = own.panels;
  if (plan.keep_b)
    to +=
        (d.index * plan.strip_panels + panel - chunk.first_panel) * plan.panel_columns * plan.depth;
  if (chunk.packed) return {to, plan.panel_columns, nullptr};
  if (whole && g.p.b_column == 1 && plan.panel_vectors == kMainVectors)
    return {from, g.p.b_depth, to};
  pack_b(from, g.p.b_depth, g.p.b_column, d.depth, columns, plan.panel_columns, to);
  return {to, plan.panel_columns, nullptr};
}

template <class T>
static void finish_tile(const Product<T>& g, const TileOperands<T>& t, int64_t rows, int64_t row,
                        int64_t column) {
  for (int64_t i = 0; i < rows; ++i)
    g.epilogue.apply(t.c + i * t.c_stride, t.columns, column,
                     g.offset + (row + i) * g.p.n + column);
}

/// The chunk's tiles of rows against one panel.
template <class T>
static void multiply_panel(const Product<T>& g, const Chunk& chunk, const DepthBlock& d,
                           TileOperands<T> t, int64_t panel, const Panel<T>& of_b,
                           const Scratch<T>& own) {
  const int64_t column = panel * g.plan.panel_columns, first_row = tile_begin(g, chunk.begin);
  const int64_t vectors = ceil_div(panel_width(g, panel), kLanes<T>);
  const bool finish = d.last && !g.plan.turned && !g.epilogue.epilogue.is_trivial();
  t.columns = panel_width(g, panel);
  if (d.last && g.bias) t.bias = g.bias + column;
  t.b = of_b.b, t.b_stride = of_b.stride, t.packed = of_b.packed;
  int64_t row = first_row;
  for (int64_t tile = chunk.begin; tile < chunk.end; ++tile) {
    const int64_t next = tile_begin(g, tile + 1), rows = next - row;
    t.a = g.plan.pack_a ? own.rows + (row - first_row) : g.a + d.a_offset + row * g.p.a_row;
    t.c = g.plan.turned ? own.results + (row - first_row) * t.c_stride + column -
                              chunk.first_panel * g.plan.panel_columns
                        : g.c + row * g.p.n + column;
    if (t.packed) {
      packing_tile_kernel<T>(rows, g.plan.columnwise)(t);
      t.b = t.packed, t.b_stride = g.plan.panel_columns, t.packed = nullptr;
    } else {
      tile_kernel<T>(rows, vectors, g.plan.columnwise)(t);
    }
    if (finish) finish_tile(g, t, rows, row, column);
    row = next;
  }
}

/// A chunk of a turned product into its place: squares of the results transposed in registers, row
/// by row of Y (the chunk's columns), then finished.
template <class T>
static void store_turned(const Product<T>& g, const Chunk& chunk, const T* results) {
  constexpr int kWidth = kLanes<T>;
  const int64_t begin = tile_begin(g, chunk.begin), count = tile_begin(g, chunk.end) - begin;
  const int64_t stride = chunk_columns(g.plan, chunk), length = g.p.m;
  const int64_t first = chunk.first_panel * g.plan.panel_columns;
  const int64_t rows = at_most(stride, g.p.n - first);
  for (int64_t row = 0; row < rows; row += kWidth) {
    const int64_t live_rows = at_most(kWidth, rows - row);
    T* const y = g.c + (first + row) * length + begin;
    for (int64_t column = 0; column < count; column += kWidth) {
      Vec<T> r[kWidth];
      const int64_t live = at_most(kWidth, count - column);
      load_transposed(results + column * stride + row, stride, live, kWidth, r);
      for (int64_t i = 0; i < live_rows; ++i) write(y + i * length + column, r[i], live);
    }
    if (!g.epilogue.epilogue.is_trivial())
      for (int64_t i = 0; i < live_rows; ++i)
        g.epilogue.apply(y + i * length, count, begin,
                         g.offset + (first + row + i) * length + begin);
  }
}

template <class T>
static void multiply_chunk(const Product<T>& g, const Chunk& chunk, const Scratch<T>& own) {
  const int64_t row = tile_begin(g, chunk.begin), rows = tile_begin(g, chunk.end) - row;
  const int64_t first = chunk.pass * g.plan.pass_blocks;
  const int64_t last = at_most(first + g.plan.pass_blocks, g.plan.blocks);
  for (int64_t block = first; block < last; ++block) {
    const DepthBlock d = depth_block(g, block);
    TileOperands<T> t{.depth = d.depth,
                      .a_stride = g.plan.columnwise ? g.p.a_depth : g.p.a_row,
                      .c_stride = g.plan.turned ? chunk_columns(g.plan, chunk) : g.p.n,
                      .accumulate = !d.first};
    if (g.plan.pack_a) {
      pack_a(g.a + d.a_offset + row * g.p.a_row, g.p.a_row, g.p.a_depth, d.depth, rows, own.rows);
      t.a_stride = rows;
    }
    for (int64_t panel = chunk.first_panel; panel < chunk.last_panel; ++panel) {
      multiply_panel(g, chunk, d, t, panel, panel_of_b(g, chunk, d, panel, own), own);
    }
  }
  if (g.plan.turned) store_turned(g, chunk, own.results);
}

// ------------------------------------------------------------------------------------ entry points

/// Whether B streams past few rows of A. One that stays in L1 or L2 is read by the tiles as well.
template <class T> static bool is_few(const MatmulParams& p) {
  if (p.packed_b || p.m > kFewRows || (p.b_column != 1 && p.b_depth != 1)) return false;
  return p.m == 1 || p.b_column != 1 || p.k * p.n * int64_t(sizeof(T)) > kUnpackedBytes;
}

static int64_t work(const MatmulParams& p) {
  return p.m * p.n * p.k * p.sum.count;
}

template <class T> static int team_size(const MatmulParams& p, int threads) {
  const int64_t least = p.m == 1 && (is_few<T>(p) || p.packed_b) ? kRowSerialWork : kGemmSerialWork;
  return work(p) * p.batch.count < least ? 1 : threads;
}

template <class T> size_t matmul_workspace(const MatmulParams& p, Context ctx) {
  if (is_few<T>(p) || p.m == 0 || p.n == 0 || p.batch.count == 0) return 0;
  const int threads = team_size<T>(p, ctx.threads);
  const Plan plan = make_plan<T>(oriented<T>(p), is_turned<T>(p), threads);
  return size_t(Scratch<T>::bytes_of_all(plan, threads));
}

template <class T>
static Product<T> product_at(const MatmulParams& p, const Plan& plan,
                             const RowEpilogue<T>& epilogue, const T* a, const T* b, T* y,
                             const T* bias, int64_t index) {
  int64_t a_offset = 0, b_offset = 0;
  add_offsets(p.batch, index, a_offset, b_offset);
  const int64_t offset = index * p.m * p.n;
  return {p, plan, epilogue, a + a_offset, b + b_offset, y + offset, offset, bias};
}

/// Batches of few rows: strips of columns of all products, handed out together.
template <class T>
static void multiply_few(Context ctx, const MatmulParams& p, const T* a, const T* b, T* y,
                         const RowEpilogue<T>& epilogue) {
  Plan plan{};
  plan.blocks = p.sum.count * order::gemm_blocks<T>(p.k);
  ctx.threads = team_size<T>(p, ctx.threads);
  const int64_t most = p.m == 1 ? kRowStrip<T> : kFewStrip<T>;
  const int64_t shares = ceil_div(ceil_div(p.n, most), ctx.threads) * ctx.threads;
  const int64_t strip = ceil_div(p.n, shares * kLanes<T>) * kLanes<T>;
  const int64_t strips = ceil_div(p.n, strip);
  parallel_for(ctx, strips * p.batch.count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Product<T> g = product_at<T>(p, plan, epilogue, a, b, y, nullptr, i / strips);
      const int64_t column = i % strips * strip;
      multiply_strip(g, column, at_most(column + strip, p.n));
    }
  });
}

/// The strides of a packed B: from a panel's row to the next, and between columns of two panels.
template <class T> static MatmulParams with_strides(MatmulParams p) {
  if (!p.packed_b) return p;
  p.b_depth = panel_vectors<T>(p.n, packs_wide<T>(p.n)) * kLanes<T>;
  p.b_column = p.k;
  return p;
}

/// All panels of B for the blocks of a pass.
template <class T> static void pack_pass(Context ctx, const Product<T>& g, int64_t pass) {
  const Plan& plan = g.plan;
  const int64_t first = pass * plan.pass_blocks;
  const int64_t blocks = at_most(plan.pass_blocks, plan.blocks - first);
  T* const shared = static_cast<T*>(ctx.workspace);
  parallel_for(ctx, blocks * plan.panels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const DepthBlock d = depth_block(g, first + i / plan.panels);
      const int64_t panel = i % plan.panels;
      const T* from = g.b + d.b_offset + panel * plan.panel_columns * g.p.b_column;
      pack_b(from, g.p.b_depth, g.p.b_column, d.depth, panel_width(g, panel), plan.panel_columns,
             shared_panel(plan, shared, d.index, panel));
    }
  });
}

template <class T>
void matmul(Context ctx, const MatmulParams& params, const T* a, const T* b, T* y,
            const Epilogue<T>& epilogue) {
  MatmulParams p = with_strides<T>(params);
  if (p.m == 0 || p.n == 0 || p.batch.count == 0) return;
  if (is_few<T>(p)) return multiply_few(ctx, p, a, b, y, RowEpilogue<T>(epilogue));
  ctx.threads = team_size<T>(p, ctx.threads);
  const Plan plan = make_plan<T>(oriented<T>(p), is_turned<T>(p), ctx.threads);
  const T* bias = nullptr;
  Epilogue<T> last = epilogue;
  if (plan.turned) {
    p = oriented<T>(p);
    const T* const left = a;
    a = b, b = left;
  } else {  // the tiles add the bias as they are stored
    bias = epilogue.bias;
    last.bias = nullptr;
  }
  const RowEpilogue<T> rows(last);
  for (int i = 0; i < ctx.threads; ++i) *Scratch<T>(ctx.workspace, plan, i).packed_strip = -1;
  for (int64_t pass = 0; pass < plan.passes; ++pass) {
    if (plan.share_b) pack_pass(ctx, product_at(p, plan, rows, a, b, y, bias, 0), pass);
    parallel_chunks(ctx, p.batch.count * plan.strips * plan.parts, [&](int member, int64_t index) {
      const Scratch<T> own(ctx.workspace, plan, member);
      const int64_t unit = index / plan.parts, tile = index % plan.parts * plan.part_tiles;
      const int64_t panel = unit % plan.strips * plan.strip_panels;
      const Chunk chunk{tile,  at_most(tile + plan.part_tiles, plan.row_tiles),
                        panel, at_most(panel + plan.strip_panels, plan.panels),
                        pass,  unit == *own.packed_strip};
      multiply_chunk(product_at(p, plan, rows, a, b, y, bias, unit / plan.strips), chunk, own);
      if (plan.keep_b) *own.packed_strip = unit;
    });
  }
}

template <class T> int64_t matmul_packed_elements(int64_t k, int64_t n) {
  const int64_t columns = panel_vectors<T>(n, packs_wide<T>(n)) * kLanes<T>;
  return ceil_div(n, columns) * columns * k;
}

template <class T>
void matmul_pack(Context ctx, const T* b, int64_t b_depth, int64_t b_column, int64_t k, int64_t n,
                 T* packed) {
  const int64_t width = panel_vectors<T>(n, packs_wide<T>(n)) * kLanes<T>;
  parallel_for(ctx, ceil_div(n, width), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      pack_b(b + i * width * b_column, b_depth, b_column, k, at_most(width, n - i * width), width,
             packed + i * width * k);
  });
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
BRASA_INSTANTIATE(matmul_packed_elements, float, double)
BRASA_INSTANTIATE(matmul_pack, float, double)
BRASA_INSTANTIATE(column_sums, float, double)

}  // namespace brasa::cpu::BRASA_ISA
