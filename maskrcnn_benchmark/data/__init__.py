"""Data sets, pictures and what stands between them and a network."""
