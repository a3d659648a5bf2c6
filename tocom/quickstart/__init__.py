"""The whole way of the data on real input: a pretrained ViT and photographs of solar cells, both from PyPI."""

from __future__ import annotations
