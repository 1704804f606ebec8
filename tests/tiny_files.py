"""Checkpoints of a few kilobytes and hostile files, made from bytes."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import torch
from layouts_by_hand import IN_BLOCKS, OUTSIDE_BLOCKS
from safetensors.torch import save_file

BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def bits(tensor):
    """The tensor as integers of its own width, so that −0 and NaN compare as they are stored."""
    return tensor.contiguous().view(BITS[tensor.dtype.itemsize])


def safetensors_bytes(header, data=b"", length=None):
    """A safetensors file from a header (object, text or bytes), true or not."""
    if not isinstance(header, str | bytes):
        header = json.dumps(header)
    header = header.encode() if isinstance(header, str) else header
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def add_tensors(path, more, without=()):
    """Put tensors, name -> (dtype of the format, shape, bytes), into a safetensors file, and take others out of it."""
    data = path.read_bytes()
    length = 8 + struct.unpack("<Q", data[:8])[0]
    header, body = {}, b""
    for name, entry in json.loads(data[8:length]).items():
        if name == "__metadata__":
            header[name] = entry
        elif name not in without:
            begin, end = (length + place for place in entry["data_offsets"])
            header[name] = entry | {"data_offsets": [len(body), len(body) + end - begin]}
            body += data[begin:end]
    for name, (dtype, shape, raw) in more.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(body), len(body) + len(raw)]}
        body += raw
    path.write_bytes(safetensors_bytes(header, body))


def hf_state(dtype=torch.float32, width=4, inner=6, blocks=2, seed=0):
    """Every tensor of a Hugging Face CLIP with two towers of `blocks` blocks; the vision tower's fc2 is float16."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator).to(dtype)

    state = {name: draw(3, width) for name in OUTSIDE_BLOCKS}
    state |= {"text_projection.weight": draw(5, width), "visual_projection.weight": draw(5, width)}
    state["logit_scale"] = draw()
    for tower in ("text_model", "vision_model"):
        for block in range(blocks):
            prefix = f"{tower}.encoder.layers.{block}"
            shapes = dict.fromkeys(IN_BLOCKS, (width,)) | {"mlp.fc1": (inner, width), "mlp.fc2": (width, inner)}
            shapes |= {f"self_attn.{part}_proj": (width, width) for part in ("q", "k", "v", "out")}
            for name, shape in shapes.items():
                state[f"{prefix}.{name}.weight"] = draw(*shape)
                state[f"{prefix}.{name}.bias"] = draw(shape[0])
            if tower == "vision_model":
                state[f"{prefix}.mlp.fc2.weight"] = state[f"{prefix}.mlp.fc2.weight"].half()
    return state


def hf_folder(folder: Path, state=None, **options):
    """A folder of Hugging Face weights with side files; enough for everything that needs no model library."""
    folder.mkdir(parents=True)
    save_file(hf_state(**options) if state is None else state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text('{"model_type": "clip"}')
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "vocab.json").write_bytes(b'{"a": 0}\r\n')
    return folder
