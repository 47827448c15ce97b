"""
The adapters of LAVISH as a method of peft: `peft.get_peft_model(model, LavishConfig(...))`.

peft knows the method as soon as both packages are imported, in either order.
"""

from .config import LavishConfig
from .converting import build_in, take_out
from .layer import LavishLayer
from .model import LavishModel

__all__ = ["LavishConfig", "LavishLayer", "LavishModel", "build_in", "take_out"]
