#include "ctc/ctc.h"
#include "ctc/mass.cuh"

namespace brasa::cuda {

constexpr int kThreads = 128;
constexpr int kReduceThreads = 256;

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

/// A row of masses of states, one state of probability 0 before the first and after the last. A
/// thread writes states that others read at the next step, so barriers stand between.
template <class T> struct Row {
  Mass<T>* data;
  BRASA_DEVICE_FN Mass<T>& operator[](int64_t j) const { return data[j + 1]; }
};

/// Rows of blanks and of labels. Those that a step reads are in shared memory where they fit: from
/// L2 they were half of its time. What the way back needs is kept beside, for each step.
template <class T> struct Scratch {
  static constexpr int64_t kWorkRows = 10;
  int64_t width;
  Mass<T>*kept, *work;

  static int64_t width_of(int64_t longest) { return longest + 3; }
  BRASA_DEVICE_FN Row<T> row(Mass<T>* rows, int64_t i) const { return {rows + i * width}; }
  BRASA_DEVICE_FN Row<T> blanks(int64_t t) const { return row(work, (t & 1) * 2); }
  BRASA_DEVICE_FN Row<T> labels(int64_t t) const { return row(work, (t & 1) * 2 + 1); }
  BRASA_DEVICE_FN Row<T> kept_blanks(int64_t t) const { return row(kept, t * 2); }
  BRASA_DEVICE_FN Row<T> kept_labels(int64_t t) const { return row(kept, t * 2 + 1); }
  /// p b of step t.
  BRASA_DEVICE_FN Row<T> blanks_with(int64_t t) const { return row(work, 4 + (t & 1) * 2); }
  BRASA_DEVICE_FN Row<T> labels_with(int64_t t) const { return row(work, 5 + (t & 1) * 2); }
  /// b, of which each thread reads its own states alone.
  BRASA_DEVICE_FN Row<T> blanks_back() const { return row(work, 8); }
  BRASA_DEVICE_FN Row<T> labels_back() const { return row(work, 9); }
};

/// Calls f(j) for the states j = 0 ... length of this thread.
template <class F> BRASA_DEVICE_FN void each_state(const Sample& s, const F& f) {
  for (int64_t j = threadIdx.x; j <= s.length; j += kThreads) f(j);
}

/// What a step takes from memory: log-probabilities and, on the way back, masses, those of this
/// thread's first state. They are read a step before, so that no step waits for them; states beyond
/// the first kThreads are read when they are needed.
template <class T> struct Ahead {
  T blank, label;
  Mass<T> kept_blank, kept_label;
};

/// Log-probabilities of the states of a sample.
template <class T> struct Reader {
  const CtcParams& p;
  const Sample& s;
  const T* log_probs;
  bool skips, skips_next;  ///< of this thread's first state, and of the one behind it

  BRASA_DEVICE_FN Reader(const CtcParams& params, const Sample& sample, const T* all)
      : p(params),
        s(sample),
        log_probs(all + sample.index * params.sample_stride),
        skips(sample.fits && sample.skips(threadIdx.x)),
        skips_next(sample.fits && sample.skips(int64_t(threadIdx.x) + 1)) {}

  BRASA_DEVICE_FN T label_at(int64_t t, int64_t j) const {
    return j < s.length ? log_probs[t * p.step_stride + s.labels[j]] : -infinity<T>();
  }
  BRASA_DEVICE_FN Ahead<T> ahead(int64_t t) const {
    if (t < 0 || t >= s.steps) return {};
    return {.blank = log_probs[t * p.step_stride + p.blank], .label = label_at(t, threadIdx.x)};
  }
  BRASA_DEVICE_FN Mass<T> label(const Ahead<T>& now, int64_t t, int64_t j) const {
    return mass_of_log(j == threadIdx.x ? now.label : label_at(t, j));
  }
  BRASA_DEVICE_FN bool skips_to(int64_t j) const {
    return j == threadIdx.x ? skips : j == int64_t(threadIdx.x) + 1 ? skips_next : s.skips(j);
  }
};

template <class T>
BRASA_DEVICE_FN void step_ahead(const Reader<T>& reader, const Scratch<T>& scratch,
                                const Ahead<T>& now, int64_t t) {
  const Sample& s = reader.s;
  const Mass<T> blank = mass_of_log(now.blank);
  const Row<T> blanks = scratch.blanks(t + 1), labels = scratch.labels(t + 1);  // of step t - 1
  const Row<T> blanks_now = scratch.blanks(t), labels_now = scratch.labels(t);
  if (threadIdx.x == 0) labels_now[-1] = nothing<T>();
  each_state(s, [&](int64_t j) {
    Mass<T> of_blank = nothing<T>(), of_label = of_blank;
    if (t == 0) {
      if (j == 0) of_blank = blank, of_label = reader.label(now, t, j);
    } else {
      const Mass<T> before = labels[j - 1], here = blanks[j];
      Mass<T> sum = labels[j] + here;
      if (reader.skips_to(j)) sum = sum + before;
      of_blank = (here + before) * blank;
      of_label = sum * reader.label(now, t, j);
    }
    blanks_now[j] = of_blank;
    labels_now[j] = of_label;
    if (!scratch.kept) return;
    scratch.kept_blanks(t)[j] = of_blank;
    scratch.kept_labels(t)[j] = of_label;
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
    scratch.blanks_back()[j] = j == s.length ? one : nothing<T>();
    scratch.labels_back()[j] = j == s.length - 1 ? one : nothing<T>();
  });
  if (threadIdx.x != 0) return;
  for (int t = 0; t < 2; ++t)
    scratch.blanks_with(t)[s.length + 1] = scratch.labels_with(t)[s.length + 1] = nothing<T>();
}

template <class T>
BRASA_DEVICE_FN void step_back(const Reader<T>& reader, const Scratch<T>& scratch,
                               const Ahead<T>& now, int64_t t) {
  const Sample& s = reader.s;
  const Mass<T> blank = mass_of_log(now.blank), one{T(1), T(0)};
  const Row<T> blanks = scratch.blanks_with(t), labels = scratch.labels_with(t);
  each_state(s, [&](int64_t j) {
    blanks[j] = scratch.blanks_back()[j] * blank;
    labels[j] = scratch.labels_back()[j] * reader.label(now, t, j);
  });
  __syncthreads();
  each_state(s, [&](int64_t j) {
    Mass<T> sum = labels[j] + blanks[j + 1];
    if (reader.skips_to(j + 1)) sum = sum + labels[j + 1];
    scratch.blanks_back()[j] = (blanks[j] + labels[j]) * one;
    scratch.labels_back()[j] = sum * one;
  });
}

/// Writes the occupation of labels, and returns this thread's part of that of blanks.
template <class T>
BRASA_DEVICE_FN T write_occupation(const Sample& s, const Scratch<T>& scratch, const Ahead<T>& now,
                                   int64_t t, const Mass<T>& scale, T* row) {
  T of_blanks = 0;
  each_state(s, [&](int64_t j) {
    const bool first = j == threadIdx.x;
    const Mass<T> blank = first ? now.kept_blank : scratch.kept_blanks(t)[j];
    const Mass<T> label = first ? now.kept_label : scratch.kept_labels(t)[j];
    of_blanks += number_of(blank * scratch.blanks_back()[j] * scale);
    if (j < s.length) row[1 + j] = number_of(label * scratch.labels_back()[j] * scale);
  });
  return of_blanks;
}

/// From the last step to the first: q = occupation of all states.
template <class T>
BRASA_DEVICE_FN void walk_back(const Reader<T>& reader, const Scratch<T>& scratch,
                               const Mass<T>& scale, T* q) {
  constexpr int kWarps = kThreads / simt::kWarpSize;
  BRASA_SHARED(T, of_warp, [2][kWarps]);
  const Sample& s = reader.s;
  const int64_t stride = reader.p.longest + 1;
  const auto ahead = [&](int64_t t) {
    Ahead<T> next = reader.ahead(t);
    if (t < 0 || threadIdx.x > s.length) return next;
    next.kept_blank = scratch.kept_blanks(t)[threadIdx.x];
    next.kept_label = scratch.kept_labels(t)[threadIdx.x];
    return next;
  };
  last_step(s, scratch);
  Ahead<T> now = ahead(s.steps - 1);
  for (int64_t t = s.steps - 1; t >= 0; --t) {
    const Ahead<T> next = ahead(t - 1);
    const T sum = simt::warp_sum(write_occupation(s, scratch, now, t, scale, q + t * stride));
    if (threadIdx.x % simt::kWarpSize == 0) of_warp[t & 1][threadIdx.x / simt::kWarpSize] = sum;
    step_back(reader, scratch, now, t);  // of step 0 for its barrier alone
    if (threadIdx.x == 0) {
      T of_blanks = 0;
      for (int warp = 0; warp < kWarps; ++warp) of_blanks += of_warp[t & 1][warp];
      q[t * stride] = of_blanks;
    }
    now = next;
  }
}

/// A block computes the loss of its samples one after the other. Its rows are `in_shared` memory,
/// or behind those it keeps.
template <class T>
__global__ void __launch_bounds__(kThreads)
    ctc_forward_kernel(const T* log_probs, CtcParams p, T* losses, T* occupation,
                       Scratch<T> scratch, int64_t kept_elements, bool in_shared) {
  BRASA_DYN_SHARED(Mass<T>, shared);
  const T nan = T(0) / T(0);
  const int64_t stride = p.longest + 1, own = in_shared ? 0 : Scratch<T>::kWorkRows * scratch.width;
  Mass<T>* const mine = scratch.kept + blockIdx.x * (kept_elements + own);
  scratch.kept = occupation ? mine : nullptr;
  scratch.work = in_shared ? shared : mine + kept_elements;
  for (int64_t n = blockIdx.x; n < p.samples; n += gridDim.x) {
    const Sample s = sample_of(p, n);
    const Reader<T> reader(p, s, log_probs);
    T* const q = occupation ? occupation + n * p.steps * stride : nullptr;
    Mass<T> z = nothing<T>();
    if (s.fits && s.length <= s.steps) {
      Ahead<T> now = reader.ahead(0);
      for (int64_t t = 0; t < s.steps; ++t) {
        const Ahead<T> next = reader.ahead(t + 1);
        step_ahead(reader, scratch, now, t);
        now = next;
      }
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
      walk_back(reader, scratch, {T(1) / z.m, -z.e}, q);
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

/// Scratch of a block: what is kept of all steps, and rows to work in.
template <class T> int64_t kept_elements(const CtcParams& p, bool occupation) {
  return occupation ? 2 * p.steps * Scratch<T>::width_of(p.longest) : 0;
}
template <class T> int64_t work_elements(const CtcParams& p) {
  return Scratch<T>::kWorkRows * Scratch<T>::width_of(p.longest);
}
/// Whether the rows to work in fit the shared memory of a block.
template <class T> bool works_in_shared(const CtcParams& p) {
  return work_elements<T>(p) * int64_t(sizeof(Mass<T>)) <= 48 * 1024 - 256;
}
template <class T> size_t scratch_of_block(const CtcParams& p, bool occupation) {
  return size_t(kept_elements<T>(p, occupation) +
                (works_in_shared<T>(p) ? 0 : work_elements<T>(p)));
}

template <class T> size_t ctc_forward_workspace(const CtcParams& p, bool occupation, int) {
  const size_t losses = p.reduction == Reduction::none ? 0 : size_t(p.samples) * sizeof(T);
  return size_t(blocks_of(p)) * scratch_of_block<T>(p, occupation) * sizeof(Mass<T>) + losses;
}

template <class T>
void ctc_forward(Context ctx, const T* log_probs, CtcParams p, T* losses, T* occupation) {
  const auto stream = static_cast<simt::stream_t>(ctx.stream);
  const bool reduced = p.reduction != Reduction::none, shared = works_in_shared<T>(p);
  const int64_t blocks = blocks_of(p);
  auto* const data = static_cast<Mass<T>*>(ctx.workspace);
  const Scratch<T> scratch{Scratch<T>::width_of(p.longest), data, nullptr};
  T* const of_sample =
      reduced ? reinterpret_cast<T*>(data + blocks * scratch_of_block<T>(p, occupation)) : losses;
  if (blocks > 0)
    simt::launch({.grid = dim3(unsigned(blocks)),
                  .block = dim3(kThreads),
                  .smem = shared ? work_elements<T>(p) * sizeof(Mass<T>) : 0,
                  .stream = stream},
                 ctc_forward_kernel<T>, log_probs, p, of_sample, occupation, scratch,
                 kept_elements<T>(p, occupation), shared);
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
