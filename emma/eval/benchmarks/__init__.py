"""One declaration for each benchmark; `BENCHMARKS` maps the names of the command line to them."""

from emma.eval.benchmarks import mmvp, pope, world

BENCHMARKS = {module.BENCHMARK.name: module.BENCHMARK for module in (mmvp, pope, world)}
