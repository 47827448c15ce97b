"""The ways in which a fresh model can start from the weights of another, which a model class lists as `start_methods`."""

from typing import NamedTuple


class StartMethod(NamedTuple):
    """One class method of a model, `cls.<method>(source, **config_fields)`.

    Args:
        source: what it starts from, for help texts.
        own_processor: whether the source is a checkpoint of this package, with a processor that says how clips are prepared.
            There is no published default for such a source, so a recipe needs it named.
        file: whether the source is a file, not a checkpoint of transformers.
        part: name of the model's method that gives the source's weights to a part of a model, `model.<part>(source)`. Such a
            start goes together with another one.
        switch: the boolean field of the configuration by which a model has that part. The part is no use with random weights.
        sub_config: the field of the model's configuration that is the source's own configuration. Its sizes are fixed.
    """

    source: str
    own_processor: bool = False
    sub_config: str | None = None
    part: str | None = None
    switch: str | None = None
    file: bool = False


__all__ = ["StartMethod"]
