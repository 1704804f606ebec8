"""Torch's own files, `torch.save` (zip and legacy) and TorchScript, opened with nothing run.

A zip holds ``NAME/data.pkl`` and one stored entry a storage, ``NAME/data/KEY``. A legacy file is a row of pickles
(magic number, version, system, content, storage keys), then each storage's length and bytes. TorchScript's ``code/`` is
not opened.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import BadInput, Refused
from .held import Held
from .pickles import MAX_PICKLE, read_pickle
from .tensors import Storage, Tensors, find_state_dicts, references, script_tensors

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LOCAL_HEADER = struct.Struct("<4s5H3I2H")  # signature, version, flags, method, time, date, crc, sizes, lengths
END_RECORD = struct.Struct("<4s4H2IH")  # signature, disks, entries twice, size and place of the directory, comment
DIRECTORY_ENTRY, NAMED, LENGTHS = 46, 28, struct.Struct("<3H")  # bytes of one, and where in it its lengths stand
ZIP64 = 0xFFFF, 0xFFFFFFFF  # in a record: what stands in another one
FLAGS = 8 | 0x800  # that an entry may have: checksum and sizes behind the data; a name in UTF-8
FOLDER = 0x10  # in an entry's attributes
PROTOCOL = 1001  # of files before zips
NEWEST = 10  # version of a zip that torch reads
DESCRIPTOR = 24  # bytes at most behind an entry whose checksum and sizes stand there


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
        _check_version(archive, f"{top}version", path)
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


def _check_version(archive: zipfile.ZipFile, name: str, path: Path) -> None:
    """A torch zip says its version, which torch demands. Raises BadInput."""
    version = _read(archive, name, path).strip() if name in archive.namelist() else b"none"
    if not version.isdigit() or len(version) > 9 or not 0 < int(version) <= NEWEST:
        raise BadInput(f"{path}: its version is {version[:20]!r}, expected one from 1 to {NEWEST}; re-save it")


def _is_code(name: str) -> bool:
    """Whether an entry lies in TorchScript's code folder, which is never opened."""
    return name.split("/")[1:2] == ["code"]


def _read(archive: zipfile.ZipFile, name: str, path: Path) -> bytes:
    if archive.getinfo(name).file_size > MAX_PICKLE:
        raise BadInput(f"{path}: {name} has more than {MAX_PICKLE >> 20} MB; re-save only its state_dict")
    return archive.read(name)


def _storages(path: Path, content: Any, entries: Mapping[str, Storage]) -> dict[str, Storage]:
    """The entries that a pickle refers to, each as large as the pickle says."""
    storages = {}
    for key, (dtype, count) in references(content).items():
        entry, nbytes = entries[key], count * dtype.itemsize
        if nbytes != entry.nbytes:
            raise BadInput(f"{path}: a storage of {nbytes} bytes has {entry.nbytes}; download it again")
        storages[key] = entry
    return storages


def _entries(held: Held, stream: BinaryIO, archive: zipfile.ZipFile) -> dict[str, Storage]:
    """Every entry's place in the file, each proved by its own local header; one view of the file or none."""
    path = held.path
    entries: dict[str, Storage] = {}
    seen, position, described = set(), 0, 0
    for info in sorted(archive.infolist(), key=lambda info: info.header_offset):
        if not position <= info.header_offset <= position + described:
            raise BadInput(f"{path}: something else than zip entries stands before or in {info.filename!r}; re-save it")
        stream.seek(info.header_offset)
        head = LOCAL_HEADER.unpack(stream.read(LOCAL_HEADER.size))
        begin = info.header_offset + LOCAL_HEADER.size + head[9] + head[10]
        good = _agrees(info, head, stream.read(head[9])) and info.filename.lower() not in seen
        if not good or not (info.compress_type == zipfile.ZIP_STORED or _is_code(info.filename)):
            raise BadInput(f"{path}: entry {info.filename!r} is doubled, compressed, encrypted or damaged; re-save it")
        position = begin + info.compress_size
        described = DESCRIPTOR if (head[2] | info.flag_bits) & 8 else 0
        seen.add(info.filename.lower())
        entries[info.filename] = Storage(held, begin, info.file_size, info.CRC)
    stream.seek(-END_RECORD.size, 2)
    good = _is_end(END_RECORD.unpack(stream.read(END_RECORD.size)), len(entries), archive.start_dir)
    good = good and _is_directory(stream, archive)
    if not position <= archive.start_dir <= position + described or not good:
        raise BadInput(f"{path}: the zip's entries do not fill the file as they should; download it again")
    return entries


def _is_directory(stream: BinaryIO, archive: zipfile.ZipFile) -> bool:
    """Whether the directory's entries are as long as they say; zipfile takes one that ends before."""
    place = archive.start_dir
    for info in archive.infolist():
        stream.seek(place + NAMED)
        lengths = LENGTHS.unpack(stream.read(LENGTHS.size))
        if lengths != (len(info.orig_filename.encode()), len(info.extra), len(info.comment)):
            return False
        place += DIRECTORY_ENTRY + sum(lengths)
    return True


def _is_end(record: tuple, count: int, start: int) -> bool:
    """Whether a zip's last record, without a comment, tells of one disk and of the entries that there are."""
    signature, disk, first, here, entries, _, place, comment = record
    whole = signature == b"PK\5\6" and disk == first == comment == 0 and here == entries
    return (
        whole
        and entries in (count, ZIP64[0])
        and place in (start, ZIP64[1])
        and (count < ZIP64[0]) == (entries == count)
    )


def _agrees(info: zipfile.ZipInfo, head: tuple, name: bytes) -> bool:
    """Whether an entry's local header says what the directory says of it."""
    signature, _, flags, method, _, _, crc, packed, size, *_ = head
    later = bool(flags & 8)  # checksum and sizes stand behind the data
    sizes = (crc, packed, size) == (info.CRC, info.compress_size, info.file_size) or 0xFFFFFFFF in (packed, size)
    plain = info.compress_type != zipfile.ZIP_STORED or info.compress_size == info.file_size
    names = name == info.orig_filename.encode() and info.filename == info.orig_filename
    agrees = signature == b"PK\3\4" and method == info.compress_type and (later or sizes)
    usual = not (flags | info.flag_bits) & ~FLAGS and not info.external_attr & FOLDER and not info.volume
    return agrees and names and plain and usual


def _open_legacy(held: Held, stream: BinaryIO) -> Archive:
    path = held.path
    if read_pickle(stream, str(path)) != LEGACY_MAGIC:
        raise BadInput(f"{path}: a pickle, but holds no state dict that torch.save wrote; re-save it with torch.save")
    if (protocol := read_pickle(stream, str(path))) != PROTOCOL:
        raise BadInput(f"{path}: of protocol {str(protocol)[:20]!r}, expected {PROTOCOL}; re-save it with torch.save")
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
