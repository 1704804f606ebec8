"""A diffusers pipeline that draws prompts into a folder, each from the noise of its own seed; killed, it goes on."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch

from ..checkpoint import Checkpoint, file_sha256
from ..checkpoint.json_files import stated
from ..errors import BadInput
from ..models.loading import device_of, dtype_of
from ..models.placing import placed
from ..models.quiet import without_bars
from ..outputs import put_file
from ..processes import in_rounds, is_own
from ..statistics.batches import Progress
from .prompts import Prompt

EXTRA = "diffusers is not installed, and --generate needs it; `pip install 'uwm[generate]'`"
PIPELINES = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")
LIBRARIES = ("diffusers", "transformers")  # whose classes a pipeline may name
LEFT_OUT = ("safety_checker", "feature_extractor", "image_encoder")  # they black images out, or read none here
ENCODERS = {"text": "text_encoder", "text_2": "text_encoder_2"}  # tower -> the pipeline's part

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Brush:
    """How images are drawn; None for the prompt's own, or else the pipeline's.

    Attributes:
        steps: Of denoising.
        guidance: The scale of classifier-free guidance.
        size: Pixels of both sides.
        batch_size: Images at a time.
        device, dtype: As in `uwm.load`.
    """

    steps: int | None = None
    guidance: float | None = None
    size: int | None = None
    batch_size: int = 8
    device: str = "auto"
    dtype: str = "auto"

    def asked(self, prompt: Prompt) -> dict[str, Any]:
        """The keywords of the pipeline for a prompt; prompts with equal ones can be drawn together."""
        both = {
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance if self.guidance is not None else prompt.guidance,
            "width": self.size or prompt.width,
            "height": self.size or prompt.height,
        }
        return {name: value for name, value in both.items() if value is not None}

    def batches(self, prompts: Sequence[Prompt]) -> list[list[Prompt]]:
        """Prompts with equal keywords, so many at a time, in order."""
        groups: dict[str, list[Prompt]] = {}
        for prompt in prompts:
            groups.setdefault(json.dumps(self.asked(prompt)), []).append(prompt)
        size = self.batch_size
        return [group[start : start + size] for group in groups.values() for start in range(0, len(group), size)]


@dataclass(frozen=True)
class Painter:
    """A pipeline, opened when it has something to draw, and the text towers that it reads.

    Attributes:
        folder: Of the pipeline.
        towers: A checkpoint whose text towers are put in place of its own; None for its own.
        brush: How it draws.
    """

    folder: Path
    towers: Checkpoint | None = None
    brush: Brush = field(default_factory=Brush)

    def key(self, hashed: Callable[[Path], dict[str, str]] | None = None) -> str:
        """What decides its images but prompt and seed, hashed; `hashed` gives the hashes of a pipeline's files.

        Raises:
            BadInput: No such device or dtype.
            ResourceFault: The device is not there.
        """
        decides = {name: value for name, value in asdict(self.brush).items() if name != "batch_size"}
        decides |= {"device": device_of(self.brush.device).type, "dtype": str(dtype_of(self.brush.dtype))}
        towers = None if self.towers is None else [self.towers.file_hashes(), _chosen(self.towers)]
        text = json.dumps([decides, towers, (hashed or _hashed)(self.folder)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def draw(
        self, prompts: Sequence[Prompt], place: Path, name: str, progress: Progress | None = None
    ) -> tuple[dict[Prompt, Path], float | None]:
        """Draw what is not yet in a folder. Several processes share the batches.

        Args:
            prompts: What to draw; equal ones are drawn once.
            place: The folder of images; files that are there are kept.
            name: What progress calls it.
            progress: As in `uwm.score`.

        Returns:
            Prompt -> its image, and seconds an image, None where nothing was left to draw.

        Raises:
            BadInput: diffusers is not installed, or the pipeline is damaged or of another kind.
            ResourceFault: The disk failed.
        """
        found = {prompt: place / prompt.name for prompt in prompts}
        missing = [*{file: prompt for prompt, file in found.items() if not file.is_file()}.values()]
        if not missing:
            return found, None
        batches = self.brush.batches(missing)
        steps = batches if progress is None else progress(batches, len(batches), name)
        with self._opened() as pipeline:
            begun = time.perf_counter()
            made = (self._drawn(pipeline, batch) if is_own(n) else None for n, batch in enumerate(steps))
            for batch, images in zip(batches, in_rounds(made, name), strict=True):
                for prompt, data in zip(batch, images, strict=True):
                    put_file(found[prompt], data)
            return found, (time.perf_counter() - begun) / len(missing)

    def _drawn(self, pipeline: Any, batch: Sequence[Prompt]) -> list[bytes]:
        """The images of a batch, as PNG."""
        generators = [torch.Generator().manual_seed(prompt.seed) for prompt in batch]  # the same on every device
        texts = [prompt.text for prompt in batch]
        images = pipeline(prompt=texts, generator=generators, **self.brush.asked(batch[0])).images
        return [_png(image) for image in images]

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        """The pipeline, with the text towers in place."""
        pipeline = open_pipeline(self.folder, self.brush.device, self.brush.dtype)
        with ExitStack() as stack:
            for tower, part in ENCODERS.items() if self.towers is not None else ():
                assert self.towers is not None
                encoder = getattr(pipeline, part, None)
                if encoder is not None and (tower == "text" or self.towers.layout.tower(tower) is not None):
                    stack.enter_context(placed(encoder, "text", self.towers, tower))
            yield pipeline


def keys(painters: Mapping[str, Painter]) -> dict[str, str]:
    """Column -> `Painter.key`; a folder of several columns is hashed once. Raises as `Painter.key`."""
    hashed = cache(_hashed)
    return {column: painter.key(hashed) for column, painter in painters.items()}


def check_pipeline(folder: Path) -> None:
    """Refuse a folder that is no pipeline of a known kind, before the work. Raises BadInput."""
    index = folder / "model_index.json"
    if not index.is_file():
        raise BadInput(f"{folder}: no model_index.json in it; --generate takes a folder of a diffusers pipeline")
    content = stated(index)
    kind = content.get("_class_name")
    if kind not in PIPELINES:
        raise BadInput(f"{folder}: a {kind}; --generate draws with {' and '.join(PIPELINES)}")
    for name, value in content.items():
        foreign = isinstance(value, list) and value and value[0] not in (None, *LIBRARIES)
        if foreign and name not in LEFT_OUT:
            raise BadInput(f"{folder}: model_index.json takes its {name} from {value[0]!r}; expected diffusers' own")


def open_pipeline(folder: Path, device: str, dtype: str) -> Any:
    """A pipeline of diffusers that draws without a safety checker. Raises BadInput."""
    try:
        import diffusers
    except ImportError:
        raise BadInput(EXTRA) from None
    check_pipeline(folder)
    content = stated(folder / "model_index.json")
    none: dict[str, Any] = {name: None for name in LEFT_OUT if name in content}
    none |= {"requires_safety_checker": False} if "safety_checker" in content else {}
    told = diffusers.utils.logging.get_verbosity()
    diffusers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.set_verbosity_error()  # that stored halves become float32 is what is wanted
    try:
        with without_bars():
            cls = getattr(diffusers, content["_class_name"])
            pipeline = cls.from_pretrained(str(folder), local_files_only=True, use_safetensors=True, **none)
        pipeline.to(device_of(device), dtype_of(dtype))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise BadInput(f"{folder}: the pipeline cannot be used ({line})") from None
    finally:
        diffusers.utils.logging.set_verbosity(told)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _hashed(folder: Path) -> dict[str, str]:
    """sha256 of a pipeline's files, by their place in its folder."""
    return {path.relative_to(folder).as_posix(): file_sha256(path) for path in _files(folder)}


def _chosen(towers: Checkpoint) -> list[Any]:
    """Where the tensors of torch files lie; of several state dicts in a file this tells which was chosen."""
    pickled = [(file.component + name, one) for file in towers.files for name, one in (file.pickled or {}).items()]
    return sorted([name, one.storage.begin, one.offset, one.shape, one.stride] for name, one in pickled)


def _files(folder: Path) -> list[Path]:
    """What of a pipeline's folder decides its images: everything but what uwm writes beside weights, sorted."""
    kept = (path for path in folder.rglob("*") if path.is_file() and path.suffix in (".safetensors", ".json", ".txt"))
    return sorted(path for path in kept if path.parent != folder or path.name == "model_index.json")


def _png(image: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()
