"""Torch's own files, `torch.save` (zip and legacy) and TorchScript, opened with nothing run.

A zip holds ``NAME/data.pkl`` and one stored entry a storage, ``NAME/data/KEY``. A legacy file is a row of pickles
(magic number, version, system, content, storage keys), then each storage's length and bytes. TorchScript's ``code/`` is
not opened.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import BadInput, Refused
from .held import Held
from .pickles import MAX_PICKLE, read_pickle
from .tensors import Storage, Tensors, find_state_dicts, references, script_tensors

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LOCAL_HEADER = struct.Struct("<4s5H3I2H")  # signature, version, flags, method, time, date, crc, sizes, lengths
END_RECORD = 22  # bytes of a zip's last record


@dataclass(frozen=True)
class Archive:
    """A torch file's state dicts by their dotted place, and whether it is TorchScript, which has one, under ``""``."""

    state_dicts: dict[str, Tensors]
    scripted: bool


def open_archive(path: Path, held: Held | None = None) -> Archive:
    """Read everything of a torch file but the tensors' values; `held` is the file where it is open.

    Raises:
        Refused: A pickle in it asks for more than tensors. BadInput: Damaged, compressed, or no torch file.
    """
    try:
        held = Held(path) if held is None else held
        with held.stream() as stream:
            if stream.read(2) == b"PK":
                return _open_zip(held, stream)
            stream.seek(0)
            return _open_legacy(held, stream)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, struct.error, EOFError) as error:
        raise BadInput(f"{path}: damaged torch file ({str(error)[:200]}); download it again") from None
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        raise BadInput(
            f"{path}: damaged torch file ({type(error).__name__}: {str(error)[:200]}); download it again"
        ) from None


def _open_zip(held: Held, stream: BinaryIO) -> Archive:
    path = held.path
    with zipfile.ZipFile(stream) as archive:
        entries = _entries(held, stream, archive)
        found = [name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
        top = found[0].removesuffix("data.pkl") if len(found) == 1 else None
        if top is None or not all(name.startswith(top) for name in entries):
            raise BadInput(f"{path}: a zip file, but no torch file (no single data.pkl); expected torch.save's output")
        for name in entries:  # whatever else is pickled is held to the same list
            if name.endswith(".pkl") and not _is_code(name) and name != found[0]:
                read_pickle(BytesIO(_read(archive, name, path)), f"{path}: {name}")
        if f"{top}byteorder" in entries and _read(archive, f"{top}byteorder", path) != b"little":
            raise BadInput(f"{path}: stored in big-endian order; re-save it on a little-endian machine")
        pickled = BytesIO(_read(archive, found[0], path))
        content = read_pickle(pickled, str(path))
        if pickled.read(1):
            raise Refused(
                f"{path}: refused, bytes follow the pickle's end; re-save only its state_dict with torch.save"
            )
    place = f"{top}data/"
    stored = {name.removeprefix(place): entry for name, entry in entries.items() if name.startswith(place)}
    storages = _storages(path, content, stored)
    scripted = any(_is_code(name) for name in entries)
    if scripted and (tensors := script_tensors(content, storages)):
        return Archive({"": tensors}, True)
    return Archive(find_state_dicts(content, storages), scripted)


def _is_code(name: str) -> bool:
    """Whether an entry lies in TorchScript's code folder, which is never opened."""
    return name.split("/")[1:2] == ["code"]


def _read(archive: zipfile.ZipFile, name: str, path: Path) -> bytes:
    if archive.getinfo(name).file_size > MAX_PICKLE:
        raise BadInput(f"{path}: {name} has more than {MAX_PICKLE >> 20} MB; re-save only its state_dict")
    return archive.read(name)


def _storages(path: Path, content: Any, entries: Mapping[str, Storage]) -> dict[str, Storage]:
    """The entries that a pickle refers to, each no larger than the pickle says."""
    storages = {}
    for key, (dtype, count) in references(content).items():
        entry, nbytes = entries[key], count * dtype.itemsize
        if nbytes > entry.nbytes:
            raise BadInput(f"{path}: a storage of {nbytes} bytes has {entry.nbytes}; download it again")
        storages[key] = replace(entry, nbytes=nbytes, crc=entry.crc if nbytes == entry.nbytes else None)
    return storages


def _entries(held: Held, stream: BinaryIO, archive: zipfile.ZipFile) -> dict[str, Storage]:
    """Every entry's place in the file, each proved by its own local header; one view of the file or none."""
    path = held.path
    entries: dict[str, Storage] = {}
    seen, position = set(), 0
    for info in sorted(archive.infolist(), key=lambda info: info.header_offset):
        if info.header_offset < position or (position == 0 and info.header_offset):
            raise BadInput(f"{path}: something else than zip entries stands before or in {info.filename!r}; re-save it")
        stream.seek(info.header_offset)
        head = LOCAL_HEADER.unpack(stream.read(LOCAL_HEADER.size))
        begin = info.header_offset + LOCAL_HEADER.size + head[9] + head[10]
        good = _agrees(info, head, stream.read(head[9])) and info.filename.lower() not in seen
        if not good or not (info.compress_type == zipfile.ZIP_STORED or _is_code(info.filename)):
            raise BadInput(f"{path}: entry {info.filename!r} is doubled, compressed, encrypted or damaged; re-save it")
        position = begin + info.compress_size
        seen.add(info.filename.lower())
        entries[info.filename] = Storage(held, begin, info.file_size, info.CRC)
    stream.seek(-END_RECORD, 2)
    if position > archive.start_dir or stream.read(4) != b"PK\5\6":
        raise BadInput(f"{path}: the zip's entries do not fill the file as they should; download it again")
    return entries


def _agrees(info: zipfile.ZipInfo, head: tuple, name: bytes) -> bool:
    """Whether an entry's local header says what the directory says of it."""
    signature, _, flags, method, _, _, crc, packed, size, *_ = head
    later = bool(flags & 8)  # checksum and sizes stand behind the data
    sizes = (crc, packed, size) == (info.CRC, info.compress_size, info.file_size) or 0xFFFFFFFF in (packed, size)
    plain = info.compress_type != zipfile.ZIP_STORED or info.compress_size == info.file_size
    names = name == info.orig_filename.encode() and info.filename == info.orig_filename
    agrees = signature == b"PK\3\4" and method == info.compress_type and (later or sizes)
    return agrees and names and plain and not (flags | info.flag_bits) & 1


def _open_legacy(held: Held, stream: BinaryIO) -> Archive:
    path = held.path
    if read_pickle(stream, str(path)) != LEGACY_MAGIC:
        raise BadInput(f"{path}: a pickle, but holds no state dict that torch.save wrote; re-save it with torch.save")
    read_pickle(stream, str(path))  # protocol version
    system = read_pickle(stream, str(path))
    if system.get("little_endian") is not True:
        raise BadInput(f"{path}: stored in big-endian order; re-save it on a little-endian machine")
    content, keys = read_pickle(stream, str(path)), read_pickle(stream, str(path))
    storages, known, size = {}, references(content), held.size
    for key in keys:
        dtype, promised = known[key if isinstance(key, str) else ""]
        count = struct.unpack("<q", stream.read(8))[0]
        nbytes = count * dtype.itemsize
        if count != promised or stream.tell() + nbytes > size:
            raise BadInput(f"{path}: cut off inside its storages, or damaged; download it again")
        storages[key] = Storage(held, stream.tell(), nbytes, None)
        stream.seek(nbytes, 1)
    if stream.read(1):
        raise BadInput(f"{path}: bytes follow its last storage; re-save it with torch.save")
    return Archive(find_state_dicts(content, storages), False)
