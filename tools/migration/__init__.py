"""Measuring what a migration costs the reader of a stream."""
