"""``python -m brasa`` is the command ``brasa``."""

from __future__ import annotations

import sys

from brasa.cli import main

if __name__ == "__main__":
    sys.exit(main())
