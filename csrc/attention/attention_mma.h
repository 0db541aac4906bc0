// Attention on tensor cores, for attention.cu: of 16-bit operands, or of float32 in tf32.
#pragma once

#include "attention/attention.h"

namespace brasa::cuda {

/// Features of the widest tile; ops.attention casts wider ones of 16 bits to float32.
template <class T> constexpr int kMostFeatures = sizeof(T) == 2 ? 128 : 96;

template <class T>
void mma_forward(Context ctx, const AttentionParams& p, const T* q, const T* k, const T* v,
                 const AttentionMask<float>& mask, T* y, float* log_sum);

/// The same on Hopper's (attention_wgmma.cu), where they can take it: whether it is done.
template <class T>
bool wgmma_forward(Context ctx, const AttentionParams& p, const T* q, const T* k, const T* v,
                   const AttentionMask<float>& mask, T* y, float* log_sum);

/// `delta`, a number for each query, is dy . y.
template <class T>
void mma_backward(Context ctx, const AttentionParams& p, const T* q, const T* k, const T* v,
                  const AttentionMask<float>& mask, const float* log_sum, const float* delta,
                  const AttentionGradients<T>& gradients);

/// The same on Hopper's (attention_wgmma_backward.cu), where they can take it: whether it is done.
template <class T>
bool wgmma_backward(Context ctx, const AttentionParams& p, const T* q, const T* k, const T* v,
                    const AttentionMask<float>& mask, const float* log_sum, const float* delta,
                    const AttentionGradients<T>& gradients);

}  // namespace brasa::cuda
