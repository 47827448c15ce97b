"""The command `python -m hf_avfusion.data.avdigits`; its code is in synthetic/avdigits.py."""

from .synthetic.avdigits import main

if __name__ == "__main__":
    main()
