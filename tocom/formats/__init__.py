"""The files that the parts hand to each other: bundle, profile, engine, signature."""
