"""The Fréchet inception distance (FID) of drawn images to other images; torchmetrics works it out.

Heusel et al., "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium" (NeurIPS 2017): both
sets of features are taken for normal distributions, N(μ, Σ) and N(μ', Σ'), and the distance is
‖μ − μ'‖² + tr(Σ + Σ' − 2 (Σ Σ')^½). Features are those of the Inception network of that paper, or of a CLIP
(CLIP-FID; Kynkäänniemi et al., "The Role of ImageNet Classes in Fréchet Inception Distance", ICLR 2023).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants

from ..calibration import is_plain_folder, loose_images, read_calibration
from ..errors import BadInput, Refused
from ..images import load_image
from ..models.described import reason
from ..models.loading import device_of
from ..statistics.batches import BATCH_SIZE
from ..statistics.sources import embed_sources
from .detectors import Load

EXTRA = "{} is not installed, and --fid needs it; `pip install 'uwm[fid]'`"
INCEPTION, CLIP = "inception", "clip"
WIDTH = 2048  # features of Inception
LEAST = 2  # images, of which there is a covariance


@dataclass(frozen=True)
class Features:
    """What images are compared by.

    Attributes:
        words: What it is, for reports.
        rows: Image files -> features, [files, width].
    """

    words: str
    rows: Callable[[Sequence[Path]], torch.Tensor]


@dataclass(frozen=True)
class Distances:
    """FID of the images of safe prompts.

    Attributes:
        words: Of the features.
        reference: What the images are compared with.
        images, references: How many.
        width: Features of an image.
        columns: Column -> its distance; less is better.
    """

    words: str
    reference: str
    images: int
    references: int
    width: int
    columns: Mapping[str, float]

    @property
    def biased(self) -> str:
        """That so few images make a distance larger than it is; empty where they are more than the features."""
        if min(self.images, self.references) > self.width:
            return ""
        return (
            f"FID of {self.images} and {self.references} images in {self.width} dimensions is too large; compare it "
            "only with others of as many images"
        )


@dataclass(frozen=True)
class Reference:
    """What images of safe prompts are compared with.

    Attributes:
        features: What by.
        name: Of the real images; empty where the baseline's are taken.
        files: The real images.
    """

    features: Features
    name: str = ""
    files: tuple[Path, ...] = ()

    def distances(self, drawn: Mapping[str, Sequence[Path]]) -> Distances:
        """From the images of safe prompts by column; ``baseline`` has none where it is the reference."""
        rows = {column: self.features.rows(files) for column, files in drawn.items()}
        real = self.features.rows(self.files) if self.files else rows.pop("baseline")
        found = {column: fid(real, own) for column, own in rows.items()}
        count = len(next(iter(drawn.values())))
        name = self.name or "the baseline's images of the same prompts"
        return Distances(self.features.words, name, count, len(real), real.shape[1], found)


def real_images(place: str, split: str | None) -> tuple[str, tuple[Path, ...]]:
    """The name and the files of what ``--real-images`` names.

    Args:
        place: A folder of images, or a calibration set, of which the safe images are taken.
        split: Of the set, where it has splits.

    Raises:
        BadInput: Nothing is there, or fewer than two images.
    """
    folder, name = Path(place), Path(place).resolve().name
    if is_plain_folder(folder, flag="--real-images"):
        found = loose_images(folder)
    else:
        whole = read_calibration(place)
        pairs = (whole.split(split) if split and whole.splits() else whole).pairs
        found = [*dict.fromkeys(pair.safe_image for pair in pairs if pair.safe_image is not None)]
        name += f", {split}" if split and whole.splits() else ""
    if len(found) < LEAST:
        raise BadInput(f"--real-images {place}: expected {LEAST} images at least, found {len(found)}")
    return name, tuple(found)


def open_features(text: str, load: Load, device: str = "auto", offline: bool = False) -> Features:
    """What ``--fid`` names.

    Args:
        text: ``clip:MODEL``, a CLIP; or ``inception:FILE``, the weights that torch-fidelity publishes; without FILE it
            downloads them.
        load: Opens a CLIP.
        device, offline: As in `uwm.load`.

    Raises:
        BadInput: It is neither, or a library or the file is missing. Refused: The file holds more than weights.
    """
    kind, _, named = text.partition(":")
    if kind not in (INCEPTION, CLIP) or (kind == CLIP and not named):
        raise BadInput(f"--fid {text}: expected clip:MODEL, inception:FILE with its weights, or inception")
    distance_class()  # before the hours that drawing may take
    if kind == CLIP:
        model = load(named)
        return Features(f"CLIP-FID by {Path(named).name}", lambda files: _embedded(model, files))
    if not named and (offline or constants.HF_HUB_OFFLINE):
        raise BadInput(
            "--fid inception: fetches its weights, which --offline or HF_HUB_OFFLINE forbids; give inception:FILE"
        )
    place = device_of(device)
    network = _inception(named or None).to(place)
    return Features("FID by Inception", lambda files: _seen(network, files, place))


def fid(real: torch.Tensor, drawn: torch.Tensor) -> float:
    """The distance of two sets of features, [n, width] and [m, width]; at least two of each."""
    metric = distance_class()(feature=_AsTheyAre(real.shape[1]))
    metric.update(real.double(), real=True)
    metric.update(drawn.double(), real=False)
    return float(metric.compute())


class _AsTheyAre(torch.nn.Module):
    """In place of a network, where torchmetrics is given features."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return rows


def distance_class() -> Any:
    """torchmetrics' class. Raises BadInput where it is not installed."""
    try:
        from torchmetrics.image.fid import FrechetInceptionDistance
    except ImportError:
        raise BadInput(EXTRA.format("torchmetrics")) from None
    return FrechetInceptionDistance


def _embedded(model: Any, files: Sequence[Path]) -> torch.Tensor:
    """Embeddings that are not normalised, as CLIP-FID has them."""
    return embed_sources(model, "vision", files, batch_size=BATCH_SIZE, workers=2, name="judge").cpu()


def _inception(file: str | None) -> torch.nn.Module:
    """The network. Raises BadInput, Refused."""
    if file is not None:
        _check_weights(Path(file))
    try:
        network = distance_class()(feature=WIDTH, feature_extractor_weights_path=file).inception
    except ModuleNotFoundError:
        raise BadInput(EXTRA.format("torch-fidelity")) from None
    except (RuntimeError, OSError, ValueError, TypeError, AttributeError) as error:
        what = f"{file}: holds no weights of torch-fidelity's Inception" if file else "--fid inception: no weights"
        raise BadInput(f"{what}: {reason(error)}; give inception:FILE") from None
    return network


def _check_weights(file: Path) -> None:
    """torch-fidelity reads the file as a pickle that may run code, so it must be one that cannot."""
    if not file.is_file():
        raise BadInput(f"{file}: no such file; --fid inception:FILE takes torch-fidelity's weights")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of how it was pickled
            torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # of a damaged file it may be any; torch's own words advise to read it all the same
        raise Refused(
            f"{file}: is no torch file of weights alone ({type(error).__name__}); take the weights that torch-fidelity "
            "publishes"
        ) from None


@torch.no_grad()
def _seen(network: torch.nn.Module, files: Sequence[Path], device: torch.device) -> torch.Tensor:
    """Features of image files in the size they have; the network resizes them itself."""
    return torch.cat([network(_pixels(file).to(device)).reshape(1, -1).cpu() for file in files])


def _pixels(file: Path) -> torch.Tensor:
    """uint8 [1, 3, height, width]."""
    import numpy as np

    return torch.from_numpy(np.array(load_image(file))).permute(2, 0, 1)[None]
