"""What every job shares: reading its inputs, measuring models, describing both."""

from __future__ import annotations

from .calibrated import Calibrated, calibrated_on, says_nothing
from .describing import (
    LEAST_CALIBRATION_PAIRS,
    Checked,
    check_sets,
    check_sets_with,
    describe_inputs,
    describe_results,
    model_warnings,
    public_settings,
    warnings,
    write_documents,
)
from .images import SharedImages
from .measuring import measure
from .reading import (
    BARE,
    Inputs,
    Opening,
    calibration_pairs,
    input_paths,
    load_model,
    read_data_sets,
    read_sets,
    refuse_bad_images,
)
from .resuming import how_it_ran, keep_work, work_is_done
from .sets import Sets, read_all
from .towers import ASKED, demand_pairs, demand_towers, tower_facts

__all__ = [
    "ASKED",
    "BARE",
    "LEAST_CALIBRATION_PAIRS",
    "Calibrated",
    "Checked",
    "Inputs",
    "Opening",
    "Sets",
    "SharedImages",
    "calibrated_on",
    "calibration_pairs",
    "check_sets",
    "check_sets_with",
    "demand_pairs",
    "demand_towers",
    "describe_inputs",
    "describe_results",
    "how_it_ran",
    "input_paths",
    "keep_work",
    "load_model",
    "measure",
    "model_warnings",
    "public_settings",
    "read_all",
    "read_data_sets",
    "read_sets",
    "refuse_bad_images",
    "says_nothing",
    "tower_facts",
    "warnings",
    "work_is_done",
    "write_documents",
]
