"""Eight-bit engines: ranges per degree, and what stays in floating point."""
