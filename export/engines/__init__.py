"""From a bundle to the engines of one device."""
