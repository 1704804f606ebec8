"""A plain CLIP from one library's spelling to the other's: names, fused projections, transposed matrices."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from ..checkpoint import Checkpoint, LazyTensor, write_tensors
from ..errors import BadInput
from ..layouts import spelled
from ..weights import WeightRef, block_count


@dataclass(frozen=True)
class Rule:
    """One tensor of open_clip and its equal in Hugging Face's spelling: the same, transposed, or fused of three."""

    hugging_face: tuple[str, ...]
    open_clip: str
    transposed: bool = False

    def places(self) -> dict[str, WeightRef]:
        """Hugging Face's key -> where its tensor lies in open_clip's."""
        parts = len(self.hugging_face)
        return {key: WeightRef(self.open_clip, n, parts, self.transposed) for n, key in enumerate(self.hugging_face)}


def rules(text_layers: int, vision_layers: int, text_prefix: str = "") -> Iterator[Rule]:
    """Every tensor of a plain CLIP; `text_prefix` is ``text.`` in open_clip's CustomTextCLIP."""
    yield Rule(("logit_scale",), "logit_scale")
    for modality, theirs, ours, layers in (
        ("text", "text_model.", text_prefix, text_layers),
        ("vision", "vision_model.", "visual.", vision_layers),
    ):
        old = spelled("hf-clip", modality, theirs, range(layers))
        new = spelled("open_clip", modality, ours, range(layers))
        fused: dict[tuple[str, bool], tuple[str, ...]] = {}  # row blocks are in their order
        for name in (name for name in new if name in old):
            place = (new[name].key, new[name].transposed)
            fused[place] = (*fused.get(place, ()), old[name].key)
        yield from (Rule(keys, key, transposed) for (key, transposed), keys in fused.items())


def convert(checkpoint: Checkpoint, to: str, target: Path) -> None:
    """Write a plain CLIP's weights in the other spelling, tensor by tensor.

    Args:
        checkpoint: Of transformers' or open_clip's spelling.
        to: ``"hf"`` or ``"open_clip"``.
        target: The safetensors file to write.

    Raises:
        BadInput: It has tensors that a plain CLIP has not, or lacks some.
    """
    write_tensors(target, dict(converted(checkpoint, plain_clip(checkpoint, to), to)))


def plain_clip(checkpoint: Checkpoint, to: str) -> list[Rule]:
    """The rules that spell this checkpoint; raises as `convert`."""
    layers = {modality: block_count(checkpoint.weights, modality) for modality in ("text", "vision")}
    text = checkpoint.layout.tower("text")
    prefix = text.prefix if text is not None and to == "hf" else ""
    table = list(rules(layers["text"], layers["vision"], prefix))
    used = {name for rule in table for name in ((rule.open_clip,) if to == "hf" else rule.hugging_face)}
    present = {key for key in checkpoint.entries if not key.endswith("position_ids")}
    if used != present:
        odd = sorted(used ^ present)
        word = "lacks" if odd[0] in used else "has"
        raise BadInput(
            f"{checkpoint.path}: no plain CLIP, it {word} {odd[0]}, so it cannot be spelled in the other layout"
        )
    return table


def converted(checkpoint: Checkpoint, table: list[Rule], to: str) -> Iterator[tuple[str, LazyTensor]]:
    """New name -> its dtype, shape and how to make it."""
    for rule in table:
        if to == "open_clip":
            yield rule.open_clip, _fused(checkpoint, rule)
        else:
            yield from ((name, _part(checkpoint, ref)) for name, ref in rule.places().items())


def _fused(checkpoint: Checkpoint, rule: Rule) -> LazyTensor:
    infos = [checkpoint.entries[name][1] for name in rule.hugging_face]
    first = infos[0].shape
    shape = (
        first[::-1] if rule.transposed else (sum(i.shape[0] for i in infos), *first[1:]) if len(infos) > 1 else first
    )

    def make() -> torch.Tensor:
        parts = [checkpoint.read(name) for name in rule.hugging_face]
        whole = torch.cat(parts) if len(parts) > 1 else parts[0]
        return whole.T if rule.transposed else whole

    return infos[0].dtype, shape, make


def _part(checkpoint: Checkpoint, ref: WeightRef) -> LazyTensor:
    info = checkpoint.entries[ref.key][1]
    if ref.key == "logit_scale":  # in open_clip it may have the shape [1]
        return info.dtype, (), lambda: checkpoint.read(ref.key).reshape(())
    rows, *others = info.shape[::-1] if ref.transposed else info.shape or (1,)
    shape = (rows // ref.parts, *others) if info.shape else ()
    return info.dtype, shape, lambda: ref.of(checkpoint.read(ref.key))
