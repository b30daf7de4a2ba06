"""The mathematics of each objective: arrays in, arrays out."""
