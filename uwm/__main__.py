"""``python -m uwm``, and the program ``uwm``: nothing is imported before it can be interrupted."""

import gc
import sys

from uwm.errors import INTERRUPTED

FEW_COLLECTIONS = (50_000, 20, 100)  # of garbage: what torch and transformers import is many objects, and no garbage
NO_MEMORY = "uwm: error: out of memory while starting; end other programs"


def main() -> None:
    """The `uwm` program."""
    gc.set_threshold(*FEW_COLLECTIONS)
    try:
        from .cli import main as run
    except KeyboardInterrupt:
        _leave(130, INTERRUPTED)
    except MemoryError:
        _leave(4, NO_MEMORY)
    try:
        run()
    finally:
        gc.freeze()  # or else Python, as it ends, looks through all objects for garbage, for most of a second


def _leave(code: int, text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.exit(code)


if __name__ == "__main__":
    main()
