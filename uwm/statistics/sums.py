"""What reducers have summed up, as plain objects and tensors, and back: for a pass that another process goes on with.

A class names its sums in ``SUMS``, the attributes that a pass changes. All else of it is as it was when it was made. A
subclass names them again, for it may sum up more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import singledispatch
from typing import Any

import torch

Tensors = dict[str, torch.Tensor]


class NotTold(Exception):
    """Some sums are of a kind that cannot be told."""


def told(objects: Sequence[Any]) -> tuple[Tensors, list[Any]]:
    """The sums of some objects: tensors by name, on the CPU, and JSON that refers to them. Raises NotTold."""
    tensors: Tensors = {}
    return tensors, [_told(one, tensors) for one in objects]


def restore(objects: Sequence[Any], tensors: Mapping[str, torch.Tensor], about: list[Any], device: Any) -> None:
    """Give objects the sums that `told` told.

    Args:
        objects: With the same `outline` as those that were told.
        tensors, about: From `told`.
        device: Of the model, where tensors go that were on one.
    """
    back = _Back(tensors, device)
    for one, sums in zip(objects, about, strict=True):
        back(one, sums)


def can_be_told(objects: Sequence[Any]) -> bool:
    """Whether all of them name their sums."""
    return all(_names(one) for one in objects)


def outline(value: Any) -> Any:
    """JSON that tells what sums there are, of which classes and of which weights, whatever was summed up so far."""
    if isinstance(value, list):
        return [outline(one) for one in value]
    if isinstance(value, dict):
        return [[str(key), outline(one)] for key, one in value.items() if _names(one)]
    return [type(value).__name__, *([name, outline(getattr(value, name))] for name in _names(value))]


def _names(value: Any) -> tuple[str, ...]:
    return vars(type(value)).get("SUMS", ())


# ---------------------------------------------------------------- plain values as they are, all else as {kind: content}


@singledispatch
def _told(value: Any, tensors: Tensors) -> Any:
    if not _names(value):
        raise NotTold(type(value).__name__)
    return {"sums": {name: _told(getattr(value, name), tensors) for name in _names(value)}}


@_told.register
def _plain(value: bool | int | float | str | None, tensors: Tensors) -> Any:
    return value


@_told.register
def _tensor(value: torch.Tensor, tensors: Tensors) -> Any:
    name = str(len(tensors))
    tensors[name] = value.detach().cpu().contiguous()
    return {"tensor": [name, value.device.type != "cpu"]}


@_told.register
def _bytes(value: bytes, tensors: Tensors) -> Any:
    return {"bytes": value.hex()}


@_told.register
def _tuple(value: tuple, tensors: Tensors) -> Any:
    return {"tuple": [_told(one, tensors) for one in value]}


@_told.register
def _list(value: list, tensors: Tensors) -> Any:
    if value and all(isinstance(one, bytes) for one in value):  # digests, one for each input
        return {"digests": _told(torch.tensor([[*one] for one in value], dtype=torch.uint8), tensors)}
    return {"list": [_told(one, tensors) for one in value]}


@_told.register
def _dictionary(value: dict, tensors: Tensors) -> Any:
    if all(isinstance(key, str | bytes) for key in value):
        return {"items": [[_told(key, tensors), _told(one, tensors)] for key, one in value.items()]}
    return {"values": [_told(one, tensors) for one in value.values()]}  # the keys were there before the pass


class _Back:
    """Makes of what was told what it was; `value` is what stands in its place, and keeps what is no sum."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], device: Any) -> None:
        self._tensors, self._device = tensors, device
        self._kinds: dict[str, Callable[[Any, Any], Any]] = {
            "sums": self._sums,
            "tensor": self._tensor,
            "bytes": lambda _, text: bytes.fromhex(text),
            "tuple": lambda _, parts: tuple(self(None, part) for part in parts),
            "digests": lambda _, rows: [row.numpy().tobytes() for row in self(None, rows)],
            "list": lambda _, parts: [self(None, part) for part in parts],
            "items": lambda _, pairs: {self(None, key): self(None, one) for key, one in pairs},
            "values": self._values,
        }

    def __call__(self, value: Any, sums: Any) -> Any:
        if not isinstance(sums, dict):
            return sums
        ((kind, content),) = sums.items()
        return self._kinds[kind](value, content)

    def _sums(self, value: Any, content: Mapping[str, Any]) -> Any:
        for name, sums in content.items():
            setattr(value, name, self(getattr(value, name), sums))
        return value

    def _tensor(self, _: Any, content: tuple[str, bool]) -> torch.Tensor:
        name, on_device = content
        return self._tensors[name].to(self._device) if on_device else self._tensors[name]

    def _values(self, value: Mapping[Any, Any], content: list[Any]) -> dict[Any, Any]:
        return {key: self(one, sums) for (key, one), sums in zip(value.items(), content, strict=True)}
