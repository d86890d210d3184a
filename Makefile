# Two commands do everything on a fresh machine (Debian 12 or newer, Python 3.11 with venv, make):
#   make demo   set up, then the demo model tells a story over three local agents
#   make test   set up, then run the tests
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test slow arm lint wheel setup clean

demo: $(VENV)/run.done
	$(BIN)/headwise run --local 3 --stats --echo -n 200 -p "Once upon a time"

# Three workers even on two cores: most tests wait for processes to start. A file's tests share its clusters.
test: $(VENV)/dev.done
	$(BIN)/python -m pytest -n 3 --dist loadfile

slow: $(VENV)/dev.done
	$(BIN)/python -m pytest -m "slow or netns"

# On an emulated CPU; root installs qemu where it is missing.
arm: $(VENV)/dev.done
	PYTHON=$(BIN)/python .ci/arm

lint: $(VENV)/dev.done
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

wheel: $(VENV)/run.done
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

setup: $(VENV)/dev.done

# What users install; the development tools come on top of it.
$(VENV)/run.done: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --editable ".[all]"
	touch $@

$(VENV)/dev.done: $(VENV)/run.done
	$(BIN)/python -m pip install --quiet --group dev
	touch $@

clean:
	rm -rf $(VENV) dist build .pytest_cache .mypy_cache .ruff_cache
