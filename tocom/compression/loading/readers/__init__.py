"""One reader per family: what its keys are called, and what timm calls them."""
