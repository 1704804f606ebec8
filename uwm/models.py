"""One `Model` whatever the family. The only file that imports transformers or open_clip."""

from __future__ import annotations

import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from .checkpoint import Checkpoint, open_checkpoint
from .checkpoint.reader import matrix_sha256
from .errors import BadInput, ResourceFault
from .layouts import find_weights, recognise
from .references import resolve
from .weights import WeightId

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json")
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
IGNORED_KEYS = ("position_ids",)  # buffers that older files hold and newer libraries make themselves


class Model(ABC):
    """A CLIP-like model, ready to be observed, patched and asked for embeddings.

    Attributes:
        module: The torch module, in eval mode.
        checkpoint: Where its weights came from; None for a module made in memory.
        weights: Every editable weight, by its key in `module`.
        quick_gelu: Whether the activation is QuickGELU.
        edited: The weights that an open `patched` block has changed.
    """

    def __init__(self, module: nn.Module, checkpoint: Checkpoint | None, quick_gelu: bool) -> None:
        self.module = module.eval()
        self.checkpoint = checkpoint
        self.quick_gelu = quick_gelu
        self.edited: set[WeightId] = set()
        self._parameters = dict(module.named_parameters())
        layout = recognise(self._parameters, type(module).__name__)
        self.layout_name = layout.name
        self.weights = find_weights(layout, self._parameters)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.module.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""
        return next(self.module.parameters()).dtype

    def trainable(self, weight: WeightId) -> nn.Parameter:
        """The whole parameter that holds a weight, row blocks of other weights included."""
        return self._parameters[self.weights[weight].key]

    def parameter(self, weight: WeightId) -> torch.Tensor:
        """The live matrix [out, in], a view: writing to it edits the model."""
        ref = self.weights[weight]
        tensor = self._parameters[ref.key].detach()
        return tensor[ref.rows(len(tensor))]

    def owner(self, weight: WeightId) -> nn.Module:
        """The module to observe for a weight: its linear layer, or the `nn.MultiheadAttention` around it."""
        own, _, _ = self.weights[weight].key.rpartition(".")
        around = self.module.get_submodule(own.rpartition(".")[0])
        return around if isinstance(around, nn.MultiheadAttention) else self.module.get_submodule(own)

    def stored(self, weight: WeightId) -> torch.Tensor:
        """The unedited matrix [out, in] as the checkpoint stores it, or as it is in memory where there is none."""
        return self.parameter(weight).cpu() if self.checkpoint is None else self.checkpoint.matrix(weight)

    def fingerprint(self, weight: WeightId) -> str:
        """sha256 of the stored matrix."""
        return matrix_sha256(self.stored(weight))

    @abstractmethod
    def encode_image(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Image embeddings [n, dim], not normalised, of preprocessed pictures [n, 3, h, w]."""

    @abstractmethod
    def encode_text(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Text embeddings [n, dim], not normalised, of tokens [n, length]."""

    @abstractmethod
    def tokenize(self, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens and their mask (1 from the start to the end token), [n, length] each; cut to the context length."""

    @abstractmethod
    def preprocess(self, images: list[Image.Image]) -> torch.Tensor:
        """RGB pictures to the model's input, [n, 3, h, w]."""


class HuggingFaceModel(Model):
    """A `transformers.CLIPModel`; its folder may lack tokenizer and preprocessor until they are asked for."""

    def __init__(self, module: Any, checkpoint: Checkpoint | None) -> None:
        self.config: Any = module.config
        acts = {self.config.text_config.hidden_act, self.config.vision_config.hidden_act}
        super().__init__(module, checkpoint, acts == {"quick_gelu"})
        self._tokenizer: Any = None
        self._processor: Any = None

    @classmethod
    def open(cls, checkpoint: Checkpoint) -> HuggingFaceModel:
        """Build the module that the folder's config.json describes and fill it from the checkpoint."""
        from transformers import CLIPConfig, CLIPModel

        config = _read_json(checkpoint.path / "config.json")
        if config.get("model_type") != "clip":
            raise BadInput(
                f"{checkpoint.path}: config.json says model_type {config.get('model_type')!r}, expected 'clip'"
            )
        module = CLIPModel(CLIPConfig.from_pretrained(str(checkpoint.path)))
        _fill(module, checkpoint)
        return cls(module, checkpoint)

    def encode_image(self, pixel_values: torch.Tensor) -> torch.Tensor:
        module: Any = self.module
        return module.visual_projection(module.vision_model(pixel_values=pixel_values).pooler_output)

    def encode_text(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        module: Any = self.module
        output = module.text_model(input_ids=input_ids, attention_mask=attention_mask)
        return module.text_projection(output.pooler_output)

    def tokenize(self, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        if self._tokenizer is None:
            from transformers import AutoTokenizer

            self._tokenizer = self._side(AutoTokenizer.from_pretrained, "tokenizer", TOKENIZER_FILES)
        length = self.config.text_config.max_position_embeddings
        batch = self._tokenizer(texts, padding=True, truncation=True, max_length=length, return_tensors="pt")
        return batch["input_ids"], batch["attention_mask"]

    def preprocess(self, images: list[Image.Image]) -> torch.Tensor:
        if self._processor is None:
            from transformers import AutoImageProcessor

            self._processor = self._side(AutoImageProcessor.from_pretrained, "image preprocessor", PROCESSOR_FILES)
        return self._processor(images, return_tensors="pt")["pixel_values"]

    def _side(self, loader: Callable[[str], Any], what: str, files: tuple[str, ...]) -> Any:
        """Load a side file of the folder; transformers would make one up where there is none."""
        if self.checkpoint is None:
            raise BadInput(f"this model has no folder to read its {what} from; pass preprocessed PairBatch tensors")
        folder = self.checkpoint.path
        if not any((folder / name).is_file() for name in files):
            raise BadInput(
                f"{folder}: no {what} in this folder (none of {', '.join(files)}); copy the original's there"
            )
        try:
            return loader(str(folder))
        except (OSError, ValueError, ImportError, TypeError, KeyError) as error:
            raise BadInput(f"{folder}: the {what} cannot be used ({str(error).splitlines()[0]})") from None


class OpenClipModel(Model):
    """An open_clip model; `name` is what open_clip calls it, an architecture or ``local-dir:FOLDER``."""

    def __init__(self, module: nn.Module, checkpoint: Checkpoint | None, name: str, quick_gelu: bool) -> None:
        super().__init__(module, checkpoint, quick_gelu)
        self.name = name
        self._tokenizer: Any = None
        self._transform: Any = None

    @classmethod
    def open(cls, checkpoint: Checkpoint, arch: str | None, quick_gelu: bool | None) -> OpenClipModel:
        """Build the architecture named by the folder's config or by `arch` and fill it from the checkpoint."""
        import open_clip

        name = f"local-dir:{checkpoint.path}" if checkpoint.path.is_dir() else arch
        if name is None:
            raise BadInput(
                f"{checkpoint.path}: bare open_clip weights do not say their architecture or activation; "
                "pass --arch with an open_clip name, such as ViT-B-32 or ViT-B-32-quickgelu"
            )
        config = open_clip.get_model_config(name)
        if config is None:
            raise BadInput(f"--arch {name!r} is not known to open_clip; `open_clip.list_models()` lists the names")
        decided = bool(config.get("quick_gelu", False)) if quick_gelu is None else quick_gelu
        if checkpoint.path.is_dir() and decided != bool(config.get("quick_gelu", False)):
            raise BadInput(f"{checkpoint.path}: open_clip_config.json says quick_gelu {not decided}; drop the flag")
        with _open_clip_silenced():
            module = open_clip.create_model(
                name, load_weights=False, pretrained_text=False, pretrained_image=False, quick_gelu=decided
            )
        _fill(module, checkpoint)
        return cls(module, checkpoint, name, decided)

    def encode_image(self, pixel_values: torch.Tensor) -> torch.Tensor:
        module: Any = self.module
        return module.encode_image(pixel_values)

    def encode_text(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        module: Any = self.module
        missing = module.context_length - input_ids.shape[1]
        return module.encode_text(nn.functional.pad(input_ids, (0, missing)))

    def tokenize(self, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        if self._tokenizer is None:
            import open_clip

            self._tokenizer = open_clip.get_tokenizer(self.name)
        ids = self._tokenizer(texts)  # [n, context]; the end token has the highest number
        return ids, (torch.arange(ids.shape[1]) <= ids.argmax(-1, keepdim=True)).long()

    def preprocess(self, images: list[Image.Image]) -> torch.Tensor:
        if self._transform is None:
            from open_clip.transform import PreprocessCfg, image_transform_v2

            visual: Any = self.module.visual
            self._transform = image_transform_v2(PreprocessCfg(**visual.preprocess_cfg), is_train=False)
        return torch.stack([self._transform(image) for image in images])

    def folder_config(self) -> dict[str, Any]:
        """What open_clip_config.json of a folder with these weights must say."""
        import open_clip

        visual: Any = self.module.visual
        preprocess = {key: value for key, value in visual.preprocess_cfg.items() if value is not None}
        model = open_clip.get_model_config(self.name) | {"quick_gelu": self.quick_gelu}
        return {"model_cfg": model, "preprocess_cfg": preprocess}


def load(
    reference: str | Path,
    *,
    arch: str | None = None,
    quick_gelu: bool | None = None,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
    cache_dir: str | None = None,
    offline: bool = False,
) -> Model:
    """Open a model.

    Args:
        reference: A Hugging Face CLIP folder, an open_clip folder, bare open_clip weights, ``"demo"``, or a repository
            on the Hub; see `uwm.references.resolve`, also for `revision`, `cache_dir` and `offline`.
        arch: open_clip's name of the architecture, for bare weights.
        quick_gelu: The activation, where neither folder nor `arch` decides it.
        device: ``auto``, ``cpu``, ``cuda[:N]`` or ``mps``.
        dtype: ``auto`` (float32), ``float32``, ``bfloat16`` or ``float16``: what the model computes in.

    Raises:
        BadInput: Not found, damaged, not CLIP-like, or the activation is not known.
        Refused: A pickle that asks for more than tensors.
        ResourceFault: The device is not there.
    """
    checkpoint = open_checkpoint(resolve(reference, revision=revision, cache_dir=cache_dir, offline=offline))
    _refuse_nonfinite(checkpoint)
    model: Model
    if checkpoint.layout.name == "hf-clip":
        if not checkpoint.path.is_dir():
            raise BadInput(
                f"{checkpoint.path}: Hugging Face weights need their folder with config.json; pass the folder"
            )
        model = HuggingFaceModel.open(checkpoint)
        if quick_gelu is not None and quick_gelu != model.quick_gelu:
            raise BadInput(f"{checkpoint.path}: config.json says quick_gelu {model.quick_gelu}; drop the flag")
    else:
        model = OpenClipModel.open(checkpoint, arch, quick_gelu)
    model.module.to(device=_device(device), dtype=_dtype(dtype)).requires_grad_(False)
    return model


def _fill(module: nn.Module, checkpoint: Checkpoint) -> None:
    """Copy every stored tensor into the module, one by one; missing, foreign or misshapen ones are errors."""
    shapes = {k: v for k, v in checkpoint.shapes().items() if not k.endswith(IGNORED_KEYS)}
    own = module.state_dict()
    missing, foreign = sorted(own.keys() - shapes.keys()), sorted(shapes.keys() - own.keys())
    if missing or foreign:
        word, names = ("misses", missing) if missing else ("has unknown", foreign)
        listed = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
        raise BadInput(f"{checkpoint.path}: {word} {listed}; do the weights belong to this config or --arch?")
    for key, shape in shapes.items():
        if shape != tuple(own[key].shape):
            raise BadInput(
                f"{checkpoint.path}: {key} is {list(shape)}, the architecture expects {list(own[key].shape)}; "
                "check the config or --arch"
            )
    with torch.no_grad():
        for key in shapes:
            own[key].copy_(checkpoint.read(key))


@contextmanager
def _open_clip_silenced() -> Iterator[None]:
    """Drop open_clip's warning of random weights (ours follow): it goes to the root logger, and sets logging up."""
    root, handler = logging.getLogger(), logging.NullHandler()

    def keep(record: logging.LogRecord) -> bool:
        return "open_clip" not in record.pathname

    root.addHandler(handler)
    root.addFilter(keep)
    try:
        yield
    finally:
        root.removeFilter(keep)
        root.removeHandler(handler)


def _refuse_nonfinite(checkpoint: Checkpoint) -> None:
    for weight in checkpoint.weights:
        matrix = checkpoint.matrix(weight)
        if not matrix.dtype.is_floating_point or matrix.dtype.itemsize < 2:
            raise BadInput(f"{checkpoint.path}: {weight} is {matrix.dtype}, quantised; edit the float checkpoint first")
        bad = ~torch.isfinite(matrix)
        if bad.any():
            first = tuple(bad.nonzero()[0].tolist())
            raise BadInput(
                f"{checkpoint.path}: {weight} holds {int(bad.sum())} NaN or infinite values, first at {first}"
            )


def _device(name: str) -> torch.device:
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise BadInput(f"--device {name!r}: expected auto, cpu, cuda, cuda:N or mps") from None
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(device.type, False) or (
        device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()
    ):
        raise ResourceFault(f"--device {name}: not available on this machine; try --device cpu")
    return device


def _dtype(name: str) -> torch.dtype:
    known = {"auto": torch.float32, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in known:
        raise BadInput(f"--dtype {name!r}: expected one of {', '.join(known)}")
    return known[name]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text("utf-8-sig"))
    except FileNotFoundError:
        raise BadInput(f"{path.parent}: no {path.name} in this folder") from None
    except ValueError as error:
        raise BadInput(f"{path}: not valid JSON ({error})") from None
