"""JSON Schemas of the formats, as package data."""
