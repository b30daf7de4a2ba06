"""Decoders that write captions of pictures, and the search for their best captions."""
