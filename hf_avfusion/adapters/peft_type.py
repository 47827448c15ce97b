"""Adds a method to peft's closed enumeration of methods, which `register_peft_method` requires."""

from peft.utils import PeftType


def add_peft_type(name: str) -> None:
    """
    Makes `PeftType.<name>` exist. Does nothing if it does. Proved with Python 3.11 and peft 0.21.

    An Enum class refuses new members, so the member is made and entered by hand.
    """
    if name in PeftType.__members__:
        return
    member = str.__new__(PeftType, name)
    member._name_ = member._value_ = name
    member._sort_order_ = len(PeftType.__members__)
    PeftType._member_names_.append(name)
    PeftType._member_map_[name] = member
    PeftType._value2member_map_[name] = member
    type.__setattr__(PeftType, name, member)


__all__ = ["add_peft_type"]
