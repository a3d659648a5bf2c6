"""Files, locks, child processes and the processor, as every part needs them."""
