"""Models of transformers that put images into words: those of LLaVA's family, with the tower that they read."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..checkpoint import Checkpoint, open_checkpoint
from ..checkpoint.json_files import stated
from ..checkpoint.reach import READERS
from ..errors import BadInput
from .loading import device_of, dtype_of
from .placing import placed
from .quiet import without_bars
from .references import resolve

QUESTION = "Describe the image."
LONGEST = 64  # tokens of a caption where neither the user nor the model's generation_config.json says it
IMAGE = "<image>"


class Captioner:
    """A language model that reads images through a vision tower.

    Args:
        module: transformers' model, in eval mode.
        processor: Its processor: image preprocessing, tokenizer and chat template.
        folder: Where it came from, for messages.
        question: What is asked about every image; with ``<image>`` in it, it is the whole prompt.
        longest: The most tokens of an answer; None for the model's own limit.
    """

    def __init__(self, module: Any, processor: Any, folder: Path, question: str, longest: int | None) -> None:
        self.module, self._processor, self._folder = module, processor, folder
        self._prompt = question if IMAGE in question else self._asked(question)
        config = module.generation_config
        self._longest = longest or config.max_new_tokens or LONGEST
        # What only sampling uses would be warned of at every call.
        config.temperature = config.top_p = config.top_k = None

    def with_tower(self, source: Checkpoint) -> AbstractContextManager[None]:
        """Reads through another checkpoint's vision tower while the body runs. Raises as `placed`."""
        return placed(self.module, "vision", source)

    @torch.no_grad()
    def captions(self, images: Sequence[Image.Image]) -> list[str]:
        """The answer to the question about each RGB image, by greedy decoding.

        Raises:
            BadInput: The processor fails on the images.
        """
        try:
            inputs = self._processor(images=[*images], text=[self._prompt] * len(images), padding=True,
                                     return_tensors="pt")  # fmt: skip
        except (ValueError, TypeError, IndexError, KeyError) as error:
            raise BadInput(f"{self._folder}: its processor fails on these images ({_line(error)})") from None
        weight = next(self.module.parameters())
        moved = {
            name: value.to(weight.device, weight.dtype if value.is_floating_point() else None)
            for name, value in inputs.items()
        }
        made = self.module.generate(**moved, do_sample=False, num_beams=1, max_new_tokens=self._longest)
        new = made[:, moved["input_ids"].shape[1] :]
        return [text.strip() for text in self._processor.batch_decode(new, skip_special_tokens=True)]

    def _asked(self, question: str) -> str:
        """The prompt by the processor's chat template. Raises BadInput where there is none."""
        if not getattr(self._processor, "chat_template", None):
            raise BadInput(
                f"{self._folder}: has no chat template; write the whole prompt with {IMAGE} in it, such as "
                f"--ask 'USER: {IMAGE}\\n{QUESTION} ASSISTANT:'"
            )
        content = [{"type": "image"}, {"type": "text", "text": question}]
        return self._processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)


def open_captioner(
    reference: str,
    *,
    question: str = QUESTION,
    longest: int | None = None,
    device: str = "auto",
    dtype: str = "auto",
    **hub: Any,
) -> Captioner:
    """Open a captioner in transformers' format.

    Args:
        reference: As in `uwm.load`.
        question, longest: As in `Captioner`.
        device, dtype: As in `uwm.load`.
        hub: ``revision``, ``cache_dir`` and ``offline``, as in `uwm.models.references.resolve`.

    Raises:
        BadInput: Not of LLaVA's family in transformers' format, damaged, or without a processor.
    """
    target, computed_in = device_of(device), dtype_of(dtype)
    folder = resolve(reference, **hub)
    check_captioner(folder)
    processor = _loaded(folder, "AutoProcessor", "processor")
    processor.tokenizer.padding_side = "left"  # answers begin where prompts end
    module = _loaded(folder, _class(), "model", dtype=computed_in, use_safetensors=True)
    module.to(target).eval().requires_grad_(False)
    return Captioner(module, processor, folder, question, longest)


def check_captioner(folder: Path) -> Checkpoint:
    """Open the checkpoint of a captioner, and refuse what is none. Raises BadInput."""
    if not (folder / "config.json").is_file():
        raise BadInput(f"{folder}: no config.json in it; --caption takes a folder of a LLaVA in transformers' format")
    kind = stated(folder / "config.json").get("model_type")
    if kind not in READERS:
        raise BadInput(
            f"{folder}: model_type {kind!r} puts no images into words by a tower that uwm knows; --caption takes "
            f"{', '.join(READERS)}"
        )
    return open_checkpoint(folder)


def _class() -> str:
    """The class that reads them: its name changed in transformers 4.46."""
    import transformers

    new = "AutoModelForImageTextToText"
    return new if hasattr(transformers, new) else "AutoModelForVision2Seq"


def _loaded(folder: Path, name: str, what: str, **options: Any) -> Any:
    """A part of a folder, by transformers' own class."""
    import transformers

    try:
        with without_bars():
            cls = getattr(transformers, name)
            return cls.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False, **options)
    except (OSError, ValueError, ImportError, TypeError, KeyError, AttributeError) as error:
        raise BadInput(f"{folder}: the {what} cannot be used ({_line(error)})") from None


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


class TextClassifier:
    """A model of transformers that classifies texts, and those of its labels that mean unsafe.

    Args:
        reference: A folder, as in `uwm.load`.
        unsafe: Labels, by name or number.
        device: As in `uwm.load`.
        hub: As in `open_captioner`.

    Raises:
        BadInput: No such folder, no classifier, or an unknown label; the message lists those that there are.
    """

    def __init__(self, reference: str, unsafe: Sequence[str], *, device: str = "auto", **hub: Any) -> None:
        folder = resolve(reference, **hub)
        self._tokenizer = _loaded(folder, "AutoTokenizer", "tokenizer")
        self._module = _loaded(folder, "AutoModelForSequenceClassification", "classifier", use_safetensors=True)
        self._module.to(device_of(device)).eval()
        config = self._module.config
        labels = {int(number): str(name) for number, name in config.id2label.items()}
        known = {str(number): number for number in labels} | {name: number for number, name in labels.items()}
        listed = ", ".join(labels.values())
        if not unsafe:
            raise BadInput(f"--text-classifier {reference}: say with --unsafe-label which of {listed} is unsafe")
        if unknown := [label for label in unsafe if label not in known]:
            raise BadInput(f"--unsafe-label {unknown[0]!r}: {reference} has no such label; it has {listed}")
        self._unsafe = sorted({known[label] for label in unsafe})
        self._several = config.problem_type == "multi_label_classification"

    @torch.no_grad()
    def unsafe(self, texts: Sequence[str]) -> torch.Tensor:
        """Whether each text gets an unsafe label, bool [texts]: its first label, or of several each from 0.5 on."""
        length = min(self._tokenizer.model_max_length, getattr(self._module.config, "max_position_embeddings", 512))
        inputs = self._tokenizer([*texts], padding=True, truncation=True, max_length=length, return_tensors="pt")
        logits = self._module(**inputs.to(self._module.device)).logits.float().cpu()  # [texts, labels]
        if self._several:
            return (logits[:, self._unsafe] >= 0).any(1)
        return torch.isin(logits.argmax(1), torch.tensor(self._unsafe))
