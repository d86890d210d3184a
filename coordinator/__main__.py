"""`python -m coordinator` is `headwise run`."""

import sys

from agent.shell import run_verb
from coordinator.run import add_arguments, run

if __name__ == "__main__":
    text = "Generate text on a cluster of agents."
    sys.exit(run_verb("python -m coordinator", text, (add_arguments, run)))
