"""The command `python -m hf_avfusion.data.describe`; its code is in benchmarks/describe.py."""

from .benchmarks.describe import main

if __name__ == "__main__":
    main()
