"""Experiments: each module is run with `python -m experiments.NAME`; `python -m experiments` lists them."""
