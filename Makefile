# Two commands set everything up on a machine with Python, pip and make:
#   make quickstart [FAMILY=gpt|bert|t5]    train, score and write with a small model
#   make test                               the test suite
PYTHON ?= python3
VENV ?= .venv
FAMILY ?= gpt
RUN := $(VENV)/bin/python

.PHONY: quickstart test lint clean

quickstart: $(VENV)/.run
	$(RUN) experiments/quickstart/quickstart.py --family=$(FAMILY)

test: $(VENV)/.test
	$(RUN) -m pytest $(TESTS)

lint: $(VENV)/.test
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

$(VENV)/.run: requirements.txt
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/.test: $(VENV)/.run pyproject.toml
	$(RUN) -m pip install --quiet --disable-pip-version-check -e '.[test]'
	touch $@

clean:
	rm -rf $(VENV) runs
