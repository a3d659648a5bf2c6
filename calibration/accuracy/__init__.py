"""How right each degree is."""
