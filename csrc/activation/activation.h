// Elementwise activations over dense memory. Floor: one read and one write of the array forward,
// two reads and one write backward; everything but the exponential family is bandwidth bound by
// far.
#pragma once

#include "core/activations.h"
#include "core/dispatch.h"

/// y[i] = activation(x[i]) for i < n. x and y may be the same buffer.
BRASA_KERNEL(activation_forward, const T* x, T* y, int64_t n, Activation activation)

/// dx[i] = dy[i] * activation'(v[i]), v the result or the input as the list of activations says.
/// dx may be dy.
BRASA_KERNEL(activation_backward, const T* dy, const T* v, T* dx, int64_t n, Activation activation)
