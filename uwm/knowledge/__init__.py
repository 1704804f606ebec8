"""What a model still knows: zero-shot accuracy on the paper's 17 data sets and on folders of your own."""

from .data_sets import DataSet, open_data_sets
from .measure import ZeroShot, check_classes, difference, mean_over_sets, zero_shot
from .published import PUBLISHED, Published

__all__ = [
    "PUBLISHED",
    "DataSet",
    "Published",
    "ZeroShot",
    "check_classes",
    "difference",
    "mean_over_sets",
    "open_data_sets",
    "zero_shot",
]
