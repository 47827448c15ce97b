"""The config of peft's method LAVISH."""

from dataclasses import dataclass, field

from peft import PeftConfig
from peft.utils import PeftType

from ..models.lavish.options_lavish import AdapterOptions
from .peft_type import add_peft_type

add_peft_type("LAVISH")
DEFAULT_TARGETS = r"(.*\.)?blocks\.\d+\.fusion_\w+"


@dataclass
class LavishConfig(AdapterOptions, PeftConfig):
    """
    Config of LAVISH adapters (Lin et al., CVPR 2023) for peft. The options of the adapters are those of
    [`~hf_avfusion.models.lavish.options_lavish.AdapterOptions`].

        config = LavishConfig(num_tokens=2, reduction=8, groups=2, modules_to_save=["pre_classifier", "classifier"])
        model = get_peft_model(LavishForAudioVisualClassification.from_backbone(...), config)

    Args:
        target_modules: The slots that get adapters: a regular expression that matches whole module names, or a list of endings
            of names. By default every slot of the model, `blocks.<i>.fusion_attn` and `blocks.<i>.fusion_mlp`.
        exclude_modules: Slots that get none, in the same forms.
        layers_to_transform: Indices of the blocks that get adapters, with `target_modules` as a list.
        layers_pattern: Name of the list of blocks for `layers_to_transform`, `"blocks"`.
        modules_to_save: Modules that are trained and saved as a whole, such as the head,
            `["pre_classifier", "classifier"]`, or the norms of the backbone (the original's `is_vit_ln`),
            `["layernorm_before", "layernorm_after", "layernorm"]`.

    Raises:
        ValueError: An option has a value that is not allowed; the message names it.
    """

    target_modules: list[str] | str | None = field(default=None, metadata={"help": "Slots that get adapters."})
    exclude_modules: list[str] | str | None = field(default=None, metadata={"help": "Slots that get none."})
    layers_to_transform: list[int] | int | None = field(default=None, metadata={"help": "Blocks that get adapters."})
    layers_pattern: list[str] | str | None = field(default=None, metadata={"help": "Name of the list of blocks."})
    modules_to_save: list[str] | None = field(default=None, metadata={"help": "Modules trained and saved as a whole."})

    def __post_init__(self):
        super().__post_init__()
        self.peft_type = PeftType.LAVISH
        for name in ("target_modules", "exclude_modules"):
            if isinstance(value := getattr(self, name), (set, tuple)):
                setattr(self, name, sorted(value))  # JSON has no sets
        self.check()
        for name in ("target_modules", "exclude_modules", "layers_pattern", "modules_to_save"):
            value = getattr(self, name)
            is_text = isinstance(value, str) and name != "modules_to_save"
            is_list = isinstance(value, (list, tuple)) and all(isinstance(each, str) for each in value)
            if value is not None and not is_text and not is_list:
                raise ValueError(f"`{name}` must be a list of names, such as ['classifier'], got {value!r}.")
        if self.layers_pattern is not None and self.layers_to_transform is None:
            raise ValueError(
                f"`layers_pattern` {self.layers_pattern!r} has no effect without `layers_to_transform`. Omit it, or name blocks."
            )
        if self.layers_to_transform is not None and not isinstance(self.target_modules, list):
            raise ValueError(
                f"`layers_to_transform` needs `target_modules` as a list, such as ['fusion_attn', 'fusion_mlp'], got "
                f"{self.target_modules!r}."
            )


__all__ = ["DEFAULT_TARGETS", "LavishConfig"]
