"""``python -m uwm``."""

from .cli import main

main()
