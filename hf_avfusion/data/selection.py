"""The command `python -m hf_avfusion.data.selection`; its code is in benchmarks/selection.py."""

from .benchmarks.selection import main

if __name__ == "__main__":
    main()
