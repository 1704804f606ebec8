"""UCF101 from extracted frames and from videos, and which frame of a video is its middle."""

from __future__ import annotations

import sys
from fractions import Fraction
from pathlib import Path

import av
import pytest
from PIL import Image
from tiny_published import paint, shade_of, ucf101, write

from uwm.errors import BadInput
from uwm.knowledge.ucf101 import middle_frame, read_ucf101


def film(path: Path, shades: list[int]) -> None:
    """A video with one frame a shade, as UCF101's: MPEG-4 in AVI."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as video:
        stream = video.add_stream("mpeg4", rate=25)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for number, shade in enumerate(shades):
            frame = av.VideoFrame.from_image(Image.new("RGB", (32, 32), (8 * shade,) * 3))
            frame.pts, frame.time_base = number, Fraction(1, 25)
            video.mux(stream.encode(frame))
        video.mux(stream.encode())


@pytest.mark.parametrize("count", [1, 2, 7, 40])
def test_middle_frame(count, tmp_path):
    film(tmp_path / "x.avi", list(range(1, count + 1))[:30] + [31] * (count - 30))
    assert shade_of(middle_frame(tmp_path / "x.avi")) == 1 + count // 2


def test_videos_give_what_their_frames_give(tmp_path):
    expected = ucf101(tmp_path, None)
    base = tmp_path / "ucf101"
    for path in sorted((base / "UCF-101-midframes").rglob("*.jpg")):
        name = path.parent.name.replace("_", "")
        film(base / "UCF-101" / name / f"{path.stem}.avi", [1, shade_of(Image.open(path)), 1])
    (base / "UCF-101-midframes").rename(tmp_path / "elsewhere")
    pictures, names = read_ucf101(tmp_path)
    assert [(names[target], shade_of(picture)) for picture, target in (pictures[i] for i in range(6))] == expected


def test_frames_that_are_missing(tmp_path):
    ucf101(tmp_path, None)
    (tmp_path / "ucf101" / "UCF-101-midframes" / "YoYo" / "v_YoYo_g02_c01.jpg").unlink()
    with pytest.raises(BadInput, match=r"1 of 6 test videos are missing, such as YoYo/v_YoYo_g02_c01\.avi"):
        read_ucf101(tmp_path)


def test_a_class_that_is_not_listed(tmp_path):
    ucf101(tmp_path, None)
    write(tmp_path / "ucf101" / "ucfTrainTestlist" / "classInd.txt", "1 ApplyEyeMakeup\n")
    with pytest.raises(BadInput, match="name class 'YoYo', which classInd.txt does not have"):
        read_ucf101(tmp_path)


def test_videos_without_pyav(tmp_path, monkeypatch):
    ucf101(tmp_path, None)
    (tmp_path / "ucf101" / "UCF-101-midframes").rename(tmp_path / "elsewhere")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(BadInput, match=r"pip install 'uwm\[video\]'"):
        read_ucf101(tmp_path)


def test_no_video(tmp_path):
    paint(tmp_path / "x.png", 1)
    (tmp_path / "x.png").rename(tmp_path / "x.avi")
    (tmp_path / "y.avi").write_text("not a video")
    assert shade_of(middle_frame(tmp_path / "x.avi")) == 1  # FFmpeg goes by content: a film of one frame
    with pytest.raises(BadInput, match=r"y\.avi: not a video that can be decoded"):
        middle_frame(tmp_path / "y.avi")
