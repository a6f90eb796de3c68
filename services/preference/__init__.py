"""Comparisons, annotators, ratings. Knows no model weights."""
