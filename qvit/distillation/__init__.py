"""Distillation: a low-bit student learns from its float teacher, on images that nobody took."""
