"""The Token Compensator: its weights, its algebra and its file."""
