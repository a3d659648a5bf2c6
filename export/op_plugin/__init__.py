"""The op plugin library: where it comes from and how it is compiled."""
