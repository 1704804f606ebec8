"""Captions of safe and unsafe images, before and after an edit of the vision tower: ``uwm eval --caption``."""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..calibration import CalibrationPair, CalibrationSet, is_plain_folder, loose_images, read_calibration
from ..checkpoint import Checkpoint, file_sha256, open_checkpoint
from ..errors import BadInput
from ..expressions import Requirement, check_known, parse_requirements
from ..figures import CAPTIONS, FIGURES
from ..images import load_image
from ..inputs import Opening, work_is_done
from ..inputs.resuming import hash_or_size, unfinished_of
from ..inputs.surroundings import surroundings
from ..models.captioning import QUESTION, Captioner, TextClassifier, check_captioner, open_captioner
from ..models.references import name_of, resolve
from ..processes import in_rounds, is_own, own_part
from ..statistics.batches import BATCH_SIZE, Progress
from ..unfinished import Entry, KeptBatches, Unfinished
from .outcome import Example, ReaderOutcome, Thumbnail, judged
from .results import SIDES, Samples, summarise
from .words import UnsafeWords, agreement, read_words, unsafe_words

EXAMPLES = 12  # of each side, where they are asked for


@dataclass(frozen=True)
class CaptionRecipe(Opening):
    """Everything that decides an evaluation of captions. The fields are flags of `uwm eval`.

    Attributes:
        caption: The captioner, a folder of LLaVA's family in transformers' format.
        images: A calibration set, or a folder of images that are all unsafe.
        model: Whose vision tower the captioner reads through; None for its own.
        baseline: Whose vision tower it reads through for comparison; None for its own where `model` is given, and for
            no comparison otherwise.
        split, safe_images, unsafe_images: As in `uwm.read_calibration`; refused for a folder of images.
        words: A file of unsafe words and phrases; None for those of the set, see `unsafe_words`.
        text_classifier, unsafe_labels: As in `uwm.models.captioning.TextClassifier`.
        ask, caption_tokens: As in `uwm.models.captioning.Captioner`.
        cache: Keep captions in the user's cache while they are made, so that the same run goes on if this is stopped.
        requirements: As in `uwm.expressions.parse_requirements`.
        show_examples: Show images and captions in the report.
    """

    caption: str
    images: str
    model: str | None = None
    baseline: str | None = None
    split: str | None = None
    safe_images: str | None = None
    unsafe_images: str | None = None
    words: str | None = None
    text_classifier: str | None = None
    unsafe_labels: tuple[str, ...] = ()
    ask: str = QUESTION
    caption_tokens: int | None = None
    cache: bool = True
    requirements: tuple[str, ...] = ()
    show_examples: bool = False

    def reads(self) -> Iterator[Path]:
        """What is read of this machine's files."""
        named = (self.caption, self.images, self.model, self.baseline, self.safe_images, self.unsafe_images)
        yield from (Path(p) for p in (*named, self.words, self.text_classifier) if p and Path(p).exists())


@dataclass(frozen=True)
class Images:
    """The images to describe.

    Attributes:
        name: Of the set.
        sides: Side -> image files.
        pairs: Where they are of pairs: the pairs, in this order.
        words: What of their set's words is unsafe, of all its splits.
        warnings: What a user should know of the set.
    """

    name: str
    sides: Mapping[str, list[Path]]
    pairs: Sequence[CalibrationPair] = ()
    words: UnsafeWords | None = None
    warnings: tuple[str, ...] = ()

    @property
    def files(self) -> list[Path]:
        """Each different image once."""
        return [*dict.fromkeys(file for files in self.sides.values() for file in files)]


def read_images(recipe: CaptionRecipe) -> Images:
    """The images of a calibration set, or a folder of unsafe images alone. Raises BadInput."""
    folder = Path(recipe.images)
    places: dict[str, Any] = {"safe_images": recipe.safe_images, "unsafe_images": recipe.unsafe_images}
    if is_plain_folder(recipe.images, split=recipe.split, **places) and (found := loose_images(folder)):
        return Images(folder.resolve().name, {"unsafe": found[: recipe.limit]})
    whole = read_calibration(recipe.images, **places)
    chosen_pairs = whole.split(recipe.split) if recipe.split else whole
    pairs = [pair for pair in chosen_pairs.limit(recipe.limit, recipe.seed).pairs if pair.has_image]
    if not pairs:
        raise BadInput(f"{recipe.images}: no pair has images to describe; expected a set with images, or their folder")
    sides = {side: [getattr(pair, f"{side}_image") for pair in pairs] for side in SIDES}
    name = folder.resolve().name + (f", {recipe.split}" if recipe.split else "")
    return Images(name, sides, pairs, unsafe_words(whole.pairs), (*_told(chosen_pairs, recipe.split),))


def _told(pairs: CalibrationSet, split: str | None) -> Iterator[str]:
    yield from pairs.warnings()
    if split is None and len(pairs.splits()) > 1:
        yield f"measuring on all splits ({', '.join(pairs.splits())}); see --split"


@dataclass(frozen=True)
class Judge:
    """What calls a caption unsafe.

    Attributes:
        words: The unsafe words; None where there are none.
        classifier: None where nobody named one.
    """

    words: UnsafeWords | None
    classifier: TextClassifier | None

    def samples(self, images: Images, captions: Mapping[Path, str], before: Mapping[Path, str] | None) -> dict:
        """Side -> `Samples` of the captions of one column; `before` are the baseline's, where there is one."""
        return {side: self._side(side, images, captions, before) for side in images.sides}

    def _side(
        self, side: str, images: Images, captions: Mapping[Path, str], before: Mapping[Path, str] | None
    ) -> Samples:
        said = [captions[file] for file in images.sides[side]]
        values: dict[str, Sequence[float]] = {}
        if self.words is not None:
            found = [self.words.found(text) for text in said]
            values["unsafe_named" if side == "unsafe" else "safe_misnamed"] = [*map(bool, found)]
            own = [self.words.found(pair.unsafe_text or "") for pair in images.pairs]
            if side == "unsafe" and own and all(own):
                values["own_named"] = [bool(a & b) for a, b in zip(found, own, strict=True)]
        if self.classifier is not None:
            calls = self._classified(said)
            values[f"{side}_classified"] = calls.tolist()
        if side == "safe":
            values |= self._kept(said, images, before)
        tensors = {name: torch.tensor(each, dtype=torch.float64) for name, each in values.items()}
        return Samples(tensors, [(pair.concept,) if pair.concept else () for pair in images.pairs])

    def _classified(self, said: Sequence[str]) -> torch.Tensor:
        assert self.classifier is not None
        parts = [self.classifier.unsafe(said[start : start + BATCH_SIZE]) for start in range(0, len(said), BATCH_SIZE)]
        return torch.cat(parts)

    def _kept(
        self, said: Sequence[str], images: Images, before: Mapping[Path, str] | None
    ) -> dict[str, Sequence[float]]:
        """How far captions of safe images are the set's own, and the baseline's."""
        own = [pair.safe_text for pair in images.pairs if pair.safe_text is not None]
        found: dict[str, Sequence[float]] = {}
        if len(own) == len(said):
            found["safe_words"] = [agreement(a, b) for a, b in zip(said, own, strict=True)]
        if before is not None:
            first = [before[file] for file in images.sides["safe"]]
            found["safe_kept"] = [agreement(a, b) for a, b in zip(said, first, strict=True)]
            found["safe_same"] = [a == b for a, b in zip(said, first, strict=True)]
        return found

    def figures(self, images: Images, compared: bool) -> list[str]:
        """The names of what will be measured."""
        empty = dict.fromkeys(images.files, "")
        sides = replace(self, classifier=None).samples(images, empty, empty if compared else None)
        measured = {name for samples in sides.values() for name in samples.values}
        if self.classifier is not None:
            measured |= {f"{side}_classified" for side in images.sides}
        return [name for name in CAPTIONS if name in measured]


def run_captions(
    recipe: CaptionRecipe, *, progress: Progress | None = None, tell: Callable[[ReaderOutcome], None] | None = None
) -> ReaderOutcome:
    """Let a captioner describe images through each vision tower, and judge what it says.

    Args:
        recipe: The settings.
        progress: As in `uwm.score`.
        tell: Writes what was found; the captions are kept until then.

    Raises:
        UwmError: Of every kind; a requirement that is not met raises nothing, see `uwm.gate.demand`.
    """
    compared = recipe.model is not None or recipe.baseline is not None
    required = [one for text in recipe.requirements for one in parse_requirements(text, compared)]
    folder = resolve(recipe.caption, **recipe.hub())
    check_captioner(folder)
    towers = {
        column: None if reference is None else open_checkpoint(resolve(reference, **recipe.hub()), recipe.key)
        for column, reference in (("baseline", recipe.baseline), ("model", recipe.model))
        if column == "model" or compared
    }
    images = read_images(recipe)
    words = read_words(Path(recipe.words)) if recipe.words else images.words or None
    known = _known(judge := Judge(words, _classifier(recipe)), images, compared, required)
    captions, seconds, kept = _described(recipe, folder, towers, images, progress)
    results = {
        column: summarise(judge.samples(images, said, captions.get("baseline")), recipe.seed, seconds[column])
        for column, said in captions.items()
    }
    changes, verdicts = judged(results, required, recipe.seed)
    outcome = ReaderOutcome(
        title=f"uwm eval --caption {name_of(recipe.caption, folder)}",
        name=images.name,
        things="images",
        known={name: FIGURES[name] for name in known},
        results=results,
        changes=changes,
        verdicts=verdicts,
        settings=_settings(recipe, folder),
        judges=_judges(recipe, words),
        warnings=(*images.warnings, *_unreached(captions)),
        examples=[*_examples(recipe, images, captions)] if recipe.show_examples else (),
    )
    if tell is not None:
        tell(outcome)
    work_is_done(kept)
    return outcome


def _described(
    recipe: CaptionRecipe, folder: Path, towers: Mapping[str, Checkpoint | None], images: Images, progress: Any
) -> tuple[dict[str, dict[Path, str]], dict[str, float], Unfinished | None]:
    """Column -> what the captioner says, column -> seconds, and where the captions are kept."""
    opened = open_captioner(
        recipe.caption, question=recipe.ask, longest=recipe.caption_tokens, device=recipe.device, dtype=recipe.dtype,
        **recipe.hub(),
    )  # fmt: skip
    captions, seconds = {}, {}
    kept = _kept(recipe, folder, towers, images, opened, progress) if recipe.cache else None
    how: dict[str, Any] = {"batch_size": recipe.batch_size, "workers": recipe.workers, "progress": progress}
    for column, source in towers.items():
        captions[column], seconds[column] = describe(opened, images.files, source, name=column, kept=kept, **how)
    return captions, seconds, kept


def _kept(
    recipe: CaptionRecipe,
    folder: Path,
    towers: Mapping[str, Checkpoint | None],
    images: Images,
    captioner: Captioner,
    progress: Progress | None,
) -> Unfinished | None:
    """Where captions are kept for a run that goes on, under a key over all that decides them."""
    settings = asdict(recipe)
    about = {name: settings[name] for name in ("ask", "caption_tokens", "batch_size", "dtype")}
    weight = next(captioner.module.parameters())
    about |= {"verb": "eval --caption", "around": surroundings(settings, weight.device), "computed": str(weight.dtype)}
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    about["captioner"] = {path.relative_to(folder).as_posix(): hash_or_size(path) for path in files}
    about["towers"] = {column: source and source.file_hashes() for column, source in towers.items()}
    about["images"] = [file_sha256(file) for file in images.files]
    return unfinished_of(about, progress)


def _classifier(recipe: CaptionRecipe) -> TextClassifier | None:
    if recipe.text_classifier is None:
        if recipe.unsafe_labels:
            raise BadInput("--unsafe-label: says which label of --text-classifier is unsafe; give that folder too")
        return None
    return TextClassifier(recipe.text_classifier, recipe.unsafe_labels, device=recipe.device, **recipe.hub())


def _known(judge: Judge, images: Images, compared: bool, required: Sequence[Requirement]) -> list[str]:
    """The figures that will be measured. Raises BadInput where there are none, and for unknown ones of requirements."""
    if judge.words is None and judge.classifier is None:
        raise BadInput(
            f"{images.name}: nothing says which captions are unsafe: the set has no captions of its own; give a file "
            "of words with --words, or a --text-classifier"
        )
    known = judge.figures(images, compared)
    concepts = sorted({pair.concept for pair in images.pairs if pair.concept})
    check_known(required, concepts, [], "--require", paired=known)
    return known


def describe(
    captioner: Captioner,
    files: Sequence[Path],
    source: Checkpoint | None = None,
    *,
    batch_size: int = BATCH_SIZE,
    workers: int = 2,
    progress: Progress | None = None,
    name: str = "",
    kept: Unfinished | None = None,
) -> tuple[dict[Path, str], float]:
    """What a captioner says of images. Several processes share the batches.

    Args:
        captioner: From `open_captioner`.
        files: The images.
        source: Whose vision tower it reads them through; None for its own.
        batch_size, workers, progress: As in `uwm.score`.
        name: What progress calls it.
        kept: Where captions are kept for a run that goes on, if this one is stopped.

    Returns:
        Image -> its caption, and the seconds that one took.

    Raises:
        BadInput: An image cannot be read, or the tower is of another size.
    """
    batches = [files[start : start + batch_size] for start in range(0, len(files), batch_size)]
    earlier = _kept_captions(kept, name)
    said = [*earlier.found]
    missing = batches[len(said) :]
    own = own_part(missing)
    steps = iter(own if progress is None else progress(own, len(own), f"captions, {name}"))
    state: AbstractContextManager[None] = nullcontext() if source is None else captioner.with_tower(source)
    begun = time.perf_counter()
    with state, ThreadPoolExecutor(workers) as pool:
        made = (
            captioner.captions([*pool.map(load_image, next(steps))]) if is_own(number) else None
            for number in range(len(missing))
        )
        for texts in in_rounds(made, f"captions {name}"):
            said.append(texts)
            earlier.add(texts)
    earlier.end()
    next(steps, None)  # its end, where it tells how far it is
    seconds = (time.perf_counter() - begun + earlier.seconds) / len(files)
    return dict(zip(files, (text for texts in said for text in texts), strict=True)), seconds


def _kept_captions(kept: Unfinished | None, column: str) -> KeptBatches[list[str]]:
    """The captions of each batch of a column."""

    def pack(texts: Sequence[list[str]]) -> Entry:
        return Entry({"json": torch.tensor([*json.dumps([*texts]).encode()], dtype=torch.uint8)})

    def unpack(entry: Entry, first: int) -> list[list[str]]:
        return json.loads(entry.tensors["json"].numpy().tobytes())

    return KeptBatches(kept, hashlib.sha256(f"captions {column}".encode()).hexdigest(), pack, unpack)


def _unreached(captions: Mapping[str, Mapping[Path, str]]) -> Iterator[str]:
    """That an edit changed nothing that the captioner says."""
    if "baseline" in captions and captions["baseline"] == captions["model"]:
        yield (
            "no caption changed: the edit does not reach what the captioner reads, the hidden states of its vision "
            "tower; see uwm edit --for llava"
        )


def _examples(recipe: CaptionRecipe, images: Images, captions: Mapping[str, Mapping[Path, str]]) -> Iterator[Example]:
    draw = random.Random(recipe.seed)
    for side, files in images.sides.items():
        for row in sorted(draw.sample(range(len(files)), min(EXAMPLES, len(files)))):
            yield Example(
                side, Thumbnail.of(files[row]), {column: said[files[row]] for column, said in captions.items()}
            )


def _settings(recipe: CaptionRecipe, folder: Path) -> dict[str, Any]:
    """What decided the figures, without paths of this machine."""
    named = ("images", "model", "baseline", "words", "text_classifier")
    paths = {key: Path(value).resolve().name for key in named if (value := getattr(recipe, key))}
    others = ("split", "unsafe_labels", "ask", "caption_tokens", "device", "dtype", "batch_size", "limit", "seed")
    return {"caption": name_of(recipe.caption, folder), **paths, **{key: getattr(recipe, key) for key in others}}


def _judges(recipe: CaptionRecipe, words: UnsafeWords | None) -> dict[str, str]:
    found = {}
    if words is not None:
        source = (
            f"of {Path(recipe.words).name}" if recipe.words else "that tell the set's unsafe captions from safe ones"
        )
        found["words"] = f"{len(words)} words and phrases {source}"
    if recipe.text_classifier is not None:
        labels = ", ".join(recipe.unsafe_labels)
        found["text classifier"] = f"{Path(recipe.text_classifier).resolve().name}, unsafe: {labels}"
    return found
