"""The training loop of the captioner and the generator; killed, it goes on from its last checkpoint."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from train_model import rate_at


class Learner:
    """Parameters that learn, their moving average, their optimizer, and how many steps they have had."""

    def __init__(self, parameters: Iterable[torch.nn.Parameter], saved: Path, decay: float = 0.01) -> None:
        """Go on from `saved` where it exists. Matrices decay by `decay`, vectors not."""
        self.learning, self.saved, self.done = list(parameters), saved, 0
        matrices = [p for p in self.learning if p.ndim > 1]
        vectors = [p for p in self.learning if p.ndim <= 1]
        groups = [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98))
        self.average = [p.detach().clone() for p in self.learning]
        if saved.exists():
            self._resume()

    def learn(self, loss_at: Callable[[int], torch.Tensor], steps: int, rate: float, every: int = 100) -> None:
        """Take what is left of `steps` steps; a step's number alone decides the data of `loss_at`."""
        began, running = time.time(), None
        for step in range(self.done, steps):
            loss = self._move(loss_at(step), rate_at(step, steps, rate))
            running = loss if running is None else 0.98 * running + 0.02 * loss
            self.done = step + 1
            if self.done % every == 0 or self.done == steps:
                self._save()
                row = {"saved": self.saved.name, "step": self.done, "loss": round(running, 4)}
                print(json.dumps(row | {"seconds": round(time.time() - began)}), flush=True)

    def _move(self, loss: torch.Tensor, rate: float) -> float:
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.learning, 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            torch._foreach_lerp_(self.average, self.learning, 10 / (self.done + 10))  # over the last tenth of the steps
        return loss.item()

    def use_average(self) -> None:
        """Give the parameters the moving average of their values."""
        with torch.no_grad():
            for p, mean in zip(self.learning, self.average, strict=True):
                p.copy_(mean)

    def _save(self) -> None:
        state = {"step": self.done, "learning": [p.data for p in self.learning], "average": self.average}
        torch.save(state | {"optimizer": self.optimizer.state_dict()}, self.saved.with_suffix(".tmp"))
        self.saved.with_suffix(".tmp").rename(self.saved)

    def _resume(self) -> None:
        state = torch.load(self.saved)
        self.done = state["step"]
        self.optimizer.load_state_dict(state["optimizer"])
        with torch.no_grad():
            for key in ("learning", "average"):
                for value, kept in zip(getattr(self, key), state[key], strict=True):
                    value.copy_(kept)
