"""Puts this folder on the import path (pytest does so for a conftest), for the helpers that several folders share."""
