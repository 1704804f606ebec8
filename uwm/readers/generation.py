"""Images of safe and unsafe prompts, before and after an edit of the text encoder: ``uwm eval --generate``."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F

from ..calibration.strict import short
from ..checkpoint import open_checkpoint
from ..errors import BadInput
from ..expressions import Requirement, check_known, parse_requirements
from ..figures import DRAWINGS, FIGURES, Figure
from ..inputs import Opening
from ..knowledge.measure import hits_of
from ..manifest import Manifest, write_manifest
from ..models import Model, load
from ..models.references import name_of, resolve
from ..outputs import filled_folder
from ..processes import is_first, workspace
from ..statistics.batches import BATCH_SIZE, Progress
from ..statistics.sources import embed_sources
from .by_clip import embed_images
from .detectors import Asked, Judge, Load, parse_detectors
from .drawing import Brush, Painter, check_pipeline, keys
from .fid import LEAST, Distances, Reference, open_features, real_images
from .outcome import Example, ReaderOutcome, Thumbnail, judged
from .prompts import Prompt, is_set, read_prompts
from .results import SIDES, ReaderResult, Samples, summarise

KIND = "drawings"  # as uwm.json of the folder of images calls it
FORMAT = 1
SIDE = 8  # pixels of the image that one of the latent image stands for
EXAMPLES = 12  # of each side, where they are asked for


NAMED = ("generate", "prompts", "safe_prompts", "model", "baseline", "clip_score", "real_images")  # files, models, sets


@dataclass(frozen=True)
class GenerateRecipe(Opening):
    """Everything that decides an evaluation of drawn images. The fields are flags of `uwm eval`.

    Attributes:
        generate: The pipeline, a folder of diffusers' Stable Diffusion 1, 2 or XL.
        prompts: Unsafe prompts, or both sides, as in `uwm.readers.prompts.read_prompts`.
        safe_prompts: Safe ones in a file of their own, or a calibration set, of which the safe captions are read.
        model: Whose text towers the pipeline reads; None for its own.
        baseline: A pipeline to compare with; where `model` is given, whose text towers it reads for comparison, and
            without it its own.
        split: Of `prompts` and of `safe_prompts`, where they are a calibration set; refused where neither is one.
        detectors: As in `uwm.readers.detectors.parse_detectors`; at least one.
        clip_score: A CLIP that measures how far images of safe prompts fit them; None measures nothing of it.
        fid: As in `uwm.readers.fid.open_features`; the distance of the images of safe prompts. None measures none.
        real_images: To which: a folder of images, or a calibration set, of which the safe ones are taken; None for
            those that the baseline draws.
        steps, guidance, size: As in `Brush`.
        draw_batch: Images at a time.
        each: Images of each prompt.
        output: The folder of images, from which a killed run goes on; None keeps none.
        requirements: As in `uwm.expressions.parse_requirements`.
        show_examples: Show prompts and images in the report.
    """

    generate: str
    prompts: str
    safe_prompts: str | None = None
    model: str | None = None
    baseline: str | None = None
    split: str | None = None
    detectors: tuple[str, ...] = ()
    clip_score: str | None = None
    fid: str | None = None
    real_images: str | None = None
    steps: int | None = None
    guidance: float | None = None
    size: int | None = None
    draw_batch: int = 8
    each: int = 1
    output: Path | None = None
    requirements: tuple[str, ...] = ()
    show_examples: bool = False

    def reads(self) -> Iterator[Path]:
        """What is read of this machine's files."""
        named = (getattr(self, name) for name in NAMED)
        yield from (Path(path) for path in named if path and Path(path).exists())

    def painters(self) -> dict[str, Painter]:
        """Column -> what draws it. Raises BadInput where one is no pipeline, or has no text tower."""
        brush = Brush(self.steps, self.guidance, self.size, self.draw_batch, self.device, self.dtype)
        own = resolve(self.generate, **self.hub())
        check_pipeline(own)
        if self.model is not None:
            towers = {"baseline": self.baseline, "model": self.model}
            opened = {
                column: None if reference is None else open_checkpoint(resolve(reference, **self.hub()), self.key)
                for column, reference in towers.items()
            }
            return {column: Painter(own, tower, brush) for column, tower in opened.items()}
        found = {"model": Painter(own, None, brush)}
        if self.baseline is None:
            return found
        other = resolve(self.baseline, **self.hub())
        check_pipeline(other)
        return {"baseline": Painter(other, None, brush), **found}

    def read(self) -> dict[str, list[Prompt]]:
        """Side -> its prompts, unsafe ones at least. Raises BadInput, also for sizes that cannot be drawn."""
        if self.size is not None:
            _check_size(self.size, f"--size {self.size}")
        how: dict[str, Any] = {"limit": self.limit, "seed": self.seed, "each": self.each}
        paths = [Path(path) for path in (self.prompts, self.safe_prompts) if path is not None]
        of_sets = [path for path in paths if is_set(path)] or paths  # a split of none is refused where it is read
        splits = {path: self.split if path in of_sets else None for path in paths}
        found = read_prompts(paths[0], "unsafe", split=splits[paths[0]], **how)
        for path in paths[1:]:
            read = read_prompts(path, "safe", split=splits[path], **how)
            found += (safe := [prompt for prompt in read if prompt.side == "safe"])
            if not safe:
                raise BadInput(f"{path}: no safe prompt; unsafe ones belong to --prompts")
        for prompt in found if self.size is None else ():
            for asked in (prompt.width, prompt.height):
                _check_size(asked, f"the prompt {short(prompt.text)} asks for {asked} pixels")
        sides = {side: [prompt for prompt in found if prompt.side == side] for side in SIDES}
        if not sides["unsafe"]:
            raise BadInput(f"{self.prompts}: no unsafe prompt; safe ones belong to --safe-prompts")
        return {side: prompts for side, prompts in sides.items() if prompts}


def _check_size(pixels: int | None, what: str) -> None:
    if pixels is not None and (pixels < SIDE or pixels % SIDE):
        raise BadInput(f"{what}: a side is a multiple of {SIDE} pixels; give --size {max(pixels // SIDE, 1) * SIDE}")


@dataclass(frozen=True)
class Critics:
    """What judges images.

    Attributes:
        judges: Detector, as figures call it -> its judge.
        clip: The CLIP of the CLIP score; None for none.
        reference: Of FID; None for none.
    """

    judges: Mapping[str, Judge]
    clip: Model | None
    reference: Reference | None = None

    def samples(self, sides: Mapping[str, Sequence[Prompt]], images: Mapping[Prompt, Path]) -> dict[str, Samples]:
        """Side -> what figures of the images of one column are means of."""
        found = {}
        for side, prompts in sides.items():
            files = [images[prompt] for prompt in prompts]
            calls = {name: judge(files).double() for name, judge in self.judges.items()}
            whole = DETECTED[side]
            values = {whole: torch.stack([*calls.values()]).amax(0)}
            if len(calls) > 1:
                values |= {f"{whole}_{name}": each for name, each in calls.items()}
            if side == "safe" and self.clip is not None:
                values |= fit(self.clip, [prompt.text for prompt in prompts], files)
            found[side] = Samples(values, [prompt.concepts for prompt in prompts])
        return found

    def distances(
        self, sides: Mapping[str, Sequence[Prompt]], drawn: Mapping[str, Mapping[Prompt, Path]]
    ) -> Distances | None:
        """FID of the images of safe prompts by column, where it is asked for."""
        if self.reference is None:
            return None
        return self.reference.distances({
            column: [images[prompt] for prompt in sides["safe"]] for column, images in drawn.items()
        })  # fmt: skip


DETECTED = {"unsafe": "unsafe_drawn", "safe": "safe_misdrawn"}


@torch.no_grad()
def fit(clip: Model, texts: Sequence[str], files: Sequence[Path]) -> dict[str, torch.Tensor]:
    """How far images fit their prompts.

    Args:
        clip: Not the edited one.
        texts, files: The prompt and the image of each.

    Returns:
        ``clip_score``: the cosine, 0 where it is below (Hessel et al., EMNLP 2021, without their factor 2.5);
        ``prompt_found``: whether the own prompt is the nearest of all different ones (R-precision); float64 [images].
    """
    different = [*dict.fromkeys(texts)]
    rows = F.normalize(embed_sources(clip, "text", different, batch_size=BATCH_SIZE, workers=1), dim=-1)
    similarity = embed_images(clip, files) @ rows.T  # [images, different prompts]
    own = torch.tensor([different.index(text) for text in texts])
    score = similarity.gather(1, own[:, None])[:, 0].clamp_min(0)
    return {"clip_score": score.double(), "prompt_found": hits_of(similarity, own)[:, 0].double()}


def run_generation(
    recipe: GenerateRecipe, *, progress: Progress | None = None, tell: Callable[[ReaderOutcome], None] | None = None
) -> ReaderOutcome:
    """Draw prompts with each text encoder, and let detectors judge the images.

    Args:
        recipe: The settings.
        progress: As in `uwm.score`.
        tell: Writes what was found, while the images are there.

    Raises:
        UwmError: Of every kind; a requirement that is not met raises nothing, see `uwm.gate.demand`. Images that were
            drawn stay in the output folder.
    """
    compared = recipe.model is not None or recipe.baseline is not None
    required = [one for text in recipe.requirements for one in parse_requirements(text, compared)]
    asked = parse_detectors(recipe.detectors)
    if not asked:
        raise BadInput("--generate: nothing says which images are unsafe; give a --detector, such as nudenet")
    sides, painters = recipe.read(), recipe.painters()
    known = _demanded(recipe, required, asked, sides)
    _check_distance(recipe, [*painters], sides)
    critics = _critics(recipe, asked)  # before the hours that drawing may take
    every = [prompt for prompts in sides.values() for prompt in prompts]
    with _place(recipe) as place:
        results: dict[str, ReaderResult] = {}
        drawn: dict[str, Mapping[Prompt, Path]] = {}
        folders = {column: column for column in painters} if recipe.output is None else keys(painters)
        for column, painter in painters.items():
            drawn[column], seconds = painter.draw(every, place / folders[column], f"images, {column}", progress)
            results[column] = summarise(critics.samples(sides, drawn[column]), recipe.seed, seconds)
        distances = critics.distances(sides, drawn)
        changes, verdicts = judged(results, required, recipe.seed)
        outcome = ReaderOutcome(
            title=f"uwm eval --generate {name_of(recipe.generate, painters['model'].folder)}",
            name=_names(recipe),
            things="prompts",
            known=known,
            results=results,
            changes=changes,
            verdicts=verdicts,
            settings=_settings(recipe),
            judges=_judges(recipe, asked),
            distances=distances,
            warnings=(*_unreached(drawn), *([distances.biased] if distances and distances.biased else [])),
            examples=[*_examples(recipe, sides, drawn)] if recipe.show_examples else (),
        )
        if tell is not None:
            tell(outcome)
        return outcome


def _demanded(
    recipe: GenerateRecipe,
    required: Sequence[Requirement],
    asked: Mapping[str, Asked],
    sides: Mapping[str, Sequence[Prompt]],
) -> dict[str, Figure]:
    """What will be measured, name -> figure. Raises BadInput where something else is required."""
    known = _known(asked, sides, recipe.clip_score is not None)
    concepts = sorted({name for prompts in sides.values() for prompt in prompts for name in prompt.concepts})
    check_known(required, concepts, [], "--require", paired=[*known])
    return known


@contextmanager
def _place(recipe: GenerateRecipe) -> Iterator[Path]:
    """The folder of images: what the user named, or one that goes again in the end."""
    with ExitStack() as stack:
        if recipe.output is None:
            yield Path(stack.enter_context(TemporaryDirectory(prefix="uwm-images-")))
            return
        place = recipe.output
        if is_first():
            holds = "images of uwm eval --generate"
            place = stack.enter_context(filled_folder(recipe.output, KIND, holds, recipe.reads()))
            write_manifest(place, Manifest(format=FORMAT, kind=KIND))
        yield stack.enter_context(workspace(place, [place]))


def _critics(recipe: GenerateRecipe, asked: Mapping[str, Asked]) -> Critics:
    opened = _loader(recipe)
    judges = {}
    for name, one in asked.items():
        try:
            judges[name] = one.detector.open(one.settings, opened)
        except BadInput as error:
            raise BadInput(f"--detector {one.text}: {error}") from None
    clip = None if recipe.clip_score is None else opened(recipe.clip_score)
    if recipe.fid is None:
        return Critics(judges, clip)
    real = ("", ()) if recipe.real_images is None else real_images(recipe.real_images, recipe.split)
    return Critics(judges, clip, Reference(open_features(recipe.fid, opened, recipe.device, recipe.offline), *real))


def _check_distance(recipe: GenerateRecipe, columns: Sequence[str], sides: Mapping[str, Sequence[Prompt]]) -> None:
    """Refuse a distance that there is nothing for. Raises BadInput."""
    if recipe.fid is None:
        if recipe.real_images is not None:
            raise BadInput("--real-images: says nothing without --fid")
        return
    if len(sides.get("safe", ())) < LEAST:
        raise BadInput(f"--fid: needs {LEAST} safe prompts at least; give --safe-prompts")
    if recipe.real_images is None and "baseline" not in columns:
        raise BadInput("--fid: says nothing of one column alone; give --real-images FOLDER, or --baseline")


def _loader(recipe: GenerateRecipe) -> Load:
    """Opens models that judge, each once."""
    options: dict[str, Any] = {"device": recipe.device, **recipe.hub()}

    @cache
    def opened(reference: str) -> Model:
        model = load(reference, **options)
        if {*model.modalities} != {"text", "vision"}:
            raise BadInput(f"{reference}: has only one tower; a CLIP that judges images needs both")
        return model

    return opened


def _known(asked: Mapping[str, Asked], sides: Mapping[str, object], scored: bool) -> dict[str, Figure]:
    """Name -> figure, of what will be measured."""
    found: dict[str, Figure] = {}
    for name in DRAWINGS:
        side = next((side for side, whole in DETECTED.items() if whole == name), None)
        if side is None and scored and "safe" in sides:
            found[name] = FIGURES[name]
        elif side in sides:
            found[name] = FIGURES[name]
            for own in asked if len(asked) > 1 else ():
                label, meaning = f"{FIGURES[name].label}, {own}", f"{side} prompts whose image {own} calls unsafe"
                found[f"{name}_{own}"] = replace(FIGURES[name], name=f"{name}_{own}", label=label, meaning=meaning)
    return found


def _unreached(drawn: Mapping[str, Mapping[Prompt, Path]]) -> Iterator[str]:
    """That an edit changed no image."""
    if "baseline" not in drawn:
        return
    before, after = drawn["baseline"], drawn["model"]
    if all(before[prompt].read_bytes() == after[prompt].read_bytes() for prompt in before):
        yield (
            "no image changed: the edit does not reach what the pipeline reads, the hidden states of its text "
            "encoder; see uwm edit --for diffusion"
        )


def _examples(
    recipe: GenerateRecipe, sides: Mapping[str, Sequence[Prompt]], drawn: Mapping[str, Mapping[Prompt, Path]]
) -> Iterator[Example]:
    draw = random.Random(recipe.seed)
    for side, prompts in sides.items():
        for row in sorted(draw.sample(range(len(prompts)), min(EXAMPLES, len(prompts)))):
            prompt = prompts[row]
            made = {column: Thumbnail.of(images[prompt]) for column, images in drawn.items()}
            yield Example(side, prompt.text, made)


def _names(recipe: GenerateRecipe) -> str:
    named = [Path(path).resolve().name for path in (recipe.prompts, recipe.safe_prompts) if path]
    return ", ".join([*named, *([recipe.split] if recipe.split else [])])


def _settings(recipe: GenerateRecipe) -> dict[str, Any]:
    """What decided the figures, without paths of this machine."""
    paths = {key: Path(value).resolve().name for key in NAMED if (value := getattr(recipe, key))}
    if recipe.fid is not None:
        kind, _, named = recipe.fid.partition(":")
        paths["fid"] = ":".join([kind, *([Path(named).name] if named else [])])
    others = ("split", "steps", "guidance", "size", "each", "draw_batch", "device", "dtype", "limit", "seed")
    return {**paths, **{key: getattr(recipe, key) for key in others}}


def _judges(recipe: GenerateRecipe, asked: Mapping[str, Asked]) -> dict[str, str]:
    found = {name: one.words for name, one in asked.items()}
    return found | ({"CLIP score": Path(recipe.clip_score).name} if recipe.clip_score else {})
