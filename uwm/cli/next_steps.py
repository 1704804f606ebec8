"""What was done, and the command that makes sense after it: the first and the last of the lines that a verb prints."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..figures import LEAST_FIRM_PAIRS
from .flags import SETTING_FLAGS
from .terminal import again, flags_given, given

if TYPE_CHECKING:
    from ..report import Line

METHOD = ("--method", "--set", *SETTING_FLAGS)  # what another method, or a search, replaces
OUTPUT = ("-o", "--output")
OPENS = ("--arch", "--preprocess", "--key", "--revision")  # how a model is opened, and so it is as a baseline
WHERE = "PAIRS"  # stands for a set of the user's own
READ_BY = {  # what an edit is for -> what measures it
    "llava": ("--caption", "LLAVA", "--images", WHERE),
    "diffusion": ("--generate", "PIPELINE", "--prompts", "PROMPTS", "--detector", "nudenet"),
}
GATE = ("--require", "PU.low>+0pt")  # a gain that is certain; the user adds what it may cost


def done_line(text: str, used: Mapping[str, Any], output: Path | None) -> Line:
    """What was done, where it was written, and what it took."""
    from ..report import Line

    seconds, memory = sum(used["seconds"].values()), used["peak_memory_mb"] / 1000
    where = f"written to {output}" if output else "nothing written"
    rest = " since it went on" if used.get("went_on") else ""
    return Line("DONE", f"{text}; {where} ({seconds:.0f} s{rest}, {memory:.1f} GB)")


def edit_done(manifest: Mapping[str, Any]) -> str:
    """``uwm edited demo-clip by 600 pairs of emoji: …``."""
    from ..report import edit_words

    counts = manifest["calibration"]["pairs"]
    same = len({*counts.values()}) == 1
    pairs = f"{next(iter(counts.values()))}" if same else " and ".join(f"{n} ({t})" for t, n in counts.items())
    about = f"{manifest['model']['name']} edited by {manifest['settings']['method']}"
    return f"{about} from {pairs} pairs of {manifest['calibration']['name']}: {edit_words(manifest, brief=True)}"


def training_done(manifest: Mapping[str, Any]) -> str:
    """``demo-clip trained by safe-clip on 540 pairs of emoji: …``."""
    training, pairs = manifest["training"], manifest["calibration"]["pairs"]["both"]
    return (
        f"{manifest['model']['name']} trained by {training['backend']} on {pairs} pairs of "
        f"{manifest['calibration']['name']}: {training['parameters']:,} values, {len(training['history'])} epochs, the "
        f"best by validation kept: {training['best_epoch']}"
    )


def after_edit(manifest: Mapping[str, Any], model: str, output: Path | None) -> str:
    """The command that mends what is worst: half an edit, few pairs, a better method, a cost; else a gate.

    Of an edit for what reads the towers, the command that measures it.

    Args:
        manifest: The content of uwm.json.
        model: The reference of the unedited model.
        output: The folder that was written; None for a dry run.
    """
    facts, left = manifest.get("verdict"), manifest["towers"]["not_edited"]
    if any("--safe-images" in why for why in left.values()):
        return _edited(["--safe-images", "FOLDER", "--unsafe-images", "FOLDER"], output, "both")
    if (fixed := _of_a_fixed_edit(manifest, model, output)) is not None:
        return fixed
    if facts is not None and facts["better"]:
        method = facts["better"][0]["method"]
        return _edited(["--method", method], output, method, METHOD)
    enough = facts is not None and facts["pairs"] >= LEAST_FIRM_PAIRS
    if facts is not None and enough and "budget" not in manifest and facts["sign"] < 1:
        return _edited(["--max-loss", "2%"], output, "within", (*METHOD, "--until-stable"))
    if output is None:
        return again(["-o", "OUT"], OUTPUT, ("--dry-run",))
    return measured_on_more(str(output), model, GATE if enough else ())


def _of_a_fixed_edit(manifest: Mapping[str, Any], model: str, output: Path | None) -> str | None:
    """What comes after an edit for a reader, or one that repeats a run: no flag can change it; None of others."""
    reader = READ_BY.get(manifest.get("settings", {}).get("purpose"))
    if reader is None and not given("--from"):
        return None
    if output is None:
        return again(["-o", "OUT"], OUTPUT, ("--dry-run",))
    return shlex.join(["uwm", "eval", str(output), *reader]) if reader else measured_on_more(str(output), model)


def measured_on_more(model: str, baseline: str, more: Iterable[str] = ()) -> str:
    """Measure a model on a set of the user's own."""
    return shlex.join(["uwm", "eval", model, "--pairs", WHERE, "--baseline", baseline, *flags_given(OPENS), *more])


def after_evaluation(facts: Mapping[str, Any], recipe: Any, failed: Collection[str]) -> str:
    """Compare, mend, or gate; else show all figures.

    Args:
        facts: The verdict.
        recipe: Of the evaluation.
        failed: The requirements that are not met.
    """
    from ..evaluating import APART

    if recipe.baseline is None:
        return again(["--baseline", "UNEDITED"])
    if {*failed} == {APART}:
        return again(["--pairs", WHERE], ("--pairs", "--split"))
    if failed:
        return shlex.join(["uwm", "edit", recipe.baseline, "--calib", WHERE, "--max-loss", "2%", "-o", "OUT"])
    if facts["pairs"] < LEAST_FIRM_PAIRS:
        return measured_on_more(recipe.model, recipe.baseline)
    return again(["--all-figures"]) if recipe.requirements else again(GATE)


def _edited(changed: Sequence[str], output: Path | None, name: str, without: Sequence[str] = ()) -> str:
    """The same edit with other flags, into a folder of its own."""
    place = ["-o", f"{output}-{name}" if output else "OUT"]
    return again([*changed, *place], (*without, *OUTPUT), ("--dry-run", "--overwrite"))
