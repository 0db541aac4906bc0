"""The full benchmark: ``python -m bench``."""
