"""Score with your own preprocessing: any iterable of uwm.PairBatch will do, and a tower may be missing.

python examples/03_own_tensors.py
"""

import torch

import uwm

model = uwm.load("demo")
generator = torch.Generator().manual_seed(0)


def batches():
    """Ten batches of four preprocessed pictures a side; here noise, in your program your data loader."""
    for _ in range(10):
        safe, unsafe = (torch.randn(4, 3, 64, 64, generator=generator) for _ in range(2))
        yield uwm.PairBatch(safe_pixel_values=safe, unsafe_pixel_values=unsafe)


scores = uwm.score(model, batches(), text_layers="none", vision_layers="vision.[3-5].fc2")
for weight, values in scores.items():
    print(weight, tuple(values.shape), f"mean score {values.mean():.3f}")
