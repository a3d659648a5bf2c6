"""Former name of :mod:`tocom.compression`: a module of this name hides the function of this name."""

from tocom.compression import check_supported, compress, input_tokens

__all__ = ["check_supported", "compress", "input_tokens"]
