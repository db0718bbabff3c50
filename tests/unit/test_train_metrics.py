"""The numbers of a log line: equal to a computation by hand, from one rank and from several."""

import time

import pytest
import torch
from train_runs import log_lines, one_step

from emma.train.logs import Throughput, peak_memory


def test_logged_tokens_and_flops_equal_a_computation_by_hand(finished, assets, tmp_path):
    from emma.data.dataset import TrainingDataset
    from emma.data.mixture import Mixture
    from emma.data.sampler import StepSampler
    from emma.train import load_recipe
    from emma.train.stages import processor_without_weights

    _, pretrained, _ = finished
    start = pretrained / "model"
    folder = one_step(assets, tmp_path, "finetune.micro_batch=2", pretrained=start)
    recipe = load_recipe(assets / "recipe.yaml", [f"finetune.init={start}"])
    settings = recipe.finetune
    processor = processor_without_weights(recipe, "finetune", start)
    mixture = Mixture.open(settings.data, "finetune")
    dataset = TrainingDataset(mixture, processor, max_length=256, over_length="truncate", seed=recipe.seed)
    lengths = torch.tensor([processor.length(mixture[i]) for i in range(len(mixture))]).numpy()
    sampler = StepSampler(lengths, mixture.has_image(), batch_size=4, micro_batch=4, total_steps=2, seed=recipe.seed)
    # Per layer: q, o 32 x 32; k, v 32 x 16; gate, up, down 32 x 64. Two layers. Trained, so three passes in all.
    per_token = 3 * 2 * 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64)
    vision = 2 * 4 * 3 * 64 * 32 + 2 * (2 * 5 * 32 * 96 + 4 * 25 * 32 + 2 * 5 * 32 * 32 + 4 * 5 * 32 * 128)
    text = 2 * (2 * 77 * 16 * 48 + 4 * 77 * 77 * 16 + 2 * 77 * 16 * 16 + 4 * 77 * 16 * 64)
    adapter = 2 * (2 * 77 * 16 * 32)  # instruction projection, its weight
    adapter += 2 * (2 * 4 * 4 * 32) + 3 * (2 * 4 * 77 * 32)  # alignment: visual half twice, text half three times
    adapter += 3 * (2 * 2 * 4 * 32 * 32)  # projector
    for line, step in zip(log_lines(folder), (0, 1), strict=True):
        samples = [dataset.encode(draw) for draw in sampler.step(step) if not draw.masked]
        sizes = [len(sample["input_ids"]) for sample in samples]
        images = sum(len(sample["pixel_values"]) for sample in samples)
        supervised = sum(int((sample["labels"][1:] != -100).sum()) for sample in samples)
        attention = 3 * 2 * 4 * sum(size**2 for size in sizes) * 32
        flops = sum(sizes) * per_token + attention + 3 * 2 * supervised * 32 * 640 + images * (vision + text + adapter)
        assert line["tokens"] == sum(sizes)
        assert line["supervised_tokens"] == supervised
        assert line["model_flops"] == flops
        rounding = 0.001 / line["seconds"]
        assert line["tokens_per_second"] == pytest.approx(sum(sizes) / line["seconds"], rel=rounding)
        assert line["model_flops_per_second_per_device"] == pytest.approx(flops / line["seconds"], rel=rounding)
        assert line["tokens_per_second_per_device"] == line["tokens_per_second"]
        assert line["memory_gib"] == line["memory_gib_min"] > 0.05
        assert "mfu" not in line, "a CPU has no known peak"


def counts(**given):
    return dict.fromkeys(("supervised", "samples", "truncated", "instruction_cut", "tokens", "flops"), 0) | given


def test_numbers_of_several_ranks(monkeypatch):
    now = 100.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    throughput = Throughput(processes=4, peak=1e12)
    throughput.add(counts(samples=8, tokens=600, supervised=100, flops=int(3e12)))
    throughput.add(counts(samples=8, tokens=400, supervised=100, flops=int(1e12)))
    now = 102.0
    numbers = throughput.read([(0.1, 10.0), (0.5, 11.0), (0.2, 12.5), (0.0, 9.0)])
    assert numbers["samples_per_second"] == 8
    assert numbers["tokens_per_second"] == 500
    assert numbers["supervised_tokens_per_second"] == 100
    assert numbers["tokens_per_second_per_device"] == 125
    assert numbers["data_wait"] == 0.25, "of the rank that waited longest"
    assert (numbers["memory_gib"], numbers["memory_gib_min"]) == (12.5, 9.0)
    assert numbers["model_flops"] == 4e12
    assert numbers["model_flops_per_second_per_device"] == 5e11
    assert numbers["mfu"] == 0.5
    throughput.reset()
    assert "model_flops" not in throughput.read([(0.0, 1.0)])


def test_an_llm_without_a_closed_form_trains_and_says_so(assets, tmp_path, monkeypatch, caplog):
    from emma.errors import EmmaError
    from emma.train import session

    def refuse(*_):
        raise EmmaError("covers dense decoders only")

    monkeypatch.setattr(session, "batch_flops", refuse)
    with caplog.at_level("INFO", logger="emma"):
        folder = one_step(assets, tmp_path, stage="pretrain")
    assert "the log will have no FLOPs and no MFU: covers dense decoders only" in caplog.text
    assert "model_flops" not in log_lines(folder)[0]
    assert log_lines(folder)[0]["tokens"] > 0


def test_memory_on_a_cpu_is_what_the_process_holds():
    before = peak_memory(torch.device("cpu"))
    held = torch.ones(2**24)  # 64 MiB of float32, touched
    after = peak_memory(torch.device("cpu"))
    assert max(before, 2**26 / 2**30) <= after < 1024
    assert held[-1] == 1


def test_peaks_go_by_the_device_s_full_name():
    from emma.plan.hardware import device_peak

    assert device_peak("NVIDIA A100-SXM4-80GB") == 312e12
    assert device_peak("NVIDIA H100 80GB HBM3") == 989e12
    assert device_peak("NVIDIA H100 PCIe") == 756e12
    assert device_peak("NVIDIA H100") is None, "not sure which one"
