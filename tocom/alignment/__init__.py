"""Linear maps from the pooled features of a degree to those of the source degree, fitted in closed form."""
