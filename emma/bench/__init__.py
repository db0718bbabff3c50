"""Throughput on this machine, measured; see `python -m emma.bench --help`."""
