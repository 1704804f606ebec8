"""UCF101: the middle frame of each test video, from frames that were extracted before or from the videos themselves.

torchvision's own reader cuts videos into clips and looks into all 13 320 of them first, so it is not used.
"""

from __future__ import annotations

import re
from pathlib import Path

from PIL import Image

from ..errors import BadInput
from .pictures import Files, text_lines

FRAMES = "UCF-101-midframes"
VIDEOS = "UCF-101"
LISTS = "ucfTrainTestlist"


def read_ucf101(root: Path) -> tuple[Files, list[str]]:
    """The test lists 01–03 joined.

    Args:
        root: Holds ``ucf101/`` with ``ucfTrainTestlist/`` (``classInd.txt``, ``testlist01.txt`` …) and either
            ``UCF-101-midframes/`` (a picture a video, ``<video>.jpg``, in folders of any name) or
            ``UCF-101/<Class>/<video>.avi``, for which PyAV is needed.

    Returns:
        The frames, and the class names with their words apart.

    Raises:
        BadInput: A list, a class or a frame is missing, or PyAV is.
    """
    base = root / "ucf101"
    rows = [line.split() for line in text_lines(base / LISTS / "classInd.txt")]
    numbers = {name: i for i, (_, name) in enumerate(rows)}
    videos = [line.split()[0] for n in (1, 2, 3) for line in text_lines(base / LISTS / f"testlist{n:02d}.txt")]
    foreign = sorted({video.split("/")[0] for video in videos} - numbers.keys())
    if foreign:
        raise BadInput(f"{base / LISTS}: the test lists name class {foreign[0]!r}, which classInd.txt does not have")
    targets = [numbers[video.split("/")[0]] for video in videos]
    names = [re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name) for name in numbers]
    if (base / FRAMES).is_dir():
        by_video = {path.stem: path for path in sorted((base / FRAMES).rglob("*.jpg"))}
        paths = [by_video.get(Path(video).stem) for video in videos]
        return Files(_all_there(paths, videos, targets, base / FRAMES)), names
    _demand_pyav(base)
    paths = [path if (path := base / VIDEOS / video).is_file() else None for video in videos]
    return Files(_all_there(paths, videos, targets, base / VIDEOS), middle_frame), names


def _all_there(paths: list[Path | None], videos: list[str], targets: list[int], folder: Path) -> list[tuple[Path, int]]:
    missing = [video for video, path in zip(videos, paths, strict=True) if path is None]
    if missing:
        raise BadInput(f"{folder}: {len(missing)} of {len(videos)} test videos are missing, such as {missing[0]}")
    return [(path, target) for path, target in zip(paths, targets, strict=True) if path is not None]


def _demand_pyav(base: Path) -> None:
    try:
        import av  # noqa: F401
    except ImportError:
        raise BadInput(
            f"{base}: no {FRAMES}/ with extracted frames, and reading the videos needs PyAV; pip install 'uwm[video]'"
        ) from None


def middle_frame(path: Path) -> Image.Image:
    """Frame n // 2 of a video's n frames, as an RGB picture. Raises BadInput when it cannot be decoded."""
    import av

    try:
        with av.open(str(path)) as video:
            count = sum(1 for _ in video.decode(video=0))  # what the header says need not be so
        with av.open(str(path)) as video:
            for number, frame in enumerate(video.decode(video=0)):
                if number == count // 2:
                    return frame.to_image()
    except (OSError, ValueError, IndexError) as error:
        raise BadInput(f"{path}: not a video that can be decoded ({error})") from None
    raise BadInput(f"{path}: a video without frames")
