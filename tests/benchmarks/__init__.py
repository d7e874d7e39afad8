"""How fast a step and its parts are: `python -m tests.benchmarks --help`."""
