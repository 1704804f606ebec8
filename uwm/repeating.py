"""`uwm edit --from uwm.json`: the recipe of a run that was recorded, and the checks that it is repeated exactly."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, cast

from .checkpoint.json_files import checked_json
from .errors import BadInput, InvalidResult
from .fitting import Recipe
from .inputs import Sets
from .knowledge import PUBLISHED
from .manifest import CHECK, Manifest
from .models import Model
from .outputs import MANIFEST
from .report import versions
from .schema import ANYTHING, COUNT, FLAG, NUMBER, TEXT, demand, keyed, listed, mapped, nullable
from .shipped_files import DEMO_MODEL, DEMO_SET

PLACES = (  # where things lie; uwm.json has names, and no paths
    *("model", "calib", "safe_images", "unsafe_images", "eval_set", "zero_shot", "data_root", "templates", "preserve"),
    *("preprocess", "revision", "cache_dir"),
)
HOW = ("offline", "workers", "device", "require_towers", "cache")  # how a run goes; no bit of the edit hangs on it
BY_HAND = (*PLACES, *HOW)
LEFT_OUT = ("max_loss", "objective", "trials")  # a search is not repeated: what it chose is
NAMED = ("eval_set", "templates", "preserve")  # paths of which uwm.json has the last part
SPELT = {"set_": "set", "purpose": "for", "eval_splits": "eval-split"}  # where a flag is not called as its setting
REMEDY = "have uwm write the folder anew"

_LISTS = ("eval_splits", "zero_shot", "beside")
_KINDS = {"str": TEXT, "int": COUNT, "float": NUMBER, "bool": FLAG}
_SETTINGS = keyed(
    {"model": TEXT, "calib": TEXT, "method": TEXT},
    {
        f.name: listed(TEXT) if f.name in _LISTS else nullable(_KINDS[str(f.type).removesuffix(" | None")])
        for f in fields(Recipe)
        if f.name != "settings" and f.name not in ("model", "calib", "method")
    },
    ANYTHING,
)


@dataclass(frozen=True)
class Recorded:
    """What a run was made of, and what it made; empty where nothing is to be repeated.

    Attributes:
        model, output: sha256 by weight file, read and written.
        calibration, preserve: sha256 of the sets; None where there is none, or it is of a part only.
        versions: Of the libraries.
    """

    model: Mapping[str, str] = field(default_factory=dict)
    output: Mapping[str, str] = field(default_factory=dict)
    calibration: str | None = None
    preserve: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)

    def check_sets(self, sets: Sets) -> None:
        """Raises BadInput for other pairs, or another preservation set, than were learnt from."""
        self._same("the calibration set", self.calibration, sets.calibration.fingerprint, "--calib, --safe-images, …")
        if sets.preserve is not None:
            self._same("the preservation set", self.preserve, sets.preserve.fingerprint, "--preserve")

    def _same(self, what: str, recorded: str | None, found: Any, flags: str) -> None:
        if recorded is not None and (now := found()) != recorded:
            raise BadInput(
                f"--from: {what} is not the one of uwm.json: expected sha256 {recorded[:16]}…, found {now[:16]}…; give "
                f"it as it was ({flags}), or edit without --from"
            )

    def check_model(self, model: Model) -> None:
        """Raises BadInput for other weights than were edited."""
        if not self.model:
            return
        assert model.checkpoint is not None
        found = model.checkpoint.file_hashes()
        if sorted(found.values()) != sorted(self.model.values()):
            now, then = (", ".join(f"{name} {digest[:16]}…" for name, digest in h.items()) for h in (found, self.model))
            raise BadInput(f"--from: the model is not the one of uwm.json: expected {then}, found {now}; give MODEL")

    def check_output(self, written: Mapping[str, str]) -> None:
        """Raises InvalidResult where other bytes came out; then nothing is written."""
        if self.output and dict(written) != dict(self.output):
            name = min(n for n in {*written, *self.output} if written.get(n) != self.output.get(n))
            here = versions()
            other = [f"{what} {then} there, {here.get(what, 'none')} here" for what, then in self.versions.items()
                     if here.get(what) != then]  # fmt: skip
            why = f"other versions: {', '.join(other)}" if other else "the device or the processor is another one"
            raise InvalidResult(
                f"--from: {name} came out otherwise than in uwm.json, so this is no repetition ({why}); edit without "
                "--from"
            )


def repeat(file: Path, given: Mapping[str, Any]) -> tuple[Recipe, Recorded]:
    """The recipe of a recorded run, and what it has to agree with.

    Args:
        file: A uwm.json that `uwm edit` or `uwm demo` wrote, or its folder.
        given: Settings given by hand, by name: where things lie, and how the run goes. What is not given and has no
            path in uwm.json is looked for: on the Hub, in the package, and by its name in the current folder.

    Raises:
        BadInput: It records no edit, or a setting is given that decides the edit, or something is found nowhere.
    """
    file = file / MANIFEST if file.is_dir() else file
    manifest = cast(Manifest, checked_json(file, CHECK, REMEDY))
    refuse_given(given)
    settings, made = manifest.get("settings", {}), manifest.get("edit", {})
    if "given" not in made:
        raise BadInput(f"{file}: does not record an edit that can be repeated; expected uwm.json of `uwm edit` or "
                       "`uwm demo` with the settings given (\"edit\": \"given\")")  # fmt: skip
    demand(file, _SETTINGS, settings, REMEDY, "settings")
    demand(file, mapped(ANYTHING), made["given"], REMEDY, "edit.given")
    taken = {f.name: settings[f.name] for f in fields(Recipe) if f.name in settings and f.name not in LEFT_OUT}
    taken = {name: tuple(value) if name in _LISTS else value for name, value in taken.items()}
    for name in (*PLACES, *HOW):
        taken.pop(name, None)
    taken |= {"settings": made["given"], **_places(file, manifest, given)}
    taken |= {name: value for name, value in given.items() if name in BY_HAND}
    return Recipe(**taken), _recorded(manifest)


def refuse_given(names: Collection[str]) -> None:
    """Raises BadInput for a setting by hand that decides the edit."""
    if wrong := [name for name in names if name not in BY_HAND]:
        flag = SPELT.get(wrong[0], wrong[0]).replace("_", "-")
        raise BadInput(
            f"--from: repeats a run with its own settings, and --{flag} would change it; leave one of them out"
        )


def _recorded(manifest: Manifest) -> Recorded:
    calibration = manifest.get("calibration", {}).get("sha256") if "stable" not in manifest else None
    return Recorded(
        manifest.get("model", {}).get("sha256", {}),
        manifest.get("output_sha256", {}),
        calibration,
        manifest["preserve"]["sha256"] if "preserve" in manifest else None,
        manifest.get("versions", {}),
    )


def _places(file: Path, manifest: Manifest, given: Mapping[str, Any]) -> dict[str, Any]:
    """Where everything lies that was not given by hand. Raises BadInput for what is found nowhere."""
    settings = manifest["settings"]
    found: dict[str, Any] = {}
    if "model" not in given:
        found |= _model(file, manifest)
    if "calib" not in given:
        found["calib"] = _named(file, "--calib", settings["calib"], DEMO_SET)
    for name in NAMED:
        if settings.get(name) and name not in given:
            found[name] = _named(file, f"--{name.replace('_', '-')}".removesuffix("-set"), settings[name], DEMO_SET)
    if "zero_shot" not in given:
        found["zero_shot"] = tuple(_data_sets(file, settings.get("zero_shot", [])))
    if settings.get("preprocess"):
        found["preprocess"] = settings["preprocess"]  # a tag, or a file of this name
    return found


def _model(file: Path, manifest: Manifest) -> dict[str, Any]:
    model, settings = manifest.get("model", {}), manifest["settings"]
    if model.get("base_model"):
        return {"model": settings["model"], "revision": settings.get("revision")}
    if settings["model"] == DEMO_MODEL.name and not Path(DEMO_MODEL.name).exists():
        return {"model": "demo"}
    return {"model": _named(file, "MODEL", settings["model"])}


def _data_sets(file: Path, names: Collection[str]) -> Iterator[str]:
    shipped = DEMO_SET / "zero_shot"
    for name in names:
        yield name if name.lower() in PUBLISHED else _named(file, "--zero-shot", name, shipped / Path(name).name)


def _named(file: Path, flag: str, name: str, shipped: Path | None = None) -> str:
    """A file or folder of this name here, or the one that is shipped."""
    if Path(name).name == name and Path(name).exists():
        return name
    if shipped is not None and shipped.name == name and shipped.exists():
        return str(shipped)
    raise BadInput(f"{file}: has no paths, and no {name!r} lies here; say where it is with {flag}")
