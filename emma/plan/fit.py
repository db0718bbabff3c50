"""Settings of a stage that may fit on a GPU: the one that the recipe writes, and all worth trying, in order."""

import json
from collections.abc import Iterator

from emma.errors import EmmaError
from emma.paths import resolve
from emma.plan.memory import Setting
from emma.train.recipe import StageRecipe

FILES = {
    (0, False): "null",
    (2, False): "configs/deepspeed/zero2.json",
    (3, False): "configs/deepspeed/zero3.json",
    (3, True): "configs/deepspeed/zero3_offload.json",
}


def written(settings: StageRecipe, stage: str, micro_batch: int) -> Setting:
    """The recipe's own setting.

    Raises:
        EmmaError: a DeepSpeed file that is missing, or that says nothing of its ZeRO stage.
    """
    if settings.deepspeed is None:
        return Setting(0, False, settings.gradient_checkpointing, micro_batch)
    file = resolve(settings.deepspeed)
    if not file.is_file():
        raise EmmaError(f"{stage}.deepspeed: file {file} does not exist")
    try:
        zero = json.loads(file.read_text(encoding="utf-8"))["zero_optimization"]
        number = int(zero["stage"])
    except (json.JSONDecodeError, KeyError, TypeError, ValueError):
        raise EmmaError(f"{stage}.deepspeed: {file} has no zero_optimization.stage") from None
    offload = any((zero.get(f"offload_{what}") or {}).get("device") == "cpu" for what in ("param", "optimizer"))
    return Setting(number, offload, settings.gradient_checkpointing, micro_batch)


def candidates(micro_batch: int) -> Iterator[Setting]:
    """From the fastest to the slowest: ZeRO-0, 2, 3, then with checkpointing, smaller micro-batches, offloading.

    A smaller micro-batch always divides the larger, so that accumulation makes up the same global batch.
    """
    sizes = [micro_batch]
    while sizes[-1] % 2 == 0:
        sizes.append(sizes[-1] // 2)
    if sizes[-1] > 1:
        sizes.append(1)
    for size in sizes:
        for checkpointing in (False, True):
            for zero in (0, 2, 3):
                yield Setting(zero, False, checkpointing, size)
    for size in sizes:
        yield Setting(3, True, True, size)


def overrides(stage: str, setting: Setting) -> list[str]:
    """What to type after the recipe to get this setting."""
    return [
        f"{stage}.deepspeed={FILES[setting.zero, setting.offload]}",
        f"{stage}.gradient_checkpointing={str(setting.gradient_checkpointing).lower()}",
        f"{stage}.micro_batch={setting.micro_batch}",
    ]


def describe(setting: Setting) -> str:
    """The setting in words."""
    return (
        f"ZeRO-{setting.zero}{' with offloading' if setting.offload else ''}, "
        f"{'with' if setting.gradient_checkpointing else 'no'} checkpointing, micro-batch {setting.micro_batch}"
    )
