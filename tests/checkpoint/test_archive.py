"""The containers of torch files: zip, legacy, TorchScript. One view of the file or none, and nothing is run."""

from __future__ import annotations

import io
import re
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib

import pytest
import torch
from tiny_files import bits, hf_state
from torch_files import Rebuilt, Reference, legacy, pickle_bytes, saved, tensor, text, torch_zip

from uwm.checkpoint import open_checkpoint
from uwm.checkpoint.archive import open_archive
from uwm.errors import BadInput


def opened(tmp_path, data):
    (tmp_path / "x.pt").write_bytes(data)
    return open_archive(tmp_path / "x.pt").state_dicts


def bad(tmp_path, data, says="", kind=BadInput):
    with pytest.raises(kind, match=r"x\.pt: ") as caught:
        opened(tmp_path, data)
    assert re.search(says, str(caught.value)), str(caught.value)


GOOD = {"a": tensor()}


# ---------------------------------------------------------------- zip


def test_a_zip_made_by_hand_is_read(tmp_path):
    found = opened(tmp_path, torch_zip(GOOD))
    assert found[""]["a"].read().tolist() == [[1, 2], [3, 4]]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_zip_with_two_views_is_bad_input(tmp_path):
    data = torch_zip(GOOD)
    twice = io.BytesIO(data)
    with zipfile.ZipFile(twice, "a") as archive:
        archive.writestr("x/data.pkl", pickle_bytes({"b": tensor()}))
    bad(tmp_path, twice.getvalue(), "'x/data.pkl' is doubled")
    bad(tmp_path, torch_zip(GOOD, extra={"x/DATA.PKL": b"."}), "'x/DATA.PKL' is doubled")
    bad(tmp_path, torch_zip(GOOD, extra={"y/data.pkl": b"N."}), "no single data.pkl")
    bad(tmp_path, torch_zip(GOOD, extra={"y/data/0": b"N."}), "no single data.pkl")
    bad(tmp_path, b"PK" + data, "before or in")
    bad(tmp_path, b"PK\3\4" + bytes(99) + data, "before or in")
    bad(tmp_path, data + b"\0", "do not fill the file")
    bad(tmp_path, data + data, "before or in")
    bad(tmp_path, pickle_bytes({}) + data, "a pickle, but holds no state dict")
    bad(tmp_path, legacy(GOOD) + data, "bytes follow its last storage")
    bad(tmp_path, data[:-2] + struct.pack("<H", 5) + b"notes", "do not fill the file")


def test_a_compressed_zip_is_bad_input_and_not_inflated(tmp_path):
    bad(tmp_path, torch_zip(GOOD, compression=zipfile.ZIP_DEFLATED), "compressed")
    bomb = torch_zip(b"\x80\x02" + b"N0" * 10_000_000 + b"N.", compression=zipfile.ZIP_DEFLATED)
    assert len(bomb) < 100_000
    bad(tmp_path, bomb, "compressed")


def central(data, name, field, value, size="<H"):
    """Change a field of an entry's line in the directory."""
    place = data.rindex(b"PK\1\2", 0, data.rindex(name))
    return data[: place + field] + struct.pack(size, value) + data[place + field + struct.calcsize(size) :]


def local(data, name, field, value, size="<H"):
    place = data.index(name) - 30
    return data[: place + field] + struct.pack(size, value) + data[place + field + struct.calcsize(size) :]


def longer(data, name, size):
    """An entry that says in both places that it has more bytes."""
    for change, fields in ((central, (20, 24)), (local, (18, 22))):
        for field in fields:
            data = change(data, name, field, size, "<I")
    return data


@pytest.mark.parametrize(
    "change",
    [
        lambda d: central(d, b"x/data/0", 8, 1), lambda d: local(d, b"x/data/0", 6, 1),
        lambda d: central(d, b"x/data/0", 10, 8), lambda d: local(d, b"x/data/0", 8, 8),
        lambda d: central(d, b"x/data/0", 20, 15, "<I"), lambda d: central(d, b"x/data/0", 24, 15, "<I"),
        lambda d: local(d, b"x/data/0", 18, 15, "<I"), lambda d: local(d, b"x/data/0", 22, 15, "<I"),
        lambda d: central(central(d, b"x/data/0", 20, 99, "<I"), b"x/data/0", 24, 99, "<I"),
        lambda d: longer(d, b"x/data/0", 40), lambda d: longer(d, b"x/version", 9),
        lambda d: central(d, b"x/data/0", 16, 7, "<I"), lambda d: local(d, b"x/data/0", 14, 7, "<I"),
        lambda d: central(d, b"x/data/0", 42, 0, "<I"), lambda d: central(d, b"x/data/0", 42, 2**31, "<I"),
        lambda d: d.replace(b"x/data/0", b"x/data/1", 1), lambda d: d.replace(b"x/data/0", b"x/data\0\0"),
        lambda d: d[:-10] + struct.pack("<I", 2**31) + d[-6:], lambda d: d[:-6] + struct.pack("<I", 9) + d[-2:],
        lambda d: d[:-10] + b"\xff" * 8 + d[-2:],
    ],
    ids=["encrypted", "encrypted inside", "method", "method inside", "packed size", "size", "packed size inside",
         "size inside", "both sizes", "into the directory", "into the next",
         "checksum", "checksum inside", "place", "far place", "name", "name with NUL",
         "directory's size", "directory's place", "zip64 that is not there"],
)  # fmt: skip
def test_f21_a_zip_that_contradicts_itself_is_bad_input(tmp_path, change):
    bad(tmp_path, change(torch_zip(GOOD)))


def test_a_wrong_checksum_is_found_when_the_values_are_read(tmp_path):
    data = torch_zip(GOOD)
    spoilt = data.replace(struct.pack("<f", 3), struct.pack("<f", 5))
    with pytest.raises(BadInput, match=r"x\.pt: damaged, a tensor's checksum does not fit; download it again"):
        opened(tmp_path, spoilt)[""]["a"].read()
    bad(tmp_path, data.replace(b"_rebuild_tensor_v2", b"_rebuild_tensor_v3"), "Bad CRC-32")


def test_zip64_is_read(tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        entries = {"x/data.pkl": pickle_bytes(GOOD), "x/version": b"3", "x/data/0": struct.pack("<4f", 1, 2, 3, 4)}
        for name, content in entries.items():
            with archive.open(name, "w", force_zip64=True) as entry:
                entry.write(content)
    assert opened(tmp_path, buffer.getvalue())[""]["a"].read().tolist() == [[1, 2], [3, 4]]


def test_a_zip_that_is_no_torch_file_is_bad_input(tmp_path):
    bad(tmp_path, torch_zip(GOOD).replace(b"data.pkl", b"mata.pkl"), "a zip file, but no torch file")
    bad(tmp_path, b"PK\5\6" + bytes(18))
    bad(tmp_path, torch_zip(GOOD).replace(b"little", b"big   "), "CRC")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("x/data.pkl", pickle_bytes(GOOD))
        archive.writestr("x/byteorder", "big")
        archive.writestr("x/version", "3")
    bad(tmp_path, buffer.getvalue(), "big-endian order; re-save it on a little-endian machine")


@pytest.mark.parametrize(
    ("version", "found"), [(None, "none"), ("x", "x"), ("11", "11"), ("0", "0"), ("-3", "-3"), ("", "")]
)
def test_a_zip_of_no_version_that_torch_reads_is_bad_input(tmp_path, version, found):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("x/data.pkl", pickle_bytes(GOOD))
        archive.writestr("x/data/0", struct.pack("<4f", 1, 2, 3, 4))
        if version is not None:
            archive.writestr("x/version", version)
    bad(tmp_path, buffer.getvalue(), f"its version is b'{found}', expected one from 1 to 10; re-save it")
    with pytest.raises((RuntimeError, ValueError)):
        torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)


# ---------------------------------------------------------------- storages and views


@pytest.mark.parametrize("make", [torch_zip, legacy], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    "wrong",
    [
        tensor(shape=(2, 3)), tensor(offset=1), tensor(offset=-1), tensor(stride=(4, 1)), tensor(stride=(-2, 1)),
        tensor(shape=(-2, -2)), tensor(shape=(2,)), tensor(shape=[2, 2]), tensor(shape=(2.0, 2)), tensor(offset=1.0),
        tensor(offset=True), tensor(shape=(1,) * 65, stride=(1,) * 65), tensor(shape=(0, 2**61, 2**61)),
        tensor(shape=(2**61, 2**61), stride=(0, 0)), tensor(shape=(2**62,), stride=(0,)), tensor(shape=None),
        tensor(Reference(numel=2**40)), tensor(Reference(numel=2**40), shape=(2**40,), stride=(1,)),
        tensor(Reference(numel=-4)), tensor(Reference(numel=4.0)), tensor(Reference(key="9")), tensor(Reference(key=0)),
        tensor(Reference(word="module")), tensor(Reference(kind=torch.Size)), tensor("storage"),
        tensor(Reference(kind=torch.DoubleStorage)), Rebuilt(Reference()), Rebuilt(),
        tensor(metadata=({"conj": True},)), tensor(Reference(kind=torch.IntStorage), metadata=({"neg": True},)),
        Rebuilt(Reference(), 0, (2, 2), (2, 1), False, {}, "float32", function=torch._utils._rebuild_tensor_v3),
    ],
    ids=lambda made: re.sub(r" at 0x\w+", "", str(made.call[1]))[:60].replace(" ", ""),
)  # fmt: skip
def test_a_tensor_that_does_not_fit_its_storage_is_bad_input(tmp_path, make, wrong):
    bad(tmp_path, make({"a": wrong}))


def test_one_storage_is_not_two(tmp_path):
    bad(tmp_path, torch_zip({"a": tensor(), "b": tensor(Reference(numel=3), shape=(1, 1))}), "referred to as two")
    half = tensor(Reference(kind=torch.HalfStorage), shape=(1, 1))
    bad(tmp_path, torch_zip({"a": tensor(), "b": half}), "referred to as two")


def test_a_storage_of_less_than_its_entry_is_refused_as_torch_does(tmp_path):
    data = torch_zip({"a": tensor(Reference(numel=2), shape=(2,), stride=(1,))})
    bad(tmp_path, data, "a storage of 8 bytes has 16")
    with pytest.raises(RuntimeError, match="record size"):
        torch.load(io.BytesIO(data), weights_only=True)


def test_f20_a_small_file_cannot_ask_for_gigabytes(tmp_path):
    """An expanded tensor is one value and as many as it likes; the file it would become is refused."""
    state = hf_state() | {"huge": torch.zeros(1).expand(2**31)}
    (tmp_path / "x.pt").write_bytes(saved(state))
    code = (
        "import resource, sys; from uwm.checkpoint import open_checkpoint; from uwm.errors import BadInput\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: open_checkpoint(sys.argv[1])\n"
        "except BadInput as error: print(error)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "x.pt")]
    said, grown = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert re.search(r"x\.pt: has \d+ bytes, and its tensors ask for 8589\d+; re-save it", said)
    assert int(grown) < 50_000  # kB
    (tmp_path / "x.pt").write_bytes(saved(hf_state() | {"wide": torch.ones(1).expand(2, 500)}))
    assert open_checkpoint(tmp_path / "x.pt").read("wide").tolist() == [[1.0] * 500] * 2


# ---------------------------------------------------------------- legacy


def test_a_legacy_file_made_by_hand_is_read(tmp_path):
    assert opened(tmp_path, legacy(GOOD))[""]["a"].read().tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (legacy(GOOD, {"0": (5, bytes(20))}), "cut off inside its storages, or damaged"),
        (legacy(GOOD, {"0": (-4, bytes(16))}), "cut off inside its storages, or damaged"),
        (legacy(GOOD, {"0": (4, bytes(15))}), "cut off inside its storages"),
        (legacy(GOOD) + b"\0", "bytes follow its last storage; re-save it with torch.save"),
        (legacy(GOOD, {}), "damaged torch file"),
        (legacy(GOOD, keys=["0", "1"]), "damaged torch file"),
        (legacy(GOOD, keys=[0]), "damaged torch file"),
        (legacy(GOOD, keys=5), "damaged torch file"),
        (legacy(GOOD, system={"little_endian": False}), "big-endian order"),
        (legacy(GOOD, system=[]), "damaged torch file"),
        (pickle_bytes(GOOD), "holds no state dict that torch.save wrote; re-save it with torch.save"),
    ],
)
def test_a_legacy_file_that_contradicts_itself_is_bad_input(tmp_path, data, says):
    bad(tmp_path, data, says)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_every_cut_is_bad_input(tmp_path, zipped):
    data = saved({"a": torch.arange(4.0), "b": torch.ones(2)}, _use_new_zipfile_serialization=zipped)
    for length in range(1, len(data)):
        bad(tmp_path, data[:length])
    opened(tmp_path, data)


def test_f22_the_tar_format_of_torch_0_1_is_named(tmp_path):
    with tarfile.open(tmp_path / "x.pt", "w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    with pytest.raises(BadInput, match=r"x\.pt: a tar file, perhaps of torch 0\.1; re-save it with a current torch"):
        open_checkpoint(tmp_path / "x.pt")


# ---------------------------------------------------------------- TorchScript


class Inner(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(3, 2).half())
        self.register_buffer("count", torch.tensor(7))

    def forward(self, x):
        return x + self.weight.float().sum() + self.count


class Outer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = torch.nn.Sequential(torch.nn.Linear(3, 3), Inner(), torch.nn.Linear(3, 3, bias=False))
        self.tied = self.blocks[1]
        self.view = torch.nn.Parameter(torch.arange(12.0).reshape(3, 4)[:, 1:3])

    def forward(self, x):
        return self.tied(self.blocks(x)) + self.view.sum() + torch.tensor([2.5])


@pytest.mark.filterwarnings("ignore")  # torch would rather compile
@pytest.mark.parametrize("make", [torch.jit.script, lambda m: torch.jit.trace(m, torch.ones(1, 3))], ids=["s", "t"])
def test_f18_a_script_holds_what_torch_finds_in_it_and_its_code_is_not_opened(tmp_path, make):
    make(Outer()).save(str(tmp_path / "m.pt"))
    expected = torch.jit.load(str(tmp_path / "m.pt")).state_dict()
    with zipfile.ZipFile(tmp_path / "m.pt") as archive:
        code = [info for info in archive.infolist() if "/code/" in info.filename]
    data = bytearray((tmp_path / "m.pt").read_bytes())
    assert code
    for info in code:  # spoilt, so that whoever opens it fails
        begin = info.header_offset + 30 + sum(struct.unpack_from("<2H", data, info.header_offset + 26))
        data[begin : begin + info.compress_size] = bytes(b ^ 0x55 for b in data[begin : begin + info.compress_size])
    (tmp_path / "m.pt").write_bytes(data)
    with zipfile.ZipFile(tmp_path / "m.pt") as archive, pytest.raises((zipfile.BadZipFile, zlib.error)):
        archive.read(code[0].filename)
    archive = open_archive(tmp_path / "m.pt")
    assert archive.scripted
    assert archive.state_dicts[""].keys() == expected.keys()
    for name, value in expected.items():
        found = archive.state_dicts[""][name].read()
        assert (found.dtype, found.shape) == (value.dtype, value.shape)
        assert torch.equal(bits(found), bits(value))


@pytest.mark.filterwarnings("ignore")  # torch would rather compile
def test_sizes_that_openai_keeps_as_tensors_are_no_weights(tmp_path):
    class Clip(torch.nn.Module):
        def __init__(self):
            super().__init__()
            for name, value in {"input_resolution": 224, "context_length": 77, "vocab_size": 9}.items():
                self.register_buffer(name, torch.tensor(value))
            self.class_embedding = torch.nn.Parameter(torch.zeros(3))
            self.conv1 = torch.nn.Linear(2, 2)

        def forward(self, x):
            return x

    torch.jit.script(Clip()).save(str(tmp_path / "m.pt"))
    found = open_checkpoint(tmp_path / "m.pt")
    assert sorted(found.entries) == ["class_embedding", "conv1.bias", "conv1.weight"]
    assert found.files[0].scripted


def test_nothing_is_imported_opened_or_run_for_a_file_s_sake(tmp_path):
    attack = b"\x80\x02cuwm_no_such_module\nrun\n" + text("x") + b"\x85R."
    script = {"x/code/__torch__.py": b"raise SystemExit", "x/constants.pkl": pickle_bytes(())}
    for n, data in enumerate((torch_zip(attack, extra=script), saved(hf_state()), torch_zip({}, extra=script))):
        (tmp_path / f"{n}.pt").write_bytes(data)
    code = (
        "import codecs, sys; from pathlib import Path\n"
        "from uwm.checkpoint import open_checkpoint; from uwm.errors import UwmError\n"
        "[codecs.lookup(name) for name in ('cp437', 'unicode_escape')]\n"
        "folder, seen = Path(sys.argv[1]), []\n"
        "sys.addaudithook(lambda event, arguments: seen.append((event, arguments)))\n"
        "for path in sorted(folder.iterdir()):\n"
        "    try: open_checkpoint(path)\n"
        "    except UwmError: pass\n"
        "bad = 'import exec compile os.system subprocess.Popen os.exec pickle.find_class marshal.loads ctypes.dlopen'\n"
        "events = {e for e, a in seen if e in bad.split()}\n"
        "opened = {str(a[0]) for e, a in seen if e == 'open'}\n"
        "print(sorted(events), sorted(opened - {str(p) for p in folder.iterdir()}))"
    )
    found = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert found.stdout == "[] []\n"
