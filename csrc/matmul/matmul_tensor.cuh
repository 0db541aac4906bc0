// Products on tensor cores, for matmul.cu.
#pragma once

#include "matmul/gemm_store.cuh"
#include "matmul/gemm_tensor.h"

namespace brasa::cuda {

/// How to make this product of operands of T on the current device. `mode` is not ieee where T is
/// float.
template <class T> TensorPlan plan_tensor(const MatmulParams& p, MathMode mode);

/// Makes the product p as planned, in the workspace of the context.
template <class T>
void multiply_tensor(Context ctx, const MatmulParams& p, const TensorPlan& plan, const T* a,
                     const T* b, T* y, const Epilogue<T>& epilogue);

/// One of the kernels with tiles of MmaTile, for the plan: `results` is finished or gets parts.
template <class T>
void launch_mma(simt::stream_t stream, const TensorPlan& plan, const T* a, const T* b,
                const Results<T>& results);

/// The same with Hopper's tiles, of 128 or 256 columns.
template <class T>
void launch_wgmma(simt::stream_t stream, const TensorPlan& plan, const T* a, const T* b,
                  const Results<T>& results);

}  // namespace brasa::cuda
