"""The cluster: membership, planner, sequences, gather, sampling, and the Python API."""
