#include "ctc/ctc.h"

#include "core/parallel.h"
#include "core/vmath.h"

namespace brasa::cpu::BRASA_ISA {
namespace {

/// Elements of a parallel chunk of the gradient, and steps of all samples that one thread takes
/// alone: some 10 us each.
constexpr int64_t kRowGrain = 32 * 1024, kSerialSteps = 256;
/// Log-probabilities beyond it are 0 or no number: exponents stay integers that float holds.
constexpr double kLimit = 1e6;
constexpr double kLn2 = 0.69314718055994530942;

// ------------------------------------------------------------------------------- probabilities

/// m 2^e, element by element; see ctc.h.
template <class V> struct Mass {
  V m, e;
};

template <class V> BRASA_INLINE Mass<V> nothing() {
  return {value<V>(1), -infinity<V>()};
}

/// exp(x).
template <class V> BRASA_INLINE Mass<V> mass_of_log(V x) {
  const Reduced<V> z = reduce_by_ln2(clamp(x, -kLimit, kLimit));
  return {expm1_reduced(z) + value<V>(1), x < value<V>(-kLimit) ? -infinity<V>() : z.n};
}

/// The fraction of `a` with the exponent `e`, which is not below its own. One that is 126 (1022)
/// below adds nothing to a fraction of at least 1.
template <class V> BRASA_INLINE V aligned(const Mass<V>& a, V e) {
  using F = FloatFormat<ElementOf<V>>;
  const V down = not_below(a.e - e, 1 - F::kBias) + value<V>(F::kRoundToInt);
  return (V)(bits(a.m) + (bits(down) << F::kFractionBits));
}

template <class V> BRASA_INLINE Mass<V> operator+(const Mass<V>& a, const Mass<V>& b) {
  const V e = max(a.e, b.e);
  return {aligned(a, e) + aligned(b, e), e};
}
template <class V>
BRASA_INLINE Mass<V> sum_of_three(const Mass<V>& a, const Mass<V>& b, const Mass<V>& c) {
  const V e = max(max(a.e, b.e), c.e);
  return {aligned(a, e) + aligned(b, e) + aligned(c, e), e};
}

/// a b, with its fraction in [1, 2) again.
template <class V> BRASA_INLINE Mass<V> operator*(const Mass<V>& a, const Mass<V>& b) {
  using F = FloatFormat<ElementOf<V>>;
  const V m = a.m * b.m, round = value<V>(F::kRoundToInt);
  const auto n = (bits(m) - bits(value<V>(1))) >> F::kFractionBits;
  const V exponent = (V)(bits(round) + n) - round;
  return {(V)(bits(m) - (n << F::kFractionBits)), a.e + b.e + exponent};
}

/// The number itself where it is at most some 2^100: 0 where it is denormal.
template <class V> BRASA_INLINE V number_of(const Mass<V>& a) {
  using F = FloatFormat<ElementOf<V>>;
  const V e = not_below(a.e, 2 - F::kBias);
  const V y = (V)(bits(a.m) + (bits(e + value<V>(F::kRoundToInt)) << F::kFractionBits));
  return a.e > value<V>(1 - F::kBias) ? y : a.e != a.e ? a.e : V{};
}

/// A row of masses in memory: the fractions, then the exponents, `stride` further on.
template <class T> struct Row {
  T* data;
  int64_t stride;

  BRASA_INLINE_MEMBER Mass<Vec<T>> at(int64_t j) const {
    return {load(data + j), load(data + stride + j)};
  }
  BRASA_INLINE_MEMBER void put(int64_t j, const Mass<Vec<T>>& a) const {
    store(data + j, a.m);
    store(data + stride + j, a.e);
  }
  BRASA_INLINE_MEMBER Mass<T> one(int64_t j) const { return {data[j], data[stride + j]}; }
  BRASA_INLINE_MEMBER void set(int64_t j, T m, T e) const {
    data[j] = m;
    data[stride + j] = e;
  }
};

template <class T> BRASA_INLINE Mass<Vec<T>> in_all_lanes(const Mass<T>& a) {
  return {broadcast(a.m), broadcast(a.e)};
}

// -------------------------------------------------------------------------------------- a sample

/// One sample's lengths and labels; `fits` says that nothing of it leads outside. The bindings
/// refuse what does, unless another thread changes the arrays meanwhile.
struct Sample {
  int64_t index, steps, length;
  const int64_t* labels;
  bool fits;
};

Sample sample_of(const CtcParams& p, int64_t index) {
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

/// Scratch of one thread. Rows of states have `width` elements, of which as many as a vector has
/// stand before state 0 and after the last: they are always probability 0.
template <class T> struct Scratch {
  int64_t width, rows;  ///< rows: how many steps are kept
  T* data;

  static int64_t width_of(int64_t longest) { return ((longest + 1) / kLanes<T> + 3) * kLanes<T>; }
  static int64_t rows_of(const CtcParams& p, bool occupation) { return occupation ? p.steps : 2; }
  /// Per step: emissions of labels and of the blank, states of blanks and labels. Then the states
  /// of the way back, and which labels may follow the one before without a blank.
  static int64_t elements(int64_t width, int64_t rows) {
    return rows * (6 * width + 2) + 5 * width;
  }
  BRASA_INLINE_MEMBER Row<T> row(int64_t number) const {
    return {data + number * 2 * width + kLanes<T>, width};
  }
  /// Where step t is kept: of two rows by turns; of more each has its own.
  BRASA_INLINE_MEMBER int64_t slot(int64_t t) const { return rows == 2 ? t & 1 : t; }
  BRASA_INLINE_MEMBER Row<T> emission(int64_t t) const { return row(slot(t)); }
  BRASA_INLINE_MEMBER Row<T> blanks(int64_t t) const { return row(rows + slot(t)); }
  BRASA_INLINE_MEMBER Row<T> labels(int64_t t) const { return row(2 * rows + slot(t)); }
  BRASA_INLINE_MEMBER Row<T> blanks_back() const { return row(3 * rows); }
  BRASA_INLINE_MEMBER Row<T> labels_back() const { return row(3 * rows + 1); }
  BRASA_INLINE_MEMBER T* skip() const { return data + (6 * rows + 4) * width + kLanes<T>; }
  BRASA_INLINE_MEMBER Row<T> emission_of_blank(int64_t t) const {
    return {data + (6 * rows + 5) * width + 2 * slot(t), 1};
  }
};

template <class T> void clear(const Scratch<T>& scratch, Row<T> row) {
  for (int64_t j = -kLanes<T>; j + kLanes<T> < scratch.width; j += kLanes<T>)
    row.put(j, nothing<Vec<T>>());
}

/// exp of what the labels and the blank have at step t.
template <class T>
void read_step(const CtcParams& p, const Sample& s, const Scratch<T>& scratch, const T* log_probs,
               int64_t t) {
  const T* const at = log_probs + t * p.step_stride + s.index * p.sample_stride;
  const Row<T> row = scratch.emission(t);
  for (int64_t j = 0; j < s.length; ++j) row.data[j] = at[s.labels[j]];
  row.data[s.length] = at[p.blank];
  for (int64_t j = s.length + 1; j % kLanes<T>; ++j) row.data[j] = -__builtin_inf();
  for (int64_t j = 0; j <= s.length; j += kLanes<T>) row.put(j, mass_of_log(load(row.data + j)));
  const Mass<T> blank = row.one(s.length);
  scratch.emission_of_blank(t).set(0, blank.m, blank.e);
  row.set(s.length, T(1), -__builtin_inf());
}

/// 0 where label j may follow label j - 1 without a blank, else -inf: an exponent to add.
template <class T> void list_skips(const Sample& s, const Scratch<T>& scratch) {
  T* const skip = scratch.skip();
  for (int64_t j = 0; j + 2 * kLanes<T> <= scratch.width; ++j) {
    const bool may = j > 0 && j < s.length && s.labels[j] != s.labels[j - 1];
    skip[j] = may ? T(0) : -T(__builtin_inf());
  }
}

template <class T> void first_step(const Sample& s, const Scratch<T>& scratch) {
  const Row<T> blanks = scratch.blanks(0), labels = scratch.labels(0);
  clear(scratch, blanks);
  clear(scratch, labels);
  const Mass<T> blank = scratch.emission_of_blank(0).one(0);
  blanks.set(0, blank.m, blank.e);
  if (s.length == 0) return;
  const Mass<T> label = scratch.emission(0).one(0);
  labels.set(0, label.m, label.e);
}

template <class T> void step_ahead(const Sample& s, const Scratch<T>& scratch, int64_t t) {
  const Row<T> blanks = scratch.blanks(t - 1), labels = scratch.labels(t - 1);
  const Row<T> blanks_now = scratch.blanks(t), labels_now = scratch.labels(t);
  const Row<T> emission = scratch.emission(t);
  const Mass<Vec<T>> blank = in_all_lanes(scratch.emission_of_blank(t).one(0));
  const T* const skip = scratch.skip();
  blanks_now.put(-kLanes<T>, nothing<Vec<T>>());
  labels_now.put(-kLanes<T>, nothing<Vec<T>>());
  for (int64_t j = 0; j <= s.length; j += kLanes<T>) {
    const Mass<Vec<T>> before = labels.at(j - 1), here = blanks.at(j);
    const Mass<Vec<T>> skipping{before.m, before.e + load(skip + j)};
    blanks_now.put(j, (here + before) * blank);
    labels_now.put(j, sum_of_three(labels.at(j), here, skipping) * emission.at(j));
  }
}

/// Z after the last step.
template <class T> Mass<Vec<T>> total(const Sample& s, const Scratch<T>& scratch) {
  const Mass<Vec<T>> one{value<Vec<T>>(1), Vec<T>{}};
  if (s.steps == 0) return s.length == 0 ? one : nothing<Vec<T>>();
  const Mass<T> blank = scratch.blanks(s.steps - 1).one(s.length);
  const Mass<T> label = scratch.labels(s.steps - 1).one(s.length - 1);
  return (in_all_lanes(blank) + in_all_lanes(label)) * one;
}

/// The ends after the last step are those that stand at the last label or the blank after it.
template <class T> void last_step(const Sample& s, const Scratch<T>& scratch) {
  clear(scratch, scratch.blanks_back());
  clear(scratch, scratch.labels_back());
  scratch.blanks_back().set(s.length, T(1), T(0));
  if (s.length > 0) scratch.labels_back().set(s.length - 1, T(1), T(0));
}

/// Replaces b of a step by p b of it, and then by b of the step before: every vector reads what
/// stands behind it before the next one writes.
template <class T> void step_back(const Sample& s, const Scratch<T>& scratch, int64_t t) {
  const Row<T> blanks = scratch.blanks_back(), labels = scratch.labels_back();
  const Row<T> emission = scratch.emission(t);
  const Mass<Vec<T>> blank = in_all_lanes(scratch.emission_of_blank(t).one(0));
  const T* const skip = scratch.skip();
  for (int64_t j = 0; j <= s.length; j += kLanes<T>) {
    blanks.put(j, blanks.at(j) * blank);
    labels.put(j, labels.at(j) * emission.at(j));
  }
  const Mass<Vec<T>> one{value<Vec<T>>(1), Vec<T>{}};
  for (int64_t j = 0; j <= s.length; j += kLanes<T>) {
    const Mass<Vec<T>> here = labels.at(j), next = labels.at(j + 1);
    const Mass<Vec<T>> skipping{next.m, next.e + load(skip + j + 1)};
    const Mass<Vec<T>> of_label = sum_of_three(here, blanks.at(j + 1), skipping) * one;
    blanks.put(j, (blanks.at(j) + here) * one);
    labels.put(j, of_label);
  }
}

/// q of step t: of the blanks together, then of each label. `scale` is 1 / Z.
template <class T>
void write_occupation(const Sample& s, const Scratch<T>& scratch, int64_t t,
                      const Mass<Vec<T>>& scale, T* row) {
  const Row<T> blanks = scratch.blanks(t), labels = scratch.labels(t);
  const Row<T> blanks_back = scratch.blanks_back(), labels_back = scratch.labels_back();
  LaneSum<T> of_blanks;
  each_part<T, LaneSum<T>::kParts>(s.length + 1, [&](int i, int64_t j, int64_t live) {
    of_blanks.add(i, number_of(blanks.at(j) * blanks_back.at(j) * scale), live);
    const Vec<T> of_labels = number_of(labels.at(j) * labels_back.at(j) * scale);
    if (j < s.length) write(row + 1 + j, of_labels, s.length - j < live ? s.length - j : live);
  });
  row[0] = of_blanks.total();
}

template <class T>
void occupy(const Sample& s, const Scratch<T>& scratch, const Mass<Vec<T>>& z, int64_t stride,
            T* occupation) {
  const Mass<Vec<T>> scale{value<Vec<T>>(1) / z.m, -z.e};
  last_step(s, scratch);
  for (int64_t t = s.steps - 1; t >= 0; --t) {
    write_occupation(s, scratch, t, scale, occupation + t * stride);
    if (t > 0) step_back(s, scratch, t);
  }
}

template <class T> T minus_log(const Mass<Vec<T>>& z) {
  const Vec<double> fraction = vlog(value<Vec<double>>(double(z.m[0])));
  return T(-fma_scalar(double(z.e[0]), kLn2, fraction[0]));
}

template <class T> void fill(T* row, int64_t n, T with) {
  for (int64_t i = 0; i < n; ++i) row[i] = with;
}

/// The loss of a sample; fills its part of `occupation` where there is one.
template <class T>
T sample_loss(const CtcParams& p, const Sample& s, const Scratch<T>& scratch, const T* log_probs,
              T* occupation) {
  const T nan = T(__builtin_nan("")), infinity = T(__builtin_inf());
  if (!s.fits) return nan;
  const int64_t stride = p.longest + 1;
  const auto give_up = [&] {
    if (occupation) fill(occupation, s.steps * stride, p.zero_infinity ? T(0) : nan);
    return p.zero_infinity ? T(0) : infinity;
  };
  if (s.length > s.steps) return give_up();
  list_skips(s, scratch);
  for (int64_t t = 0; t < s.steps; ++t) {
    read_step(p, s, scratch, log_probs, t);
    if (t == 0)
      first_step(s, scratch);
    else
      step_ahead(s, scratch, t);
  }
  const Mass<Vec<T>> z = total(s, scratch);
  if (z.e[0] == -infinity) return give_up();
  if (occupation) occupy(s, scratch, z, stride, occupation);
  return minus_log<T>(z);
}

/// What a sample's loss is divided by.
double divisor_of(const CtcParams& p, int64_t sample) {
  if (p.reduction != Reduction::mean) return 1;
  const int64_t length = p.target_lengths[sample];
  return double(p.samples) * double(length > 1 ? length : 1);
}

}  // namespace

template <class T> size_t ctc_forward_workspace(const CtcParams& p, bool occupation, int threads) {
  using Of = Scratch<T>;
  const int64_t rows = Of::rows_of(p, occupation);
  const int64_t members = threads < p.samples ? threads : p.samples;
  const int64_t losses = p.reduction == Reduction::none ? 0 : p.samples;
  return size_t(losses + members * Of::elements(Of::width_of(p.longest), rows)) * sizeof(T);
}

template <class T>
void ctc_forward(Context ctx, const T* log_probs, CtcParams p, T* losses, T* occupation) {
  if (p.samples * p.steps <= kSerialSteps) ctx.threads = 1;
  const bool reduced = p.reduction != Reduction::none;
  const Scratch<T> shape{Scratch<T>::width_of(p.longest), Scratch<T>::rows_of(p, occupation), 0};
  T* const scratch = static_cast<T*>(ctx.workspace);
  const int64_t each = shape.elements(shape.width, shape.rows);
  T* const of_sample =
      reduced ? scratch + (ctx.threads < p.samples ? ctx.threads : p.samples) * each : losses;
  parallel_chunks(ctx, p.samples, [=, &p](int member, int64_t n) {
    const Scratch<T> own{shape.width, shape.rows, scratch + member * each};
    T* const q = occupation ? occupation + n * p.steps * (p.longest + 1) : nullptr;
    of_sample[n] = sample_loss(p, sample_of(p, n), own, log_probs, q);
  });
  if (!reduced) return;
  double sum = 0;
  for (int64_t n = 0; n < p.samples; ++n) sum += double(of_sample[n]) / divisor_of(p, n);
  losses[0] = p.samples == 0 && p.reduction == Reduction::mean ? T(__builtin_nan("")) : T(sum);
}

template <class T>
void ctc_backward(Context ctx, const T* dy, CtcParams p, const T* occupation, T* dlog_probs) {
  const bool reduced = p.reduction != Reduction::none;
  const int64_t stride = p.longest + 1;
  const int64_t grain = p.classes < kRowGrain ? kRowGrain / p.classes : 1;
  parallel_for(ctx, p.steps * p.samples, grain, [=, &p](int64_t begin, int64_t end) {
    // Neighbouring rows are written one after the other in either layout.
    const bool by_sample = p.sample_stride > p.step_stride;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t n = by_sample ? i / p.steps : i % p.samples;
      const int64_t t = by_sample ? i % p.steps : i / p.samples;
      T* const row = dlog_probs + t * p.step_stride + n * p.sample_stride;
      __builtin_memset(row, 0, size_t(p.classes) * sizeof(T));
      const Sample s = sample_of(p, n);
      if (!s.fits || t >= s.steps) continue;
      const T g = T(-double(dy[reduced ? 0 : n]) / divisor_of(p, n));
      const T* const q = occupation + (n * p.steps + t) * stride;
      row[p.blank] = g * q[0];
      for (int64_t j = 0; j < s.length && j < p.longest; ++j) row[s.labels[j]] += g * q[1 + j];
    }
  });
}

BRASA_INSTANTIATE(ctc_forward_workspace, float, double)
BRASA_INSTANTIATE(ctc_forward, float, double)
BRASA_INSTANTIATE(ctc_backward, float, double)

}  // namespace brasa::cpu::BRASA_ISA
