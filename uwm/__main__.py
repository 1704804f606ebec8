"""``python -m uwm``, and the program ``uwm``: nothing is imported before it can be interrupted."""

import sys

from uwm.errors import INTERRUPTED

NO_MEMORY = "uwm: error: out of memory while starting; end other programs"


def main() -> None:
    """The `uwm` program."""
    try:
        from .cli import main as run
    except KeyboardInterrupt:
        _leave(130, INTERRUPTED)
    except MemoryError:
        _leave(4, NO_MEMORY)
    run()


def _leave(code: int, text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.exit(code)


if __name__ == "__main__":
    main()
