"""Schemes, ranges, transforms and quantizers: how a tensor becomes integers."""
