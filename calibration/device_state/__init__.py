"""Clocks, heat, power and energy of the device while it is measured."""
