"""Agreement with the reference answers, on every backend at once."""
