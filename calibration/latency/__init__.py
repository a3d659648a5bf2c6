"""What a request costs on this device."""
