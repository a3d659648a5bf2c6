"""Token compression in torch: merging, pruning, and a timm Vision Transformer that runs at a degree."""
