"""Measures medjax beside other libraries, on this machine: `python -m medjax.bench --quick`.

What is measured lies in a checkout's `tests/peers`, with an environment of its own.
"""
