"""What a call of an operator on a device may not cost."""

from __future__ import annotations

import numpy as np
import pytest

from brasa import ops


@pytest.fixture
def looks(emulated, monkeypatch):
    """How often somebody asked an array for __cuda_array_interface__: a dict made anew at each look."""
    count = [0]
    interface = emulated.EmulatedArray.__cuda_array_interface__

    def look(self):
        count[0] += 1
        return interface.fget(self)

    monkeypatch.setattr(emulated.EmulatedArray, "__cuda_array_interface__", property(look))
    return count


def test_arrays_are_read_by_their_attributes(emulated, looks):
    x, v = emulated.asarray(np.ones((4, 4), np.float32)), emulated.asarray(np.ones(4, np.float32))
    images, weight = (emulated.asarray(np.ones((2, 4, n, n), np.float32)) for n in (6, 3))
    ops.relu(x)
    ops.matmul(x, x, v)
    ops.layer_norm(x, v, v)
    ops.conv2d(images, weight[:1])
    ops.sgd_step([x], [x], None, lr=0.1)
    assert looks[0] == 0


@pytest.mark.parametrize(
    "dtype", [np.float16, np.float32, np.float64, np.int32, np.int64, np.uint8, np.int16]
)
def test_layouts_of_every_dtype(emulated, dtype):
    """Known dtypes and others, of which a kernel knows the layout alone."""
    x = emulated.asarray(np.zeros((2, 3, 4, 5), dtype))
    assert emulated.kernels.layout(x) == 1
    assert emulated.kernels.layout(emulated.asarray(np.zeros((2, 4, 5, 3), dtype)).transpose(0, 3, 1, 2)) == 2
    assert emulated.kernels.layout(x[:, :, ::2]) == 0


@pytest.mark.parametrize("dtype", [">f4", ">f8", ">i8"])
def test_foreign_byte_order_is_refused(emulated, dtype):
    with pytest.raises(TypeError, match="byte order"):
        emulated.kernels.layout(np.zeros(3, dtype).view(emulated.EmulatedArray))


def test_an_object_with_the_interface_alone_is_read_by_it(emulated):
    class Other:
        def __init__(self, array):
            self.array = array

        @property
        def __cuda_array_interface__(self):
            return self.array.__cuda_array_interface__

    x = emulated.asarray(np.float32([-1, 2, 3, 4]))
    y = emulated.empty((4,))
    emulated.kernels.activation_forward(Other(x), y, (0, 0.0, 0.0))
    assert emulated.kernels.layout(Other(x)) == 1
