#include "dropout/dropout.h"

#include "core/elementwise.h"
#include "core/random.h"

namespace brasa::cpu::BRASA_ISA {
namespace {

/// Words drawn at a time: 4 KiB, in L1 until they are used.
constexpr int64_t kWords = 1024;
constexpr int64_t kDropoutGrain = 16 * kWords;

/// As many words as Vec<T> has lanes: in memory, and in lanes of T's size.
template <class T> struct WordLanes;
template <> struct WordLanes<double> {
  typedef uint32_t InMemory __attribute__((vector_size(4 * kLanes<double>)));
  typedef uint64_t Wide __attribute__((vector_size(kVectorBytes<double>)));
};
template <> struct WordLanes<float> {
  typedef uint32_t InMemory __attribute__((vector_size(kVectorBytes<float>)));
  typedef InMemory Wide;
};

/// y = word < threshold ? 0 : x scale for n elements; `words` has whole vectors.
template <bool kStream, class T>
void drop(const uint32_t* words, uint32_t threshold, T scale, int64_t n, const T* x, T* y) {
  constexpr int64_t kAhead = kFetchBytes / sizeof(T);
  const typename WordLanes<T>::Wide limit = typename WordLanes<T>::Wide{} + threshold;
  each_part<T, 4>(n, [=](int, int64_t i, int64_t live) {
    __builtin_prefetch(x + i + kAhead);
    typename WordLanes<T>::InMemory drawn;
    __builtin_memcpy(&drawn, words + i, sizeof(drawn));
    const auto dropped = __builtin_convertvector(drawn, typename WordLanes<T>::Wide) < limit;
    const Vec<T> kept = read(x + i, live) * broadcast(scale);
    put_row<kStream>(y + i, dropped ? Vec<T>{} : kept, live);
  });
}

template <bool kStream, class T>
void drop_range(const T* x, T* y, DropoutParams params, int64_t begin, int64_t end) {
  alignas(64) uint32_t words[kWords];
  const PhiloxKeys keys(params.seed.value);
  const uint32_t threshold = uint32_t(philox::threshold(params.p));
  for (int64_t i = begin; i < end; i += kWords) {
    const int64_t live = end - i < kWords ? end - i : kWords;
    philox_words(keys, params.offset.value + uint64_t(i / 4), (live + 31) / 32 * 32, words);
    drop<kStream>(words, threshold, T(1 / (1 - params.p)), live, x + i, y + i);
  }
  if (kStream) finish_streaming();
}

}  // namespace

template <class T>
void dropout_forward(Context ctx, const T* x, T* y, int64_t n, DropoutParams params) {
  const bool all = philox::threshold(params.p) > 0xffffffffu;
  const bool streaming = x != y && streams_rows(y, n, n);
  parallel_for(ctx, n, kDropoutGrain, [=](int64_t begin, int64_t end) {
    if (all)
      for (int64_t i = begin; i < end; ++i) y[i] = T(0);
    else
      (streaming ? drop_range<true, T> : drop_range<false, T>)(x, y, params, begin, end);
  });
}

BRASA_INSTANTIATE(dropout_forward, float, double)

}  // namespace brasa::cpu::BRASA_ISA
