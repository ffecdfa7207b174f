"""Bits where they matter: what an allocation of bits costs, and which one keeps the model closest under a budget."""
