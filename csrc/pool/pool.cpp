#include "pool/pool.h"

#include "core/parallel.h"
#include "pool/halving.h"
#include "pool/halving_backward.h"
#include "pool/pixels.h"
#include "pool/planes.h"
#include "pool/planes_backward.h"

namespace brasa::cpu::BRASA_ISA {

/// Elements of input per chunk, some 10 us of work.
constexpr int64_t kPoolGrain = 32 * 1024;
constexpr int64_t kPoolChunksPerThread = 4;

/// Rows per chunk: at most kPoolChunksPerThread chunks per thread, because chunks own scratch.
static int64_t rows_per_chunk(int64_t rows, int64_t elements_per_row, int threads) {
  const int64_t chunks = kPoolChunksPerThread * threads;
  const int64_t even = (rows + chunks - 1) / chunks;
  const int64_t worth_it = kPoolGrain / (elements_per_row > 0 ? elements_per_row : 1) + 1;
  return even > worth_it ? even : worth_it;
}

template <class T> size_t pool_workspace(const PoolParams& p, int threads) {
  if (p.channels_last) return 0;
  const auto larger = [](int64_t a, int64_t b) { return a > b ? a : b; };
  const int64_t forward = PlaneBuffers<T>::elements(p), backward = GradientBuffers<T>::elements(p);
  const int64_t most = larger(larger(forward, backward), HalvingBuffers<T>::elements(p.w));
  return sizeof(T) * size_t(most) * size_t(threads == 1 ? 1 : kPoolChunksPerThread * threads);
}

/// f(begin, end, scratch) over the rows of all planes; rows are of the result or, backward, of dx.
template <class T, class F>
static void each_plane_chunk(Context ctx, const PoolParams& p, int64_t rows_per_plane,
                             int64_t scratch_elements, const F& f) {
  const int64_t rows = p.n * p.c * rows_per_plane;
  const int64_t grain = rows_per_chunk(
      rows, p.h.in * p.w.in / (rows_per_plane > 0 ? rows_per_plane : 1), ctx.threads);
  T* scratch = static_cast<T*>(ctx.workspace);
  parallel_for(ctx, rows, grain, [&](int64_t begin, int64_t end) {
    f(begin, end, scratch + begin / grain * scratch_elements);
  });
}

/// f(row, first channel, last channel) over the rows of all images. Few rows (global pooling) are
/// cut along the channels as well.
template <class T, class F>
static void each_pixel_row(Context ctx, const PoolParams& p, int64_t rows_per_image, const F& f) {
  const int64_t rows = p.n * rows_per_image, group = kPixelVectors * kLanes<T>;
  const bool cut = rows < kPoolChunksPerThread * ctx.threads;
  const int64_t width = cut ? group : (p.c > 0 ? p.c : 1), cuts = (p.c + width - 1) / width;
  const int64_t elements = p.h.in * p.w.in * width / (rows_per_image > 0 ? rows_per_image : 1);
  parallel_for(ctx, rows * cuts, kPoolGrain / (elements > 0 ? elements : 1) + 1,
               [&](int64_t begin, int64_t end) {
                 for (int64_t i = begin; i < end; ++i) {
                   const int64_t first = i % cuts * width;
                   f(i / cuts, first, first + width < p.c ? first + width : p.c);
                 }
               });
}

template <class T>
void max_pool_forward(Context ctx, const T* x, T* y, PoolOffsets offsets, const PoolParams& p) {
  visit_offsets(offsets, [&]<class Offset>() {
    Offset* kept = static_cast<Offset*>(offsets.data);
    if (NarrowWindows<T>::fits(p)) {
      const NarrowWindows<T> windows(p.c);
      each_pixel_row<T>(ctx, p, p.h.out, [&](int64_t row, int64_t, int64_t) {
        halve_narrow(p, windows, x, y, kept, row);
      });
    } else if (p.channels_last) {
      each_pixel_row<T>(ctx, p, p.h.out, [&](int64_t row, int64_t c_begin, int64_t c_end) {
        (p.h.kernel == 2 && p.w.kernel == 2 ? max_pool_pixels<2, T, Offset>
         : p.h.kernel == 3 && p.w.kernel == 3
             ? max_pool_pixels<3, T, Offset>
             : max_pool_pixels<0, T, Offset>)(p, x, y, kept, row, c_begin, c_end);
      });
    } else if (const int kernel = halving_kernel(p)) {
      each_plane_chunk<T>(ctx, p, p.h.out, 0, [&](int64_t begin, int64_t end, T*) {
        (kernel == 2 ? halve_planes<2, T, Offset> : halve_planes<3, T, Offset>)(p, x, y, kept,
                                                                                begin, end);
      });
    } else {
      each_plane_chunk<T>(ctx, p, p.h.out, PlaneBuffers<T>::elements(p),
                          [&](int64_t begin, int64_t end, T* scratch) {
                            max_pool_planes(p, x, y, kept, begin, end, scratch);
                          });
    }
  });
}

template <class T> void mean_pool_forward(Context ctx, const T* x, T* y, const PoolParams& p) {
  if (p.channels_last) {
    each_pixel_row<T>(ctx, p, p.h.out, [&](int64_t row, int64_t c_begin, int64_t c_end) {
      (p.h.kernel == 2 && p.w.kernel == 2   ? mean_pool_pixels<2, T>
       : p.h.kernel == 3 && p.w.kernel == 3 ? mean_pool_pixels<3, T>
                                            : mean_pool_pixels<0, T>)(p, x, y, row, c_begin, c_end);
    });
  } else {
    const auto pool = halving_kernel(p) == 2   ? halve_planes_to_means<2, T>
                      : halving_kernel(p) == 3 ? halve_planes_to_means<3, T>
                                               : mean_pool_planes<T>;
    each_plane_chunk<T>(
        ctx, p, p.h.out, PlaneBuffers<T>::elements(p),
        [&](int64_t begin, int64_t end, T* scratch) { pool(p, x, y, begin, end, scratch); });
  }
}

template <class T, class Offset>
static void max_backward(Context ctx, const T* dy, const Offset* offsets, T* dx,
                         const PoolParams& p) {
  const int halving = halving_kernel(p);
  if (NarrowPlan<T>::fits(p, halving)) {
    const NarrowPlan<T> plan(p.c);
    each_pixel_row<T>(ctx, p, pairs(p.h), [&](int64_t pair, int64_t, int64_t) {
      halve_narrow_backward(p, plan, dy, offsets, dx, pair);
    });
  } else if (halving && p.channels_last) {
    each_pixel_row<T>(ctx, p, pairs(p.h), [&](int64_t pair, int64_t c_begin, int64_t c_end) {
      (halving == 2
           ? halve_pixels_backward<2, T, Offset>
           : halve_pixels_backward<3, T, Offset>)(p, dy, offsets, dx, pair, c_begin, c_end);
    });
  } else if (halving) {
    each_plane_chunk<T>(ctx, p, pairs(p.h), HalvingBuffers<T>::elements(p.w),
                        [&](int64_t begin, int64_t end, T* scratch) {
                          (halving == 2 ? halve_planes_backward<2, T, Offset>
                                        : halve_planes_backward<3, T, Offset>)(p, dy, offsets, dx,
                                                                               begin, end, scratch);
                        });
  } else if (p.channels_last) {
    each_pixel_row<T>(ctx, p, p.h.in, [&](int64_t row, int64_t c_begin, int64_t c_end) {
      max_pool_pixels_backward(p, dy, offsets, dx, row, c_begin, c_end);
    });
  } else {
    each_plane_chunk<T>(ctx, p, p.h.in, GradientBuffers<T>::elements(p),
                        [&](int64_t begin, int64_t end, T* scratch) {
                          max_pool_planes_backward(p, dy, offsets, dx, begin, end, scratch);
                        });
  }
}

template <class T>
void max_pool_backward(Context ctx, const T* dy, PoolOffsets offsets, T* dx, const PoolParams& p) {
  if (offsets.wide)
    max_backward(ctx, dy, static_cast<const int32_t*>(offsets.data), dx, p);
  else
    max_backward(ctx, dy, static_cast<const uint8_t*>(offsets.data), dx, p);
}

template <class T> void mean_pool_backward(Context ctx, const T* dy, T* dx, const PoolParams& p) {
  if (p.channels_last) {
    each_pixel_row<T>(ctx, p, p.h.in, [&](int64_t row, int64_t c_begin, int64_t c_end) {
      mean_pool_pixels_backward(p, dy, dx, row, c_begin, c_end);
    });
  } else if (halving_kernel(p) == 2) {
    each_plane_chunk<T>(ctx, p, pairs(p.h), GradientBuffers<T>::elements(p),
                        [&](int64_t begin, int64_t end, T* scratch) {
                          halve_means_backward(p, dy, dx, begin, end, scratch);
                        });
  } else {
    each_plane_chunk<T>(ctx, p, p.h.in, GradientBuffers<T>::elements(p),
                        [&](int64_t begin, int64_t end, T* scratch) {
                          mean_pool_planes_backward(p, dy, dx, begin, end, scratch);
                        });
  }
}

static int64_t input_of(const PoolAxis& a, int64_t o, int64_t tap) {
  const int64_t i = window_begin(a, o) + tap * (a.adaptive ? 1 : a.dilation);
  return i < a.in ? i : -1;
}

template <class T>
void max_pool_indices(Context ctx, PoolOffsets offsets, T* indices, const PoolParams& p) {
  const int64_t inner = p.channels_last ? p.c : 1, n = p.n * p.c * p.h.out * p.w.out;
  parallel_for(ctx, n, kPoolGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t offset = offsets.wide ? static_cast<const int32_t*>(offsets.data)[i]
                                          : static_cast<const uint8_t*>(offsets.data)[i];
      const int64_t ow = i / inner % p.w.out, oh = i / inner / p.w.out % p.h.out;
      const int64_t ih = input_of(p.h, oh, offset / p.w.kernel);
      const int64_t iw = input_of(p.w, ow, offset % p.w.kernel);
      indices[i] = ih < 0 || iw < 0 ? -1 : ih * p.w.in + iw;
    }
  });
}

BRASA_INSTANTIATE(pool_workspace, float, double)
BRASA_INSTANTIATE(max_pool_forward, float, double)
BRASA_INSTANTIATE(max_pool_backward, float, double)
BRASA_INSTANTIATE(mean_pool_forward, float, double)
BRASA_INSTANTIATE(mean_pool_backward, float, double)
BRASA_INSTANTIATE(max_pool_indices, int64_t)

}  // namespace brasa::cpu::BRASA_ISA
