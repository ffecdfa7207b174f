"""Measurements. A package by name: a wheel in site-packages that carries a folder `benchmarks` must not win."""
