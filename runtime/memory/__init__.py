"""What the engines need in memory, and what the device has."""
