"""The full benchmark: ``python -m bench``."""

import os

for _name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):  # set on some machines, they halve NumPy
    os.environ.pop(_name, None)
