"""uwm.json: written whole, read back, refused when it is none."""

from __future__ import annotations

import pytest

from uwm.errors import BadInput
from uwm.manifest import FORMAT, Manifest, read_manifest, write_manifest


def test_round_trip_keeps_the_order_of_the_keys(tmp_path):
    manifest = Manifest(format=FORMAT, verb="apply", output_sha256={"é.safetensors": "0" * 64})
    write_manifest(tmp_path, manifest)
    assert [*read_manifest(tmp_path).items()] == [*manifest.items()]
    assert [path.name for path in tmp_path.iterdir()] == ["uwm.json"]


@pytest.mark.parametrize("content", ["{", "[]", "3"])
def test_other_content_is_refused(content, tmp_path):
    (tmp_path / "uwm.json").write_text(content)
    with pytest.raises(BadInput, match="uwm.json: "):
        read_manifest(tmp_path)


def test_a_folder_without_one_is_refused(tmp_path):
    with pytest.raises(BadInput, match="no uwm.json in this folder"):
        read_manifest(tmp_path)
