"""What of a set's two sides a model can tell apart: captions that it cuts, and pairs whose sides are equal for it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from ..errors import BadInput
from ..images import load_image
from ..models import Model
from .groups import ImageHashes
from .pairs import CalibrationPair, CalibrationSet

MOST_EQUAL = 0.5  # share of pairs with equal sides above which a set is refused
BOTH = ("text", "vision")
ROWS = 1024  # pairs that are tokenized at a time


@dataclass(frozen=True)
class Signal:
    """Pairs whose sides are equal for a model carry no signal: what is learnt from them is noise.

    Attributes:
        length: The most tokens of a caption that the model reads; 0 without a model or captions.
        with_text, with_image: Pairs with both sides, of the modalities that the model has.
        cut: Ids of pairs with a caption that is longer and loses its end; once for each such caption.
        equal_texts: Ids of pairs whose captions have equal tokens, after cutting; not those labelled safe.
        equal_images: Ids of pairs whose images are the same file, byte for byte; not those labelled safe.
    """

    length: int = 0
    with_text: int = 0
    with_image: int = 0
    cut: tuple[str, ...] = ()
    equal_texts: tuple[str, ...] = ()
    equal_images: tuple[str, ...] = ()

    def warnings(self) -> Iterator[str]:
        """One line for each kind that occurs."""
        if self.cut:
            total = 2 * self.with_text
            yield f"{len(self.cut)} of {total} captions are longer than the model's {self.length} tokens and were cut"
        if self.equal_texts:
            after = " after that" if {*self.cut} & {*self.equal_texts} else ""
            yield f"{_first(self.equal_texts, self.with_text)} have captions that are equal{after}"
        if self.equal_images:
            yield f"{_first(self.equal_images, self.with_image)} have equal images"

    def refusal(self, towers: Collection[str]) -> str | None:
        """Why these towers cannot learn from the set: more than `MOST_EQUAL` of their pairs have equal sides."""
        kinds = {"text": (self.equal_texts, self.with_text), "vision": (self.equal_images, self.with_image)}
        for tower, (equal, total) in kinds.items():
            if tower in towers and len(equal) > MOST_EQUAL * total:
                return (
                    f"{'; '.join(self.warnings())}. They tell the {tower} tower nothing, and a set with more than "
                    f"{100 * MOST_EQUAL:g} % of such pairs is refused; mend them, or edit the other tower alone"
                )
        return None

    def as_dict(self) -> dict[str, list[str]]:
        """The ids by kind, for `uwm calib-check`; none without a model, of which `check` says the rest."""
        equal = self.equal_texts if self.length else ()
        return {"captions_cut_by_the_model": [*dict.fromkeys(self.cut)], "captions_equal_for_the_model": [*equal]}


def _first(ids: Sequence[str], total: int) -> str:
    return f"{len(ids)} of {total} pairs (first: {', '.join(ids[:3])})"


def signal(model: Model | None, calibration: CalibrationSet, towers: Collection[str] = BOTH) -> Signal:
    """Look for captions that are cut and pairs with equal sides.

    Args:
        model: In its modalities; None: as texts and files, before any model.
        calibration: The pairs.
        towers: Of ``text`` and ``vision``, which of them matter.
    """
    has = [tower for tower in BOTH if tower in towers and (model is None or tower in model.modalities)]
    pairs = [p for p in calibration.pairs if p.has_text] if "text" in has else []
    images = [p for p in calibration.pairs if p.has_image] if "vision" in has else []
    cut: list[str] = []
    equal: list[CalibrationPair] = []
    for start in range(0, len(pairs), ROWS):
        some = pairs[start : start + ROWS]
        cut += [] if model is None else _cut(model, some)
        same = [p.safe_text == p.unsafe_text for p in some] if model is None else _equal(model, some)
        equal += [p for p, found in zip(some, same, strict=True) if found]
    return Signal(
        model.context_length if model is not None and pairs else 0,
        len(pairs),
        len(images),
        tuple(cut),
        tuple(p.id for p in equal if p.unsafe_text_label != "safe"),
        tuple(p.id for p in images if p.unsafe_image_label != "safe" and _same_image(p, calibration.hashed)),
    )


def _captions(pairs: Sequence[CalibrationPair]) -> list[str]:
    return [text or "" for p in pairs for text in (p.safe_text, p.unsafe_text)]


def _cut(model: Model, pairs: Sequence[CalibrationPair]) -> list[str]:
    """Ids of the pairs of captions that are cut."""
    lengths = model.caption_lengths(_captions(pairs))
    return [pairs[n // 2].id for n, length in enumerate(lengths) if length > model.context_length]


def _equal(model: Model, pairs: Sequence[CalibrationPair]) -> list[bool]:
    """Whether the captions of each pair have equal tokens."""
    ids, mask = model.tokenize(_captions(pairs))
    return ((ids[::2] == ids[1::2]) & (mask[::2] == mask[1::2])).all(1).tolist()


def _same_image(pair: CalibrationPair, hashed: ImageHashes) -> bool:
    """Whether both files hold the same; what cannot be read does not, and the pass says so."""
    first, second = pair.safe_image, pair.unsafe_image
    if first is None or second is None:
        return False
    try:
        return first.stat().st_size == second.stat().st_size and hashed(first) == hashed(second)
    except (BadInput, OSError):
        return False


def demand_signal(model: Model, calibration: CalibrationSet, towers: Collection[str]) -> None:
    """Refuse before the pass what would make its result worthless.

    Args:
        model: Unedited.
        calibration: The pairs to learn from.
        towers: ``text``, ``vision``: which learn from them.

    Raises:
        BadInput: More than `MOST_EQUAL` of the pairs have equal sides, or the preprocessor does not fit the model.
    """
    if reason := signal(model, calibration, towers).refusal(towers):
        raise BadInput(f"{calibration.root}: {reason}")
    image = next((p.safe_image for p in calibration.pairs if p.has_image), None)
    kept = () if model.kept is None else model.kept.pixels  # which were preprocessed
    if image is not None and image not in kept and "vision" in towers:
        model.preprocess([load_image(image)])
