"""The command `python -m hf_avfusion.data.sounding_shapes`; its code is in synthetic/sounding_shapes.py."""

from .synthetic.sounding_shapes import main

if __name__ == "__main__":
    main()
