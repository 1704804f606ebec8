"""Two machines of one process each, both played by this one: over Gloo, and over NCCL where there is a GPU.

NCCL takes processes of one GPU for a mistake, unless it is told that they are on different hosts (NCCL_HOSTID).
"""

from __future__ import annotations

import socket

import pytest
import torch
from processes.launching import begin, ours
from processes.test_failures import MEMORY

CUDA = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def machines(count, arguments, folder, **environment):
    """The launchers of a run on so many machines, as Slurm would start them."""
    place = ["--master-addr", "127.0.0.1", "--master-port", free_port()]
    own = {"NCCL_SOCKET_IFNAME": "lo", "GLOO_SOCKET_IFNAME": "lo"}
    own |= {"NCCL_DEBUG": "INFO", "NCCL_DEBUG_FILE": str(folder / "nccl.%p")}
    for rank in range(count):
        several = ["--nnodes", count, "--node-rank", rank, "--nproc-per-node", 1, *place]
        start = ["-m", "torch.distributed.run", *several, "-m", "uwm"] if count > 1 else ["-m", "uwm"]
        yield begin([*start, *arguments], folder / "cache", NCCL_HOSTID=f"machine-{rank}", **own, **environment)


def run(count, arguments, folder, **environment):
    """Exit codes, standard outputs and errors, of each machine."""
    started = [*machines(count, arguments, folder, **environment)]
    told = [process.communicate(timeout=300) for process in started]
    return [process.returncode for process in started], *(list(texts) for texts in zip(*told, strict=True))


@pytest.fixture
def arguments(tiny_hf, tiny_set):
    return ["edit", tiny_hf, "--calib", tiny_set, "--batch-size", "3", "--beside", "none"]


@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_two_machines_write_what_one_does(arguments, device, tmp_path):
    for count in (1, 2):
        codes, told, errors = run(count, [*arguments, "--device", device, "-o", tmp_path / str(count)], tmp_path)
        assert codes == [0] * count, errors
        assert [bool(text) for text in told] == [True, False][:count]
    spoken = [path.read_text().count("nranks 2") > 0 for path in tmp_path.glob("nccl.*")]
    assert spoken == ([True, True] if device == "cuda" else [])
    for name in ("model.safetensors", "uwm_patch.safetensors"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


@pytest.mark.parametrize("device", [pytest.param("cpu", marks=pytest.mark.slow), CUDA])
def test_the_failure_of_one_machine_ends_both(arguments, device, tmp_path):
    output = tmp_path / "out"
    codes, told, errors = run(2, [*arguments, "--device", device, "-o", output], tmp_path, FAULT="1:memory")
    assert codes == [1, 1]
    assert not any(told)
    lines = [line for text in errors for line in ours(text) if line.startswith("uwm: error")]
    assert lines == [MEMORY]
    assert not output.exists()
