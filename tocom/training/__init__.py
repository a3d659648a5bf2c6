"""Training of compensators by self-distillation."""
