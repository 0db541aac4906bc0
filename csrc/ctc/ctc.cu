#include "core/vmath.cuh"
#include "ctc/ctc.h"

namespace brasa::cuda {

constexpr int kThreads = 128;
constexpr int kReduceThreads = 256;
/// Log-probabilities beyond it are 0 or no number: exponents stay integers that float holds.
constexpr double kLimit = 1e6;
constexpr double kLn2 = 0.69314718055994530942;

// ------------------------------------------------------------------------------- probabilities

template <class T> struct Range;
template <> struct Range<float> {
  static constexpr int kLowest = -126;
  static constexpr double kLn2High = 0x1.62e4p-1, kLn2Low = 1.4286068203094172321e-6;
};
template <> struct Range<double> {
  static constexpr int kLowest = -1022;
  static constexpr double kLn2High = 0x1.62e42fefp-1, kLn2Low = 7.440617110012397e-11;
};

/// m 2^e; see ctc.h.
template <class T> struct Mass {
  T m, e;
};

template <class T> BRASA_DEVICE_FN Mass<T> nothing() {
  return {T(1), -infinity<T>()};
}

BRASA_DEVICE_FN float fused(float a, float b, float c) {
  return ::fmaf(a, b, c);
}
BRASA_DEVICE_FN double fused(double a, double b, double c) {
  return ::fma(a, b, c);
}

/// exp(x).
template <class T> BRASA_DEVICE_FN Mass<T> mass_of_log(T x) {
  const T bounded = x < T(-kLimit) ? T(-kLimit) : x > T(kLimit) ? T(kLimit) : x;
  const T n = T(::rint(double(bounded) / kLn2));
  const T r = fused(n, T(-Range<T>::kLn2Low), fused(n, T(-Range<T>::kLn2High), bounded));
  return {vexp(r), x < T(-kLimit) ? -infinity<T>() : n};
}

/// 2^d for whole d <= 0: the smallest normal number where it is less, or no number.
template <class T> BRASA_DEVICE_FN T power_of_two(T d) {
  return T(::ldexp(1.0, d >= T(Range<T>::kLowest) ? int(d) : Range<T>::kLowest));
}
template <class T> BRASA_DEVICE_FN T aligned(const Mass<T>& a, T e) {
  return a.m * power_of_two(a.e - e);
}

template <class T> BRASA_DEVICE_FN Mass<T> operator+(const Mass<T>& a, const Mass<T>& b) {
  const T e = cuda::max(a.e, b.e);
  return {aligned(a, e) + aligned(b, e), e};
}

/// a b, with its fraction in [1, 2) again, or no number.
template <class T> BRASA_DEVICE_FN Mass<T> operator*(const Mass<T>& a, const Mass<T>& b) {
  int n = 0;
  const T m = T(2 * ::frexp(double(a.m * b.m), &n));
  return {m, a.e + b.e + T(n - 1)};
}

template <class T> BRASA_DEVICE_FN T number_of(const Mass<T>& a) {
  if (a.e != a.e) return a.e;
  return a.e > T(Range<T>::kLowest) ? T(::ldexp(double(a.m), int(a.e))) : T(0);
}

// -------------------------------------------------------------------------------------- a sample

/// One sample's lengths and labels; `fits` says that nothing of it leads outside.
struct Sample {
  int64_t index, steps, length;
  const int64_t* labels;
  bool fits;

  /// Whether label j may follow label j - 1 without a blank.
  BRASA_DEVICE_FN bool skips(int64_t j) const {
    return j > 0 && j < length && labels[j] != labels[j - 1];
  }
};

BRASA_DEVICE_FN Sample sample_of(const CtcParams& p, int64_t index) {
  const int64_t steps = p.input_lengths[index], length = p.target_lengths[index];
  int64_t begin = 0;
  if (p.target_stride >= 0) {
    begin = index * p.target_stride;
  } else {
    for (int64_t i = 0; i < index; ++i) begin += p.target_lengths[i];
  }
  Sample s{index, steps, length, p.targets + begin, true};
  const int64_t most = p.target_stride >= 0 ? p.target_stride : p.target_size - begin;
  s.fits = steps >= 0 && steps <= p.steps && begin >= 0 && length >= 0 && length <= most &&
           (length <= p.longest || length > steps);
  for (int64_t j = 0; s.fits && j < length; ++j)
    s.fits = s.labels[j] >= 0 && s.labels[j] < p.classes && s.labels[j] != p.blank;
  return s;
}

/// Rows of masses of states, one state of probability 0 before the first. A thread writes states
/// that others read at the next step, so barriers stand between.
template <class T> struct Row {
  Mass<T>* data;
  BRASA_DEVICE_FN Mass<T>& operator[](int64_t j) const { return data[j + 1]; }
};

template <class T> struct Scratch {
  int64_t width, rows;  ///< rows: how many steps are kept
  Mass<T>* data;

  static int64_t elements(int64_t longest, int64_t rows) { return 2 * (rows + 2) * (longest + 3); }
  /// Where step t is kept: of two rows by turns; of more each has its own.
  BRASA_DEVICE_FN int64_t slot(int64_t t) const { return rows == 2 ? t & 1 : t; }
  BRASA_DEVICE_FN Row<T> blanks(int64_t t) const { return {data + slot(t) * 2 * width}; }
  BRASA_DEVICE_FN Row<T> labels(int64_t t) const { return {data + (slot(t) * 2 + 1) * width}; }
  /// p b of the step after, and b; by turns.
  BRASA_DEVICE_FN Row<T> blanks_back(bool with_step) const {
    return {data + (rows + with_step) * 2 * width};
  }
  BRASA_DEVICE_FN Row<T> labels_back(bool with_step) const {
    return {data + ((rows + with_step) * 2 + 1) * width};
  }
};

/// Calls f(j) for the states j = 0 ... length of this thread.
template <class F> BRASA_DEVICE_FN void each_state(const Sample& s, const F& f) {
  for (int64_t j = threadIdx.x; j <= s.length; j += kThreads) f(j);
}

template <class T>
BRASA_DEVICE_FN const T* step_of(const CtcParams& p, const Sample& s, const T* log_probs,
                                 int64_t t) {
  return log_probs + t * p.step_stride + s.index * p.sample_stride;
}

template <class T>
BRASA_DEVICE_FN void step_ahead(const CtcParams& p, const Sample& s, const Scratch<T>& scratch,
                                const T* log_probs, int64_t t) {
  const T* const at = step_of(p, s, log_probs, t);
  const Mass<T> blank = mass_of_log(at[p.blank]);
  const Row<T> blanks = scratch.blanks(t - (t > 0)), labels = scratch.labels(t - (t > 0));
  const Row<T> blanks_now = scratch.blanks(t), labels_now = scratch.labels(t);
  if (threadIdx.x == 0) labels_now[-1] = nothing<T>();
  each_state(s, [&](int64_t j) {
    const bool inside = j < s.length;
    const Mass<T> of_label = inside ? mass_of_log(at[s.labels[j]]) : nothing<T>();
    if (t == 0) {
      blanks_now[j] = j == 0 ? blank : nothing<T>();
      labels_now[j] = j == 0 ? of_label : nothing<T>();
      return;
    }
    const Mass<T> before = labels[j - 1], here = blanks[j];
    blanks_now[j] = (here + before) * blank;
    Mass<T> sum = labels[j] + here;
    if (s.skips(j)) sum = sum + before;
    labels_now[j] = sum * of_label;
  });
  __syncthreads();
}

template <class T> BRASA_DEVICE_FN Mass<T> total(const Sample& s, const Scratch<T>& scratch) {
  const Mass<T> one{T(1), T(0)};
  if (s.steps == 0) return s.length == 0 ? one : nothing<T>();
  return (scratch.blanks(s.steps - 1)[s.length] + scratch.labels(s.steps - 1)[s.length - 1]) * one;
}

template <class T> BRASA_DEVICE_FN void last_step(const Sample& s, const Scratch<T>& scratch) {
  const Mass<T> one{T(1), T(0)};
  each_state(s, [&](int64_t j) {
    scratch.blanks_back(false)[j] = j == s.length ? one : nothing<T>();
    scratch.labels_back(false)[j] = j == s.length - 1 ? one : nothing<T>();
  });
  if (threadIdx.x == 0) {
    scratch.blanks_back(true)[s.length + 1] = nothing<T>();
    scratch.labels_back(true)[s.length + 1] = nothing<T>();
  }
}

template <class T>
BRASA_DEVICE_FN void step_back(const CtcParams& p, const Sample& s, const Scratch<T>& scratch,
                               const T* log_probs, int64_t t) {
  const T* const at = step_of(p, s, log_probs, t);
  const Mass<T> blank = mass_of_log(at[p.blank]), one{T(1), T(0)};
  const Row<T> blanks = scratch.blanks_back(true), labels = scratch.labels_back(true);
  each_state(s, [&](int64_t j) {
    const Mass<T> of_label = j < s.length ? mass_of_log(at[s.labels[j]]) : nothing<T>();
    blanks[j] = scratch.blanks_back(false)[j] * blank;
    labels[j] = scratch.labels_back(false)[j] * of_label;
  });
  __syncthreads();
  each_state(s, [&](int64_t j) {
    Mass<T> sum = labels[j] + blanks[j + 1];
    if (s.skips(j + 1)) sum = sum + labels[j + 1];
    scratch.blanks_back(false)[j] = (blanks[j] + labels[j]) * one;
    scratch.labels_back(false)[j] = sum * one;
  });
  __syncthreads();
}

template <class T>
BRASA_DEVICE_FN void write_occupation(const Sample& s, const Scratch<T>& scratch, int64_t t,
                                      const Mass<T>& scale, T* row) {
  const Row<T> blanks = scratch.blanks(t), labels = scratch.labels(t);
  T of_blanks = 0;
  each_state(s, [&](int64_t j) {
    of_blanks += number_of(blanks[j] * scratch.blanks_back(false)[j] * scale);
    if (j < s.length) row[1 + j] = number_of(labels[j] * scratch.labels_back(false)[j] * scale);
  });
  of_blanks = simt::block_reduce_sum(of_blanks);
  if (threadIdx.x == 0) row[0] = of_blanks;
}

/// A block computes the loss of its samples one after the other.
template <class T>
__global__ void __launch_bounds__(kThreads)
    ctc_forward_kernel(const T* log_probs, CtcParams p, T* losses, T* occupation,
                       Scratch<T> scratch, int64_t scratch_elements) {
  const T nan = T(0) / T(0);
  const int64_t stride = p.longest + 1;
  scratch.data += blockIdx.x * scratch_elements;
  for (int64_t n = blockIdx.x; n < p.samples; n += gridDim.x) {
    const Sample s = sample_of(p, n);
    T* const q = occupation ? occupation + n * p.steps * stride : nullptr;
    Mass<T> z = nothing<T>();
    if (s.fits && s.length <= s.steps) {
      for (int64_t t = 0; t < s.steps; ++t) step_ahead(p, s, scratch, log_probs, t);
      z = total(s, scratch);
    }
    const bool impossible = z.e == -infinity<T>();
    if (threadIdx.x == 0)
      losses[n] = !s.fits                         ? nan
                  : impossible && p.zero_infinity ? T(0)
                                                  : T(-(double(z.e) * kLn2 + ::log(double(z.m))));
    if (q && s.fits && impossible) {
      for (int64_t i = threadIdx.x; i < s.steps * stride; i += kThreads)
        q[i] = p.zero_infinity ? T(0) : nan;
    } else if (q && s.fits) {
      const Mass<T> scale{T(1) / z.m, -z.e};
      last_step(s, scratch);
      for (int64_t t = s.steps - 1; t >= 0; --t) {
        write_occupation(s, scratch, t, scale, q + t * stride);
        if (t > 0) step_back(p, s, scratch, log_probs, t);
      }
    }
    __syncthreads();  // the scratch is another sample's now
  }
}

/// What a sample's loss is divided by.
BRASA_DEVICE_FN double divisor_of(const CtcParams& p, int64_t sample) {
  if (p.reduction != Reduction::mean) return 1;
  const int64_t length = p.target_lengths[sample];
  return double(p.samples) * double(length > 1 ? length : 1);
}

template <class T>
__global__ void __launch_bounds__(kReduceThreads)
    ctc_reduce_kernel(const T* of_sample, CtcParams p, T* loss) {
  double sum = 0;
  for (int64_t n = threadIdx.x; n < p.samples; n += kReduceThreads)
    sum += double(of_sample[n]) / divisor_of(p, n);
  sum = simt::block_reduce_sum(sum);
  if (threadIdx.x == 0)
    loss[0] = p.samples == 0 && p.reduction == Reduction::mean ? T(0) / T(0) : T(sum);
}

/// A warp writes a row of classes: zeros, the blank, then each label once, where it occurs first.
template <class T>
__global__ void __launch_bounds__(kThreads)
    ctc_backward_kernel(const T* dy, CtcParams p, const T* occupation, T* dlog_probs) {
  constexpr int kWarps = kThreads / simt::kWarpSize;
  const int lane = threadIdx.x % simt::kWarpSize;
  for (int64_t i = int64_t(blockIdx.x) * kWarps + threadIdx.x / simt::kWarpSize;
       i < p.steps * p.samples; i += int64_t(gridDim.x) * kWarps) {
    const int64_t n = i % p.samples, t = i / p.samples;
    T* const row = dlog_probs + t * p.step_stride + n * p.sample_stride;
    for (int64_t c = lane; c < p.classes; c += simt::kWarpSize) row[c] = 0;
    __syncwarp();
    const Sample s = sample_of(p, n);
    if (!s.fits || t >= s.steps) continue;
    const T g = T(-double(dy[p.reduction == Reduction::none ? n : 0]) / divisor_of(p, n));
    const T* const q = occupation + (n * p.steps + t) * (p.longest + 1);
    if (lane == 0) row[p.blank] = g * q[0];
    const int64_t length = s.length < p.longest ? s.length : p.longest;
    for (int64_t j = lane; j < length; j += simt::kWarpSize) {
      const int64_t label = s.labels[j];
      bool first = true;
      for (int64_t k = 0; k < j && first; ++k) first = s.labels[k] != label;
      if (!first) continue;
      T sum = 0;
      for (int64_t k = j; k < length; ++k)
        if (s.labels[k] == label) sum += g * q[1 + k];
      row[label] = sum;
    }
  }
}

// ----------------------------------------------------------------------------------------
// launchers

/// Blocks with scratch of their own: as many as keep a GPU busy.
inline int64_t blocks_of(const CtcParams& p) {
  constexpr int64_t kMost = 1024;
  return p.samples < kMost ? p.samples : kMost;
}

template <class T> size_t ctc_forward_workspace(const CtcParams& p, bool occupation, int) {
  const int64_t each = Scratch<T>::elements(p.longest, occupation ? p.steps : 2);
  const size_t losses = p.reduction == Reduction::none ? 0 : size_t(p.samples) * sizeof(T);
  return size_t(blocks_of(p) * each) * sizeof(Mass<T>) + losses;
}

template <class T>
void ctc_forward(Context ctx, const T* log_probs, CtcParams p, T* losses, T* occupation) {
  const auto stream = static_cast<simt::stream_t>(ctx.stream);
  const bool reduced = p.reduction != Reduction::none;
  const int64_t blocks = blocks_of(p), rows = occupation ? p.steps : 2;
  const int64_t each = Scratch<T>::elements(p.longest, rows);
  const Scratch<T> scratch{p.longest + 3, rows, static_cast<Mass<T>*>(ctx.workspace)};
  T* const of_sample = reduced ? reinterpret_cast<T*>(scratch.data + blocks * each) : losses;
  if (blocks > 0)
    simt::launch({.grid = dim3(unsigned(blocks)), .block = dim3(kThreads), .stream = stream},
                 ctc_forward_kernel<T>, log_probs, p, of_sample, occupation, scratch, each);
  if (reduced)
    simt::launch({.block = dim3(kReduceThreads), .stream = stream}, ctc_reduce_kernel<T>, of_sample,
                 p, losses);
}

template <class T>
void ctc_backward(Context ctx, const T* dy, CtcParams p, const T* occupation, T* dlog_probs) {
  if (p.steps * p.samples == 0) return;
  simt::launch({.grid = simt::blocks_for(p.steps * p.samples, kThreads / simt::kWarpSize),
                .block = dim3(kThreads),
                .stream = static_cast<simt::stream_t>(ctx.stream)},
               ctc_backward_kernel<T>, dy, p, occupation, dlog_probs);
}

BRASA_INSTANTIATE(ctc_forward_workspace, float, double)
BRASA_INSTANTIATE(ctc_forward, float, double)
BRASA_INSTANTIATE(ctc_backward, float, double)

}  // namespace brasa::cuda
