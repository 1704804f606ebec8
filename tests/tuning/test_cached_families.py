"""Every family: the last MLP is worked out at the pooled token where that is right, and blocks are run elsewhere."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from families import FAMILIES, Family, by_open_clip, make_open_clip, timm_clip
from PIL import Image
from tuning.edits_of_all_kinds import changes_of, embedded_plainly

import uwm
from uwm.tuning.cached_tower import CachedTower

TIMM = {
    "eva02": timm_clip("uwm_eva02", "", "none"),  # a gated MLP with a LayerNorm inside
    "eva02, norms after": timm_clip("uwm_eva02_post", "", "linear"),
    "vitamin": timm_clip("uwm_vitamin", "avg", "linear"),
}
ALL = FAMILIES | {name: Family(make_open_clip(config), by_open_clip, "") for name, config in TIMM.items()}
QUICK = {  # towers whose last MLP is worked out at the pooled token
    "clip": {"text", "vision"},
    "clip text": {"text"},
    "clip text projected": {"text"},
    "clip vision": {"vision"},
    "clip vision projected": {"vision"},
    "clip text, 4.x spelling": {"text"},
    "siglip": {"text", "vision"},  # vision: of the pooling head
    "siglip 2 naflex": {"text", "vision"},
    "chinese-clip": {"vision"},  # BERT normalises after its MLP
    "llava": set(),
    "llava, 4.x spelling": set(),
    "stable diffusion": {"text"},
    "stable diffusion xl": set(),
    "stable diffusion xl, shards": set(),
    "sentence-transformers": {"text", "vision"},
    "open_clip": {"text", "vision"},
    "open_clip custom text": {"text", "vision"},
    "coca": set(),
    "open_clip mt5": {"vision"},
    "open_clip nllb": {"text", "vision"},
    "open_clip siglip (timm)": {"text", "vision"},
    "eva02": {"text"},
    "eva02, norms after": {"text"},
    "vitamin": {"text"},
}
LATE = ("norm", "norm.bias", "proj", "proj.bias", "head.fc1", "head.fc1.bias", "head.fc2", "head.fc2.bias", "head.norm")
WORDS = ("dog", "cat", "tree", "car", "cup", "knife", "bomb", "skull")


@pytest.fixture(scope="module")
def sources():
    """Five of each tower: the last batch of two is short."""
    rng = np.random.default_rng(0)
    captions = [f"a picture of {' and '.join(rng.choice(WORDS, size=n))}" for n in (1, 4, 2, 5, 3)]
    pictures = [rng.integers(0, 256, (64, 64, 3), dtype=np.uint8) for _ in captions]
    return {"text": captions, "vision": [partial(Image.fromarray, picture) for picture in pictures]}


def cases(model, tower):
    """Tensors to edit together, by name: each late one, and some of the blocks."""
    depth = model.depth(tower)
    names = [f"{tower}.{slot}" for slot in LATE]
    names += [
        f"{tower}.{depth - 1}.{slot}" for slot in ("fc1", "fc1.bias", "fc2", "fc2.bias", "gate", "norm2", "v_proj")
    ]
    names += [f"{tower}.0.fc2", f"{tower}.position_embedding"]
    there = {str(name) for name in model.tensors}
    single = [[name] for name in names if name in there]
    return [*single, [f"{tower}.{depth - 1}.{slot}" for slot in ("fc1", "fc2")]]


def test_all_families_are_told():
    assert QUICK.keys() == ALL.keys()


@pytest.mark.parametrize("family", ALL)
def test_the_short_way_agrees_or_blocks_are_run_bit_for_bit(family, sources, tmp_path):
    ALL[family].make(tmp_path / "model")
    model, quick = uwm.load(tmp_path / "model"), set()
    for tower in model.modalities:
        kept = CachedTower(model, tower, sources[tower], batch_size=2, workers=1)
        assert kept.unedited.equal(embedded_plainly(model, tower, sources[tower], {}, 2))
        for names in cases(model, tower):
            changes = changes_of(model, names, "set")
            expected = embedded_plainly(model, tower, sources[tower], changes, 2)
            for _ in range(2):  # the second time from outputs that were kept
                found = kept.embed(changes)
                if kept.is_quick(changes):
                    quick.add(tower)
                    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6, msg=f"{names}")
                else:
                    assert found.equal(expected), names
    assert quick == QUICK[family]
