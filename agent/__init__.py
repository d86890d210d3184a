"""One board: wire protocol, resident atoms, KV pages, hot loop, heartbeats.

Runs from the base dependencies alone. Does not know plans as a whole, tokenizers or sampling
beyond what STEP frames carry. The reader's route: `main` -> `runtime` -> `hot`.
"""
