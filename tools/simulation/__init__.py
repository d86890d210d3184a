"""Settings, baselines and oracles that the production planner is judged in. No sockets."""
