"""References: float64 NumPy, written to be read and independently of the library."""
