"""What runs in the processes that read images: one loads what preprocessing needs, and forks the others."""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import socket
import sys
from collections.abc import Sequence
from io import BufferedRWPair
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFile

from ..clock import reuse_freed_memory
from ..models.preprocessors import Preprocessor
from .reading import Found, read_images

READY = b"R"  # what a process says first


def send(stream: BufferedRWPair, value: Any) -> None:
    """Send what can be pickled; the values of arrays as they lie in memory."""
    arrays: list[pickle.PickleBuffer] = []
    pickled = pickle.dumps(value, protocol=5, buffer_callback=arrays.append)
    raw = [array.raw() for array in arrays]
    pickle.dump((pickled, [len(one) for one in raw]), stream)
    for one in raw:
        stream.write(one)
    stream.flush()


def receive(stream: BufferedRWPair) -> Any:
    """What was sent. Raises EOFError, UnpicklingError or OSError where the other end is gone."""
    pickled, sizes = pickle.load(stream)
    arrays = [np.empty(size, np.uint8) for size in sizes]
    for array in arrays:
        if stream.readinto(array.data) != len(array):
            raise EOFError
    return pickle.loads(pickled, buffers=arrays)


def settings() -> tuple[int | None, bool, torch.dtype]:
    """What a program may have told Pillow and torch of reading images."""
    return Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, torch.get_default_dtype()


def _set(most_pixels: int | None, truncated: bool, dtype: torch.dtype) -> None:
    Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = most_pixels, truncated
    torch.set_default_dtype(dtype)


def serve(descriptors: Sequence[int]) -> None:
    """Fork a process for each of these sockets, and end when all of them have.

    What preprocesses images, and the `settings`, are read from the standard input.
    """
    preprocess, told = pickle.load(sys.stdin.buffer)
    _set(*told)
    reuse_freed_memory(os.environ)
    torch.set_num_threads(1)
    with contextlib.suppress(Exception):  # it says so again of real images
        preprocess([Image.new("RGB", (64, 64))])  # what this loads, all of them have
    gc.freeze()  # or collecting would copy the memory that they share
    for own in descriptors:
        if os.fork() == 0:
            try:
                for other in descriptors:
                    if other != own:
                        os.close(other)
                _serve(socket.socket(fileno=own), preprocess)
            finally:
                os._exit(0)
    for descriptor in descriptors:
        os.close(descriptor)
    with contextlib.suppress(ChildProcessError):
        while True:
            os.wait()
    os._exit(0)  # at once: there is nothing to put away


def _serve(connection: socket.socket, preprocess: Preprocessor) -> None:
    """Answer until the other end is gone."""
    with contextlib.suppress(EOFError, OSError), connection.makefile("rwb") as stream:
        stream.write(READY)
        stream.flush()
        while True:
            sources, only_read = receive(stream)
            try:
                answer: Any = _as_arrays(read_images(preprocess, sources, only_read))
            except Exception as error:  # it is for the parent to say, as if the work were its own
                answer = _sendable(error)
            send(stream, answer)


def _sendable(error: Exception) -> Exception:
    """The error, or what it says, where another process could not make it anew."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # whatever its class makes of that
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _as_arrays(found: Found) -> list[Any]:
    """What was found of each image, in order."""
    return [one.numpy() if isinstance(one, torch.Tensor) else one for one in found.values()]
