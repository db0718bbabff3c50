"""Counterfactuals of a run: what is taken from the model to see what it counts for."""

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from emma.errors import EmmaError
from emma.eval.answering import Question
from emma.eval.pictures import Blank

IMAGE_CONTROLS = ("none", "blank", "removed")
INSTRUCTION_CONTROLS = ("none", "empty", "shuffled", "unrelated")
UNRELATED = "The train leaves at seven in the morning."
SEED = 0


@dataclass(frozen=True)
class Controls:
    """`image`: `blank` shows a grey picture in place of every one, `removed` asks in words alone. `instruction` changes
    what the CLIP text tower reads, while the LLM's prompt stays: `empty`, `shuffled` (another question's, see
    `shuffled`) or `unrelated` (one neutral sentence for all)."""

    image: str = "none"
    instruction: str = "none"

    def __post_init__(self):
        for kind, known in (("image", IMAGE_CONTROLS), ("instruction", INSTRUCTION_CONTROLS)):
            if (value := getattr(self, kind)) not in known:
                raise EmmaError(f"{kind}_control={value!r}: expected one of {', '.join(known)}")

    def as_dict(self) -> dict[str, str]:
        return asdict(self)

    @property
    def suffix(self) -> str:
        """For folder names: `-blank`, `-shuffled-instruction`, both, or nothing."""
        image = "" if self.image == "none" else f"-{self.image}"
        return image + ("" if self.instruction == "none" else f"-{self.instruction}-instruction")

    @property
    def words(self) -> str:
        """For titles: `, blank image, shuffled instruction`, one of them, or nothing."""
        return "".join(f", {value} {kind}" for kind, value in self.as_dict().items() if value != "none")

    def apply(self, questions: Sequence[Question]) -> list[Question]:
        """The same questions as this run asks them.

        Raises:
            EmmaError: an instruction control where no question has an instruction, or `shuffled` is impossible.
        """
        changed = list(questions)
        if self.instruction != "none":
            seeing = [i for i, question in enumerate(questions) if question.instruction is not None]
            if not seeing:
                raise EmmaError(
                    f"instruction_control={self.instruction}: there is no instruction to change, because the model "
                    "reads none or no question has a picture; leave it out"
                )
            before = [question.instruction or "" for question in questions if question.instruction is not None]
            after = {
                "empty": lambda: [""] * len(before),
                "unrelated": lambda: [UNRELATED] * len(before),
                "shuffled": lambda: shuffled(before),
            }[self.instruction]()
            for i, instruction in zip(seeing, after, strict=True):
                changed[i] = replace(changed[i], instruction=instruction)
        if self.image == "blank":
            changed = [replace(q, pictures=tuple(Blank() for _ in q.pictures)) for q in changed]
        if self.image == "removed":
            changed = [replace(q, pictures=(), instruction=None) for q in changed]
        return changed


def shuffled(instructions: Sequence[str], seed: int = SEED) -> list[str]:
    """The same instructions in another order, in which none stands where an equal one stood.

    Equal ones are laid side by side in an order drawn from `seed`, then all move on by the size of the largest group.

    Raises:
        EmmaError: more than half are equal, so that no such order exists.
    """
    groups = defaultdict(list)
    for i, instruction in enumerate(instructions):
        groups[instruction].append(i)
    largest = max(groups.values(), key=len)
    if 2 * len(largest) > len(instructions):
        raise EmmaError(
            f"instruction_control=shuffled: {len(largest)} of {len(instructions)} questions have the same instruction "
            f"{instructions[largest[0]][:60]!r}, so not every one can get another; use empty or unrelated"
        )
    rng = random.Random(seed)
    members = list(groups.values())
    rng.shuffle(members)
    order = [i for group in members for i in rng.sample(group, len(group))]
    moved = [""] * len(order)
    for at, i in enumerate(order):
        moved[i] = instructions[order[(at + len(largest)) % len(order)]]
    return moved
