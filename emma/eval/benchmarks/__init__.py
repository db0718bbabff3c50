"""One declaration for each benchmark; `BENCHMARKS` maps the names of the command line to them."""

from emma.eval.benchmarks import gqa, mmvp, okvqa, pope, textvqa, vizwiz, vqav2, world

BENCHMARKS = {
    module.BENCHMARK.name: module.BENCHMARK for module in (gqa, mmvp, okvqa, pope, textvqa, vizwiz, vqav2, world)
}
