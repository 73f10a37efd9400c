"""Measures the product against named baselines, each pair in the same run (`make bench`)."""
