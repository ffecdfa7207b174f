"""A little job that the package carries: labelled pictures without end, and two models trained on them.

For the first minute, for tests without data, and for methods that need an honest teacher at hand.
"""
