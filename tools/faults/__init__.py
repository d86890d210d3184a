"""Faults on purpose: real boards as processes, struck while they write, and what became of it."""
