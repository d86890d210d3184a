"""Decides which agents hold which atoms. Pure: plain data in, plain data out.

`place` makes a plan: `subset` chooses the agents, `fill` shares the atoms out with the exact shares
of `balance`, and `cost` predicts the time; `explain` says why it is as it is. `replan` changes a
running one: `proposals` and `change` are where it may go, `holdings` and `moves` what that takes,
`candidate` what it is worth, `watch` what the boards' rates are and how long they last, `decision`
what is asked and answered. `blocks`, `block_moves` and `horizon` do the same for the indivisible
blocks of arXiv 2505.02533. docs/placement.md has figures, and how a coordinator calls it.
"""
