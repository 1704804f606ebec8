"""The notebook runs from its first cell to its last: on a tiny model here, and on the demo model in the slow tests."""

from __future__ import annotations

import json
import os
import re
import warnings
from pathlib import Path

import pytest
from telling_pairs import telling_set

NOTEBOOK = Path(__file__).parents[1] / "examples" / "uwm.ipynb"


def executed(folder: Path, parameters: str | None, monkeypatch) -> list[dict]:
    """The code cells after a run in a folder; `parameters` replaces the cell that is tagged so."""
    nbclient = pytest.importorskip("nbclient", reason="nbclient and ipykernel are of the extra dev")
    pytest.importorskip("ipykernel", reason="nbclient and ipykernel are of the extra dev")
    import nbformat

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (given,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    given.source = parameters or given.source
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(NOTEBOOK.parents[1]), os.environ.get("PYTHONPATH", "")]))
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR"):
        monkeypatch.setenv(name, str(folder / name))
    with warnings.catch_warnings():  # of Jupyter's own libraries
        warnings.simplefilter("ignore")
        nbclient.NotebookClient(
            notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
        ).execute()
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def said(cells: list[dict]) -> str:
    return json.dumps([cell["outputs"] for cell in cells])


def test_the_notebook_runs_on_any_model_and_set(tmp_path, tiny_hf, monkeypatch):
    telling_set(tmp_path / "set", 90, held_out=60)
    parameters = (
        f"MODEL, PAIRS = {str(tiny_hf)!r}, {str(tmp_path / 'set')!r}\nZERO_SHOT, QUERY, LIMIT = (), 'a dog', None"
    )
    cells = executed(tmp_path, parameters, monkeypatch)
    assert [cell["execution_count"] for cell in cells] == [*range(1, len(cells) + 1)]
    assert "| GS |" in said(cells)
    assert said(cells).count("data:image/png") == 10


@pytest.mark.slow
def test_the_notebook_shows_the_demo(tmp_path, monkeypatch):
    found = said(executed(tmp_path, None, monkeypatch))
    before, after = map(float, re.search(r"\| GS \| ([\d.]+) \| ([\d.]+) ", found).groups())
    assert (before < 2, after > 20) == (True, True)


def test_the_first_cell_installs_only_where_uwm_is_missing():
    """It takes what the reader names or uploads, and nothing that only has our name."""
    first = next(cell for cell in json.loads(NOTEBOOK.read_text("utf-8"))["cells"] if cell["cell_type"] == "code")
    text = "".join(first["source"])
    assert 'if find_spec("uwm") is None:' in text
    assert text.index("find_spec(") < text.index("pip", text.index("import"))
    assert re.findall(r'"-q", (\w+)\]', text) == []
    assert re.findall(r'"-q", \*(\w+)\]', text) == ["sources"]


def test_the_notebook_is_kept_without_outputs():
    cells = json.loads(NOTEBOOK.read_text("utf-8"))["cells"]
    assert [cell for cell in cells if cell.get("outputs") or cell.get("execution_count")] == []
