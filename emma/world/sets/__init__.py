"""The world's evaluation sets on held-out scenes, one module for each benchmark's format.

Each writer takes a folder, a number of scenes (or pairs) and a seed, and returns the number of its rows.
"""

from emma.world.sets.amber import write_amber
from emma.world.sets.foil import write_foil
from emma.world.sets.gqa import write_gqa
from emma.world.sets.mmbench import write_mmbench
from emma.world.sets.mmvp import write_mmvp
from emma.world.sets.pope import write_pope
from emma.world.sets.questions import write_questions
from emma.world.sets.vqav2 import write_vqav2

__all__ = [
    "write_amber",
    "write_foil",
    "write_gqa",
    "write_mmbench",
    "write_mmvp",
    "write_pope",
    "write_questions",
    "write_vqav2",
]
