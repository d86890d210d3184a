"""Model files: config, checkpoints, conversion, the headwise model directory, tokenizer.

Does not know sockets or placement. A reader's route: `families` turns config.json into a
`ModelConfig`, `convert` cuts a `Checkpoint` into atoms, `ModelDirectory` maps them back.
"""
