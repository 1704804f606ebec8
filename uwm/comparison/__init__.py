"""Any set of methods from one recipe: one table, one plot, with what each costs."""

from .comparison import Comparison, compare, planned
from .settings import CompareRecipe

__all__ = ["CompareRecipe", "Comparison", "compare", "planned"]
