"""The types that tensors are stored in, and their values as bit patterns, so that files are edited without torch.

NumPy has no bfloat16 and no float8; as unsigned integers of the same size every type is read, compared and negated
exactly. Torch is imported only where values, not bits, are asked for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import BadInput

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Dtype:
    """A tensor's type by torch's name for it."""

    name: str
    itemsize: int  # bytes
    kind: str  # float, complex, int, uint, or other
    infinity: int = 0  # of a float: the bits beyond which, without the sign, lies NaN
    values: int = 1  # in one item; more where a value is smaller than a byte, and such values are copied and never read

    @property
    def bits(self) -> np.dtype:
        """NumPy's type for one value: an unsigned integer of its size, where there is one so large; or for a byte."""
        if self.values > 1:
            return np.dtype(np.uint8)
        return np.dtype(f"{'u' if self.itemsize <= 8 else 'c'}{self.itemsize}")

    @property
    def torch(self) -> torch.dtype:
        """Torch's own. Raises BadInput where this torch has none."""
        import torch

        if not hasattr(torch, self.name):
            raise BadInput(f"{self.name} tensors need a newer torch than {torch.__version__}")
        return getattr(torch, self.name)

    def nbytes(self, shape: Sequence[int]) -> int:
        """Bytes of a tensor of this shape, whose values fill whole items."""
        return math.prod(shape) // self.values * self.itemsize

    def negated(self, bits: np.ndarray) -> np.ndarray:
        """−values; of a float by the sign bit alone, −0 and NaN included (torch loses the sign of a bfloat16 NaN)."""
        if self.kind == "float":
            return bits ^ bits.dtype.type(self._sign)
        return np.negative(bits.view(self._numbers)).view(bits.dtype)

    def are_negated(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Where the values of `first` are exactly −1 times those of `second`; NaN is nothing's, and `other` never."""
        if self.kind == "other":
            return np.zeros(first.shape, bool)
        if self.kind == "float":
            return ((first ^ second) == self._sign) & ((first & (self._sign - 1)) <= self.infinity)
        return first.view(self._numbers) == np.negative(second.view(self._numbers))

    def doubles(self, bits: np.ndarray) -> np.ndarray:
        """Values of a float type as float64, exactly."""
        if self.name == "bfloat16":
            return np.left_shift(bits.astype(np.uint32), np.uint32(16)).view(np.float32).astype(np.float64)
        return bits.view(np.dtype(self.name)).astype(np.float64)

    def rounded(self, values: np.ndarray) -> np.ndarray:
        """Float64 values rounded once, to nearest and even, to a float type of two bytes or more, as bit patterns."""
        with np.errstate(over="ignore"):
            if self.name != "bfloat16":
                return values.astype(np.dtype(self.name)).view(self.bits)
            near = values.astype(np.float32)
        # Through float32 rounded to odd: what lies between two values stays between them, so nothing is rounded twice.
        back, bits = near.astype(np.float64), near.view(np.uint32)
        between = (back != values) & ~np.isnan(values) & ((bits & 1) == 0)
        bits = np.where(between, np.where(np.abs(back) < np.abs(values), bits + 1, bits - 1), bits).astype(np.uint32)
        top = ((bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
        return np.where(np.isnan(values), np.uint16(0x7FC0), top)

    @property
    def _sign(self) -> int:
        return 1 << (8 * self.itemsize - 1)

    @property
    def _numbers(self) -> np.dtype:
        """NumPy's own type for what is no float."""
        return np.dtype(f"{ {'complex': 'c', 'int': 'i'}.get(self.kind, 'u') }{self.itemsize}")


FLOATS = {
    "F64": Dtype("float64", 8, "float", 0x7FF0_0000_0000_0000), "F32": Dtype("float32", 4, "float", 0x7F80_0000),
    "F16": Dtype("float16", 2, "float", 0x7C00), "BF16": Dtype("bfloat16", 2, "float", 0x7F80),
    "F8_E4M3": Dtype("float8_e4m3fn", 1, "float", 0x7E), "F8_E5M2": Dtype("float8_e5m2", 1, "float", 0x7C),
}  # fmt: skip
WHOLE = {
    f"{kind[0].upper()}{8 * n}": Dtype(f"{kind}{8 * n}", n, kind) for kind in ("int", "uint") for n in (1, 2, 4, 8)
}
SCALES = {  # never edited: a scale of powers of two, and floats without −0 whose sign bit alone is NaN
    name: Dtype(torch_name, 1, "other") for name, torch_name in {
        "F8_E8M0": "float8_e8m0fnu", "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz",
    }.items()
}  # fmt: skip
PACKED = {  # several values in one item; the shape in a file counts values, torch's counts items
    "F4": Dtype("float4_e2m1fn_x2", 1, "other", values=2),
    "F6_E2M3": Dtype("float6_e2m3", 3, "other", values=4), "F6_E3M2": Dtype("float6_e3m2", 3, "other", values=4),
}  # fmt: skip
DTYPES = FLOATS | SCALES | PACKED | WHOLE | {"BOOL": Dtype("bool", 1, "other"), "C64": Dtype("complex64", 8, "complex")}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
BY_NAME = {dtype.name: dtype for dtype in DTYPES.values()}


def dtype_of(dtype: Any) -> Dtype:
    """A type of safetensors from torch's, NumPy's or its name. Raises KeyError where safetensors has none."""
    return dtype if isinstance(dtype, Dtype) else BY_NAME[str(dtype).removeprefix("torch.")]


@dataclass(frozen=True)
class Bits:
    """A tensor's values as they are stored, no torch needed."""

    dtype: Dtype
    array: np.ndarray  # of dtype.bits, in the tensor's shape; of values smaller than a byte, the bytes alone

    @classmethod
    def stored(cls, dtype: Dtype, raw: np.ndarray, shape: Sequence[int]) -> Bits:
        """Of a tensor's own bytes, uint8."""
        bits = raw.view(dtype.bits)
        return cls(dtype, bits if dtype.values > 1 else bits.reshape(shape))

    @classmethod
    def of(cls, tensor: Any) -> Bits:
        """Of a torch tensor on the CPU or a NumPy array; no copy where it is contiguous."""
        if isinstance(tensor, Bits):
            return tensor
        dtype = dtype_of(tensor.dtype)
        if isinstance(tensor, np.ndarray):
            return cls(dtype, np.ascontiguousarray(tensor).view(dtype.bits))
        import torch

        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        return cls(dtype, raw.view(dtype.bits).reshape(tuple(tensor.shape)))

    def torch(self) -> torch.Tensor:
        """The torch tensor that shares this memory. Raises BadInput for values smaller than a byte."""
        import torch

        if self.dtype.values > 1:
            raise BadInput(f"{self.dtype.name} tensors are copied, and their values are never read")
        if not self.array.size:
            return torch.empty(self.array.shape, dtype=self.dtype.torch)
        raw = np.ascontiguousarray(self.array).reshape(-1).view(np.uint8)
        return torch.from_numpy(raw).view(self.dtype.torch).reshape(self.array.shape)
