"""What a compensator is worth, measured in torch."""
