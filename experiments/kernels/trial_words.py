"""What comes before table and heuristics in a trial, in words: changes SITE:HOW, joined by `+`.

qkv, gate_up, o, down, lm_head    on, off, or a tile PATH-MxNxK-WARPS-STAGES[-PARTS][-dependent]
attention                         off, a cut PARTSxTOKENS-WARPS-STAGES[-AHEAD], or hopper-PARTSxRING[-AHEAD]
whole_heads                       on, off; of a step with prompts
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from engine.kernels._triton import next_power_of_2
from experiments.errors import UserError
from experiments.kernels.cases import sites
from experiments.kernels.step_choices import ATTENTION, SITES
from variants.kernels.attention_cut import Cut
from variants.kernels.tile_table import Trial, key_of
from variants.kernels.tiles import Tile

WHOLE_HEADS = "whole_heads"
OPS: Mapping[str, str] = dict(SITES)
SITES_KNOWN = (*OPS, ATTENTION, WHOLE_HEADS)
ON_OFF = {"on": True, "off": False}
N = r"([1-9]\d*)"
TILE = re.compile(rf"(gemv|held|skinny|wide)-{N}x{N}x{N}-{N}-{N}(?:-{N})?(-dependent)?")
CUT = re.compile(rf"{N}x{N}-{N}-{N}(?:-(\d+))?")
HOPPER_CUT = re.compile(rf"hopper-{N}x{N}(?:-(\d+))?")


def trial_in_words(words: str, sizes: Mapping[str, Any]) -> Trial:
    """What a choice means for a model of these sizes; UserError where it is none."""
    tiles: dict[str, Tile] = {}
    fused: dict[str, bool] = {}
    cut = None
    seen: set[str] = set()
    for change in words.split("+"):
        site, _, how = change.partition(":")
        if site in seen:
            raise UserError(f"choices: {words!r} says twice how {site} is to run")
        seen.add(site)
        if site == WHOLE_HEADS and how in ON_OFF:
            fused[WHOLE_HEADS] = ON_OFF[how]
        elif site == ATTENTION:
            cut = None if how == "off" else _cut(change, how)
            fused[ATTENTION] = cut is not None
        elif site in OPS:
            key = key_of(OPS[site], *sites(OPS[site], sizes)[site])
            fused[key] = ON_OFF.get(how, True)
            if how not in ON_OFF:
                tiles[key] = _tile(change, how)
        else:
            raise UserError(f"choices: {change!r} is no SITE:HOW; sites are {', '.join(SITES_KNOWN)}")
    return Trial(tiles, fused, cut)


def _tile(change: str, how: str) -> Tile:
    found = TILE.fullmatch(how)
    if not found:
        raise UserError(
            f"choices: {change!r} is neither on nor off nor a tile PATH-MxNxK-WARPS-STAGES[-PARTS][-dependent]"
        )
    path, *numbers, dependent = found.groups()
    if dependent and (path != "wide" or change.startswith("lm_head:")):
        raise UserError(
            f"choices: {change!r}: the head's tiles and those that are not wide are launched dependently anyway"
        )
    tile = Tile(path, *(int(number or 1) for number in numbers))  # type: ignore[arg-type]
    return replace(tile, dependent=dependent is not None)


def _cut(change: str, how: str) -> Cut:
    if found := HOPPER_CUT.fullmatch(how):
        parts, ring, ahead = map(int, found.groups("0"))
        return Cut(parts, stages=ring, ahead=ahead, hopper=True)
    if found := CUT.fullmatch(how):
        parts, tokens, warps, stages, ahead = map(int, found.groups("0"))
        if tokens != next_power_of_2(tokens) or warps != next_power_of_2(warps):
            raise UserError(f"choices: {change!r} has tokens or warps that are no power of two")
        return Cut(parts, tokens, warps, stages, ahead)
    raise UserError(f"choices: {change!r} is neither off nor a cut PARTSxTOKENS-WARPS-STAGES nor hopper-PARTSxRING")
