PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

# Files stay whole, for toy models and their compiled functions live in one process.
WORKERS := --dist loadfile --durations 20

.PHONY: setup demo demo-full test test-slow test-all clean

setup: $(VENV)/installed

$(VENV)/installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; ok = (3, 11) <= sys.version_info < (3, 14); \
	  sys.exit(None if ok else "Python 3.11 to 3.13 is needed, %s is %d.%d; try: make $(MAKECMDGOALS) PYTHON=python3.12" \
	  % ((sys.executable,) + sys.version_info[:2]))'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

# All five papers in one process, then everything that is in runs/ as one page.
demo: setup
	$(RUN) demo.py --resume
	$(RUN) -m common.runs.report runs/

# Each script on its embedded data, with its defaults.
demo-full: setup
	$(RUN) adv_lock/train_base.py --resume
	$(RUN) adv_lock/lock.py --resume
	$(RUN) adv_lock/train.py --resume
	$(RUN) adv_lock/unlock.py --resume
	$(RUN) adv_lock/audit.py --resume
	$(RUN) mobility_humid/prepare.py --resume
	$(RUN) mobility_humid/train.py --resume
	$(RUN) mobility_humid/siamese_attack.py --resume
	$(RUN) mobility_humid/fast_adversarial_train.py --resume
	$(RUN) mobility_humid/classification.py --resume
	$(RUN) mobility_humid/classification_attack.py --resume
	$(RUN) mobility_humid/certify.py --resume
	$(RUN) mobility_humid/identify.py --resume
	$(RUN) face_mter/train.py --resume
	$(RUN) face_mter/ad_face.py --resume
	$(RUN) face_mter/attack.py --resume
	$(RUN) face_mter/verify.py --resume
	$(RUN) face_mter/ad_mnist.py --resume
	$(RUN) multimedia_recsys/train_cnn.py --resume
	$(RUN) multimedia_recsys/classify_extract.py --resume
	$(RUN) multimedia_recsys/rec_generator.py --resume
	$(RUN) multimedia_recsys/results_analyzer.py --resume
	$(RUN) multimedia_recsys/classify_extract_attack.py --resume
	$(RUN) multimedia_recsys/evaluate_visual_images.py --resume
	$(RUN) multimedia_recsys/run_all.py --resume
	$(RUN) attention_defense/train.py --resume
	$(RUN) attention_defense/attack.py --resume
	$(RUN) attention_defense/analyse.py --resume
	$(RUN) attention_defense/explain.py --resume

# The default tier on three workers, for imports and files leave a core idle; test-slow what trains, chains, kills and
# measures time, on two; test-all both.
test: setup
	$(RUN) -m pytest -n 3 $(WORKERS)

test-slow: setup
	$(RUN) -m pytest -n 2 $(WORKERS) -m slow

test-all: setup
	$(RUN) -m pytest -n 2 $(WORKERS) -m "slow or not slow"

# Named runs and data sets are hours of work and stay.
clean:
	rm -rf $(VENV) runs/*/*/demo runs/*/*/quick runs/*/attacks build *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
