"""Everything that uwm writes: checked before the work, locked during it, whole or not at all, never over foreign files.

`output_folder` is for a folder that appears at the end, `filled_folder` for one that is filled over time, `output_file`
for a file that a user names, and `put_file` for a file within one of those folders.
"""

from .files import OutputFile, OutputText, appended_file, output_file, put_file, refuse_one_place
from .filled import check_filled, filled_folder
from .folders import OutputFolder, new_folder, output_folder
from .places import MANIFEST, OWN, Ours, check_file, check_folder, kind_of, link_note, real
from .temporary import TEMPORARY

__all__ = [
    "MANIFEST",
    "OWN",
    "TEMPORARY",
    "Ours",
    "OutputFile",
    "OutputFolder",
    "OutputText",
    "appended_file",
    "check_file",
    "check_filled",
    "check_folder",
    "filled_folder",
    "kind_of",
    "link_note",
    "new_folder",
    "output_file",
    "output_folder",
    "put_file",
    "real",
    "refuse_one_place",
]
