"""Encoders, similarities and the assembled model."""
