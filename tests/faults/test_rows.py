"""Single rows of the list of faults: header bombs, hidden pickles, shards of two releases, what a message names."""

from __future__ import annotations

import io
import json
import resource
import shutil
import struct
import time
import zipfile

import pytest
import torch
from random_patches import patch_of
from safetensors.torch import load_file, save_file
from terminal import done, refused
from tiny_files import add_tensors, hf_state, safetensors_bytes

import uwm
from uwm.checkpoint import open_checkpoint
from uwm.checkpoint.dtypes import DTYPES
from uwm.errors import BadInput, InvalidResult

# ---------------------------------------------------------------- headers

ENTRY = '"{}":{{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'
BOMBS = {
    "1.3 million overlapping entries": "{" + ",".join(ENTRY.format(f"{n:x}") for n in range(1_300_000)) + "}",
    "6 million empty entries": "{" + ",".join(f'"{n:x}":{{}}' for n in range(6_000_000)) + "}",
    "50 million numbers": '{"a":[' + "1," * 49_000_000 + "1]}",
}


@pytest.mark.parametrize("name", BOMBS)
def test_f05_a_header_bomb_is_refused_in_two_seconds_and_200_mb(tmp_path, name):
    path = tmp_path / "m.safetensors"
    path.write_bytes(safetensors_bytes(BOMBS[name], b"\0"))
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(BadInput, match=r"m\.safetensors: the safetensors header has \d+ times '[{\[,]', more than any"):
        open_checkpoint(path)
    assert time.process_time() - start < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10


SIX_BYTES = {"F4": 6, "F6_E2M3": 4, "F6_E3M2": 4}  # half of the values that they are, where a value is less than one


@pytest.mark.parametrize("name", ["F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F4", "F6_E2M3", "F6_E3M2"])
def test_f11_a_type_that_the_library_opens_is_copied_where_it_is_not_selected(source, out, tmp_path, run_uwm, name):
    """As scales of quantised parts beside a float tower."""
    patch_of(source).save(tmp_path / "p")
    raw = bytes(range(6))
    add_tensors(source / "model.safetensors", {"scale": (name, [2, SIX_BYTES.get(name, 3)], raw)})
    done(run_uwm("apply", source, tmp_path / "p", "-o", out))
    assert open_checkpoint(out).bits("scale").array.tobytes() == raw
    assert hasattr(torch, DTYPES[name].name) or name.startswith("F6")
    done(run_uwm("revert", out, tmp_path / "p", "-o", tmp_path / "back"))
    assert (tmp_path / "back" / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()


# ---------------------------------------------------------------- archives


@pytest.mark.parametrize("behind", ["the first entry", "the last entry"])
def test_f21_a_pickle_that_the_directory_does_not_list_is_refused(tmp_path, behind):
    """Another reader, which walks the entries themselves, would read it."""
    path = tmp_path / "x.pt"
    torch.save(hf_state(), path)
    hidden = io.BytesIO()
    with zipfile.ZipFile(hidden, "w") as archive:
        archive.writestr("x/data.pkl", b"cos\nsystem\n(S'true'\ntR.")
    with zipfile.ZipFile(path) as archive:
        ends = archive.start_dir
        offsets = sorted(info.header_offset for info in archive.infolist())
    data = path.read_bytes()
    extra = hidden.getvalue()[: hidden.getvalue().index(b"PK\1\2")]
    place = offsets[1] if behind == "the first entry" else ends
    moved = bytearray(data[:place] + extra + data[place:])
    _move_directory(moved, place, len(extra))
    path.write_bytes(moved)
    with pytest.raises(BadInput, match="something else than zip entries|do not fill the file"):
        open_checkpoint(path)


def _move_directory(data: bytearray, place: int, by: int) -> None:
    """Let the directory, and the entries that it lists behind a place, lie so many bytes later."""
    end = data.rindex(b"PK\5\6")
    start = struct.unpack_from("<I", data, end + 16)[0] + by
    struct.pack_into("<I", data, end + 16, start)
    at = start
    while data[at : at + 4] == b"PK\1\2":
        offset = struct.unpack_from("<I", data, at + 42)[0]
        struct.pack_into("<I", data, at + 42, offset + by * (offset >= place))
        at += 46 + sum(struct.unpack_from("<3H", data, at + 28))


# ---------------------------------------------------------------- shards


def test_f38_shards_of_two_releases_are_refused(tmp_path):
    state = hf_state()
    names = sorted(state)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for number, (file, held) in enumerate(parts.items()):
        save_file({n: state[n].half() if number else state[n].float() for n in held}, tmp_path / file)
    total = sum(4 * tensor.numel() for tensor in state.values())
    index = {"metadata": {"total_size": total}, "weight_map": {n: f for f, held in parts.items() for n in held}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    words = r"00001-of-00002\.safetensors \(float32\).*different releases, or a download is half done"
    with pytest.raises(BadInput, match=rf"the index says {total} bytes.*{words}|{words}"):
        open_checkpoint(tmp_path)


# ---------------------------------------------------------------- numbers and sets


def test_f49_nan_activations_name_the_pair_by_its_id(tiny_hf, tiny_set, tmp_path, run_uwm):
    """A weight that is finite and too large for any activation."""
    folder = shutil.copytree(tiny_hf, tmp_path / "in")
    held = load_file(folder / "model.safetensors")
    held["vision_model.encoder.layers.0.mlp.fc1.weight"].fill_(3e38)
    save_file(held, folder / "model.safetensors", metadata={"format": "pt"})
    line = refused(run_uwm("score", folder, "--calib", tiny_set, "-o", tmp_path / "s", "--split", "test"), 1, "vision.")
    assert "at pair '0016'" in line


def test_f56_a_set_whose_sides_are_identical_is_refused(tiny_hf, tiny_set, tmp_path):
    pairs = shutil.copytree(tiny_set, tmp_path / "set")
    rows = [json.loads(line) for line in (pairs / "pairs.jsonl").read_text().splitlines()]
    for row in rows:
        row |= {"unsafe_text": row["safe_text"], "unsafe_image": row["safe_image"]}
    (pairs / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(BadInput, match="24 of 24 pairs .*have captions that are equal.* is refused"):
        uwm.score(uwm.load(tiny_hf), uwm.read_calibration(pairs))


def test_f60_captions_that_are_cut_are_counted(tiny_hf, tiny_set, tmp_path, run_uwm):
    pairs = shutil.copytree(tiny_set, tmp_path / "set")
    rows = [json.loads(line) for line in (pairs / "pairs.jsonl").read_text().splitlines()]
    for row in rows[:3]:
        row["safe_text"] += " and a dog" * 40
    (pairs / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, _, err = run_uwm("score", tiny_hf, "--calib", pairs, "-o", tmp_path / "s.safetensors")
    assert code == 0
    assert "3 of 32 captions are longer than the model's 32 tokens and were cut" in err


def test_a_result_that_is_no_number_is_told_by_number_where_there_are_no_ids(tiny_hf):
    from uwm import PairBatch

    model = uwm.load(tiny_hf)
    ids, mask = model.tokenize(["a dog", "a cat"])
    pixels = torch.full((2, 3, 64, 64), torch.nan)
    batch = PairBatch(pixels, pixels, ids, mask, ids, mask)
    with pytest.raises(InvalidResult, match="at pair 0"):
        uwm.score(model, [batch])
