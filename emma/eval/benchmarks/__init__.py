"""One declaration for each benchmark; `BENCHMARKS` maps the names of the command line to them."""

from emma.eval.benchmarks import (
    abench,
    gqa,
    mathvista,
    mmbench_cn,
    mmbench_en,
    mmmu,
    mmvp,
    muirbench,
    okvqa,
    pope,
    scienceqa,
    seed_bench,
    textvqa,
    vizwiz,
    vqav2,
    world,
)

_MODULES = (
    abench,
    gqa,
    mathvista,
    mmbench_cn,
    mmbench_en,
    mmmu,
    mmvp,
    muirbench,
    okvqa,
    pope,
    scienceqa,
    seed_bench,
    textvqa,
    vizwiz,
    vqav2,
    world,
)
BENCHMARKS = {module.BENCHMARK.name: module.BENCHMARK for module in _MODULES}
