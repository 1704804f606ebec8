"""Fine-tuning with any backend's loss: LoRA, Adam, early stopping; a killed run goes on to the same end."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..cache import EmbeddingCache
from ..calibration import CalibrationSet, demand_signal
from ..embedding import Embeddings, embed, quadruples
from ..errors import BadInput, InvalidResult
from ..metrics import recall
from ..models import Model
from ..models.student import hugging_face_copy, recompute_activations
from ..processes import in_order, in_rounds, is_own, own_part
from ..statistics.batches import Progress, embed_inputs
from ..tracking import note
from .feeding import Batch, Feeder, student_embeddings
from .lora import Adapter, insert, own_draws, put_back
from .protocol import Backend, Computing, Objective, TrainingSettings
from .state import ANEW, State, load_state, save_state

DTYPES = {"auto": None, "float32": None, "bfloat16": torch.bfloat16}
COMPUTING = Computing()
CHECKED = 64  # captions whose pooled token is checked before training
SAVE_SECONDS = 120.0  # how much work a kill may cost, at most

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trained:
    """What a run made.

    Attributes:
        adapter: Of the best epoch by validation.
        history: An entry an epoch: ``epoch``, ``loss`` and ``terms`` (before their factors; means over the pairs),
            ``validation`` (a loss, or the sum of six R@1), ``seconds``.
        best_epoch: Which one the adapter is from.
        snapshots: Epoch -> adapter, of those that were asked for and reached.
        parameters: How many were trained.
        resumed_from: How many epochs an earlier, killed run had finished.
    """

    adapter: Adapter
    history: list[dict[str, Any]]
    best_epoch: int
    snapshots: dict[int, Adapter] = field(default_factory=dict)
    parameters: int = 0
    resumed_from: int = 0


def train(
    model: Model,
    pairs: CalibrationSet,
    validation: CalibrationSet,
    backend: Backend,
    settings: TrainingSettings | None = None,
    *,
    seed: int = 0,
    computing: Computing = COMPUTING,
    progress: Progress | None = None,
    state: Path | None = None,
    snapshots: Collection[int] = (),
    cache: EmbeddingCache | None = None,
) -> Trained:
    """Fine-tune a copy of a plain CLIP with LoRA; `model` itself is the frozen reference and stays as it is.

    The student is a copy of its own, in the Hugging Face layout; the reference's embeddings are made once, beforehand.

    Args:
        model: A plain CLIP of any layout, from `uwm.load`.
        pairs: To train on; only complete quadruples count.
        validation: To stop by; of other pairs.
        backend: Whose loss, see `uwm.backends.find_backends`.
        settings: Default: the backend's own, its paper's.
        seed: For LoRA's first matrices, the order of the pairs, and dropout.
        computing: In which precision, and in how much memory.
        progress, cache: As in `uwm.evaluate`; the cache is for the reference's embeddings.
        state: A file to go on from after a kill, written every two minutes and epoch; whoever names it removes it.
        snapshots: Epochs whose adapters are kept too.

    Raises:
        BadInput: No plain CLIP, settings that cannot work, pairs as `demand_signal` finds them, or `state` belongs to
            another run.
        InvalidResult: The loss is not finite.
    """
    settings = settings or backend.settings
    check_training(settings, computing)
    pairs, validation = quadruples(pairs), quadruples(validation)
    demand_signal(model, pairs, ("text", "vision"))
    run = _Run(model, pairs, validation, backend, settings, seed, computing, cache)
    how: dict[str, Any] = {"dtype": computing.dtype, "micro": computing.micro_batch, "seed": seed}
    how |= {"checkpointing": computing.checkpointing, "kept": sorted(snapshots)}
    key = _key(model, pairs, validation, backend.name, asdict(settings) | how)
    return _drive(run, key, state, snapshots, progress)


def _drive(run: _Run, key: str, state: Path | None, snapshots: Collection[int], progress: Progress | None) -> Trained:
    """Go on from the state there is, train to the end, and keep the state on the way."""
    earlier = load_state(state, key, run.masters) if state is not None else None
    if earlier is not None:
        if not run.reaches(earlier):
            raise BadInput(
                f"{state}: damaged: step {earlier.step}: expected a step of this run after {len(earlier.history)} "
                f"epochs, found another; {ANEW}"
            )
        run.restore(earlier)
    resumed_from, saved = len(run.now.history), time.monotonic()
    for epoch_done in run.steps(progress):
        if epoch_done and len(run.now.history) in snapshots:
            run.now.snapshots[len(run.now.history)] = run.trained()
        if state is not None and (epoch_done or time.monotonic() - saved > SAVE_SECONDS):
            save_state(state, key, run.written())
            saved = time.monotonic()
    return Trained(
        adapter=Adapter(run.now.best, run.settings),
        history=run.now.history,
        best_epoch=run.now.best_epoch,
        snapshots={epoch: Adapter(tensors, run.settings) for epoch, tensors in sorted(run.now.snapshots.items())},
        parameters=sum(p.numel() for p in run.masters.values()),
        resumed_from=resumed_from,
    )


def check_training(settings: TrainingSettings, computing: Computing) -> None:
    """Refuse settings that cannot work, before anything is read. Raises BadInput."""
    if computing.dtype not in DTYPES:
        raise BadInput(f"--dtype {computing.dtype!r}: fine-tuning computes in float32 or bfloat16")
    if settings.stop_on not in ("loss", "recall"):
        raise BadInput(f"--stop-on {settings.stop_on!r}: expected loss or recall")
    least = {"epochs": 1, "train_batch": 2, "rank": 1, "patience": 0}
    for name, low in least.items():
        if getattr(settings, name) < low:
            raise BadInput(f"--{name.replace('_', '-')} {getattr(settings, name)}: expected at least {low}")
    if computing.micro_batch is not None and computing.micro_batch < 1:
        raise BadInput(f"--micro-batch {computing.micro_batch}: expected at least 1")
    if not (math.isfinite(settings.learning_rate) and settings.learning_rate > 0):
        raise BadInput(f"--learning-rate {settings.learning_rate}: expected a positive number such as 1e-4")
    if not 0 <= settings.dropout < 1:
        raise BadInput(f"--dropout {settings.dropout}: expected a number from 0 to below 1")
    if not settings.targets:
        raise BadInput("--targets: expected names of layers, such as k_proj,v_proj")


def _key(model: Model, pairs: CalibrationSet, validation: CalibrationSet, name: str, about: dict[str, Any]) -> str:
    """sha256 over all that decides a run."""
    assert model.checkpoint is not None
    about |= {"backend": name, "model": model.checkpoint.file_hashes(), "torch": torch.__version__}
    about |= {"pairs": pairs.fingerprint(), "validation": validation.fingerprint()}
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


@dataclass
class _Watched:
    """Pairs to validate on, as the frozen model embeds them."""

    feeder: Feeder
    objective: Objective


class _Run:
    """One training: the student, the loss, and where it is."""

    def __init__(
        self,
        model: Model,
        pairs: CalibrationSet,
        validation: CalibrationSet,
        backend: Backend,
        settings: TrainingSettings,
        seed: int,
        computing: Computing,
        cache: EmbeddingCache | None,
    ) -> None:
        self.settings, self.seed, self.micro_batch = settings, seed, computing.micro_batch
        self.name = backend.name
        self.student = hugging_face_copy(model)
        self.masters = insert(self.student, settings, seed)
        with torch.no_grad():  # in train mode the pooled token is not checked
            embed_inputs(self.student, *model.tokenize([p.safe_text or "" for p in pairs.pairs[:CHECKED]]))
        if computing.checkpointing:
            recompute_activations(self.student)
        dtype = DTYPES[computing.dtype]
        if dtype is not None:  # the towers in bfloat16, without casts to and fro; what is trained stays float32
            self.masters = {n: p.detach().clone().requires_grad_() for n, p in self.masters.items()}
            self.student.module.to(dtype)
        self.adam = torch.optim.Adam(list(self.masters.values()), lr=settings.learning_rate)
        sizes: dict[str, Any] = {"batch_size": computing.batch_size, "workers": computing.workers}
        frozen = [embed(model, side, cache=cache, **sizes) for side in (pairs, validation)]
        self.feeder = Feeder(model, pairs, computing.workers)
        self.objective = backend.objective(frozen[0], pairs.pairs)
        watched = backend.objective(frozen[1], validation.pairs)
        self.watched = _Watched(Feeder(model, validation, computing.workers), watched)
        self.now = State()

    def steps(self, progress: Progress | None) -> Iterator[bool]:
        """Train; after every step tell whether it ended an epoch. Ends early when validation no longer gets better."""
        plan = self._plan()[self.now.step :]
        if not plan or self._stops():
            return
        steps = zip(plan, self.feeder.feed(rows for _, rows, _ in plan), strict=True)
        for (epoch, rows, last), batch in progress(steps, len(plan), self.name) if progress else steps:
            start = time.perf_counter()
            self._step(rows, batch)
            self.now.step += 1
            self.now.seconds += time.perf_counter() - start
            if last:
                self._finish_epoch(epoch)
            yield last
            if last and self._stops():
                return

    def _plan(self) -> list[tuple[int, torch.Tensor, bool]]:
        """Every step of the run: epoch, rows in the order of training, whether it is the epoch's last."""
        plan = []
        for epoch in range(1, self.settings.epochs + 1):
            rows = self.objective.rows(epoch)
            if not len(rows):
                raise BadInput(
                    f"{self.name}: epoch {epoch} has no pairs to train on; {self.feeder.size} pairs are too few"
                )
            order = torch.randperm(
                len(rows), generator=torch.Generator().manual_seed(_seed(self.seed * 1_000_003 + epoch))
            )
            parts = rows[order].split(self.settings.train_batch)
            plan += [(epoch, part, number == len(parts) - 1) for number, part in enumerate(parts)]
        return plan

    def reaches(self, state: State) -> bool:
        """Whether a state's step is one of this run, after as many epochs as the state tells of."""
        plan = self._plan()
        epochs = sum(last for _, _, last in plan[: state.step])
        return state.step <= len(plan) and epochs == len(state.history)

    def trained(self) -> dict[str, torch.Tensor]:
        """A copy of what is trained, by name, float32 on the CPU."""
        return {name: master.detach().cpu().clone() for name, master in self.masters.items()}

    def _stops(self) -> bool:
        waited = len(self.now.history) - self.now.best_epoch
        return 0 < self.settings.patience <= waited

    def _step(self, rows: torch.Tensor, batch: Batch) -> None:
        self.student.module.train()
        with own_draws(self.student.device):
            found = self._backward(rows, batch)
        for value in found.values():
            self._check_finite(value, f"in step {self.now.step + 1}")
        self._update()
        note(self.now.step + 1, {f"train/{name}": value for name, value in found.items()})
        for name, value in {**found, "pairs": 1}.items():
            self.now.sums[name] = self.now.sums.get(name, 0.0) + value * len(rows)

    def _update(self) -> None:
        """A step of Adam, on float32 copies where the student computes in another dtype."""
        live = dict(self.student.module.named_parameters())
        copies = [(live[name], master) for name, master in self.masters.items() if live[name] is not master]
        for parameter, master in copies:
            master.grad, parameter.grad = None if parameter.grad is None else parameter.grad.float(), None
        self.adam.step()
        self.adam.zero_grad()
        with torch.no_grad():
            for parameter, master in copies:
                parameter.copy_(master)

    def _backward(self, rows: torch.Tensor, batch: Batch) -> dict[str, float]:
        """Gradients of the whole batch's loss, part by part where `micro_batch` asks for it; the terms and the loss.

        The parts are embedded twice: without gradient for the loss of the whole batch, which gives the gradient by
        every embedding; then with gradient, to carry it on. Dropout is the same both times. Several processes share the
        parts, and add their gradients in the order of one; a batch in one part each of them does whole.
        """
        parts = torch.arange(len(batch)).split(self.micro_batch or len(batch))
        if len(parts) == 1:
            return self._loss(self._embed(batch, 0), rows)
        with torch.no_grad():
            embedded = (vars(self._embed(batch.part(p), n)) for n, p in own_part([*enumerate(parts)]))
            found = in_order(embedded, "parts of a batch")
        whole = {side: torch.cat([part[side] for part in found]).requires_grad_() for side in found[0]}
        terms = self._loss(Embeddings(**whole), rows)
        used = {side: tensor.grad for side, tensor in whole.items() if tensor.grad is not None}
        live = [p for p in self.student.module.parameters() if p.requires_grad]
        slopes = (self._carried(batch, n, p, used, live) if is_own(n) else None for n, p in enumerate(parts))
        for carried in in_rounds(slopes, "gradients of a batch"):
            for parameter, slope in zip(live, carried, strict=True):
                if slope is not None:
                    parameter.grad = slope if parameter.grad is None else parameter.grad + slope
        return terms

    def _carried(
        self,
        batch: Batch,
        number: int,
        part: torch.Tensor,
        used: dict[str, torch.Tensor],
        live: list[torch.nn.Parameter],
    ) -> list[torch.Tensor | None]:
        """The gradients of one part by what is trained, from those of the whole batch by every embedding."""
        again = vars(self._embed(batch.part(part), number))
        outputs, given = [again[side] for side in used], [slope[part] for slope in used.values()]
        return [*torch.autograd.grad(outputs, live, given, allow_unused=True)]

    def _embed(self, batch: Batch, number: int) -> Embeddings:
        torch.manual_seed(_seed((self.seed * 1_000_003 + self.now.step) * 1_000_003 + number))  # of dropout
        return student_embeddings(self.student, batch)

    def _loss(self, student: Embeddings, rows: torch.Tensor) -> dict[str, float]:
        """Back-propagate the loss; its terms and itself as numbers."""
        terms = self.objective.terms(student, rows)
        total = self._total(terms)
        total.backward()
        return {name: term.item() for name, term in terms.items()} | {"loss": total.item()}

    def _total(self, terms: dict[str, torch.Tensor]) -> torch.Tensor:
        if odd := sorted(terms.keys() - self.settings.weights.keys()):
            raise BadInput(f"backend {self.name!r}: its settings have no weight for the term {odd[0]!r}")
        return torch.stack([self.settings.weights[name] * term for name, term in terms.items()]).sum()

    def _finish_epoch(self, epoch: int) -> None:
        start, now = time.perf_counter(), self.now
        value = self._validate()
        self._check_finite(value, f"on the validation pairs after epoch {epoch}")
        pairs = now.sums.pop("pairs")
        means = {name: total / pairs for name, total in sorted(now.sums.items())}
        entry = {"epoch": epoch, "pairs": int(pairs), "loss": means.pop("loss"), "terms": means, "validation": value}
        now.history.append(entry | {"seconds": round(now.seconds + time.perf_counter() - start, 3)})
        logger.info("%s: epoch %d, loss %.4f, validation %.4f", self.name, epoch, entry["loss"], value)
        note(now.step, {"train/epoch": epoch, "train/validation": value})
        now.sums, now.seconds = {}, 0.0
        badness = -value if self.settings.stop_on == "recall" else value
        if badness < now.best_value:
            now.best_epoch, now.best_value, now.best = epoch, badness, self.trained()

    def _check_finite(self, value: float, where: str) -> None:
        if not math.isfinite(value):
            raise InvalidResult(f"{self.name}: the loss is not finite {where}; lower the learning rate")

    @torch.no_grad()
    def _validate(self) -> float:
        self.student.module.eval()
        plan = own_part(torch.arange(self.watched.feeder.size).split(self.settings.train_batch))
        batches = zip(plan, self.watched.feeder.feed(plan), strict=True)
        if self.settings.stop_on == "recall":
            found = in_order((vars(student_embeddings(self.student, batch)) for _, batch in batches), "validation")
            return recall_sum(Embeddings(**{s: torch.cat([part[s] for part in found]).cpu() for s in found[0]}))
        terms = ((self.watched.objective.terms(student_embeddings(self.student, b), rows), rows) for rows, b in batches)
        losses = in_order((float(self._total(found)) * len(rows) for found, rows in terms), "validation")
        return sum(losses) / self.watched.feeder.size

    # ------------------------------------------------------------ to disk and back

    def written(self) -> State:
        """All that `restore` needs."""
        self.now.adapter = self.trained()
        moments = (("mean", "exp_avg"), ("square", "exp_avg_sq"), ("step", "step"))
        states = ((name, self.adam.state[master]) for name, master in self.masters.items())
        self.now.adam = {f"{ours}/{n}": s[theirs].cpu() for n, s in states if s for ours, theirs in moments}
        return self.now

    def restore(self, state: State) -> None:
        """Go on from what `written` gave."""
        self.now = state
        put_back(self.student, state.adapter)
        with torch.no_grad():
            for name, master in self.masters.items():
                master.copy_(state.adapter[name])
        for name, master in self.masters.items():
            if f"step/{name}" in state.adam:
                mean, square = (state.adam[f"{what}/{name}"].to(master.device) for what in ("mean", "square"))
                self.adam.state[master] = {"step": state.adam[f"step/{name}"], "exp_avg": mean, "exp_avg_sq": square}


def _seed(number: int) -> int:
    """A seed that torch takes."""
    return number % (1 << 63)


def recall_sum(embeddings: Embeddings) -> float:
    """The sum of R@1 both ways of safe text with safe images and with unsafe images, unsafe text with safe images.

    Safe-CLIP's measure of the best epoch (method of Poppi et al., ECCV 2024): what it redirects counts as found.
    """
    e = embeddings
    couples = ((e.safe_text, e.safe_image), (e.safe_text, e.unsafe_image), (e.unsafe_text, e.safe_image))
    return sum(recall(a, b, (1,))[1] + recall(b, a, (1,))[1] for a, b in couples)
