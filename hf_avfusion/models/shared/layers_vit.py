"""The pre-norm ViT block and the patch embeddings of the ViT-based architectures (JAX conventions throughout)."""

import math
from collections.abc import Callable

import torch
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Plain attention: query, key, value [B, heads, n, head_dim] -> ([B, n, heads, head_dim], weights [B, heads, n, n])."""
    scaling = query.size(-1) ** -0.5 if scaling is None else scaling
    weights = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = nn.functional.softmax(weights, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


class ViTAttention(nn.Module):
    """Multi-head self-attention with biases; the implementation follows `config._attn_implementation`."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_probs_dropout_prob
        self.is_causal = False
        self.q_proj = with_init(nn.Linear(config.hidden_size, config.hidden_size), "attention")
        self.k_proj = with_init(nn.Linear(config.hidden_size, config.hidden_size), "attention")
        self.v_proj = with_init(nn.Linear(config.hidden_size, config.hidden_size), "attention")
        self.o_proj = with_init(nn.Linear(config.hidden_size, config.hidden_size), "attention")

    def forward(
        self, hidden_states: torch.Tensor, context: torch.Tensor | None = None, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        hidden_states [B, n, d] -> ([B, n, d], weights [B, heads, n, m] or None if the kernel returns none).

        `context` [B, m, d] provides keys and values; by default the hidden states themselves, m = n.
        """
        context = hidden_states if context is None else context
        shape = hidden_states.shape[:-1]
        query = self.q_proj(hidden_states).view(*shape, -1, self.head_dim).transpose(1, 2)
        key = self.k_proj(context).view(*context.shape[:-1], -1, self.head_dim).transpose(1, 2)
        value = self.v_proj(context).view(*context.shape[:-1], -1, self.head_dim).transpose(1, 2)
        attend: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        output, weights = attend(
            self,
            query,
            key,
            value,
            None,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return self.o_proj(output.reshape(*shape, -1).contiguous()), weights


class ViTMLP(nn.Module):
    """Dense, activation, dense, with dropout after each dense layer's activation as in the JAX ViT."""

    def __init__(self, config):
        super().__init__()
        if config.hidden_act not in ACT2FN:
            raise ValueError(f"`hidden_act` must be one of {', '.join(ACT2FN)}, got {config.hidden_act!r}.")
        self.activation_fn = ACT2FN[config.hidden_act]
        self.fc1 = with_init(nn.Linear(config.hidden_size, config.intermediate_size), "mlp")
        self.fc2 = with_init(nn.Linear(config.intermediate_size, config.hidden_size), "mlp")
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.fc2(self.dropout(self.activation_fn(self.fc1(hidden_states)))))


def drop_branch(branch: torch.Tensor, rate: float, training: bool) -> torch.Tensor:
    """
    Stochastic depth of the scenic ViT family: zeroes a residual branch [B, n, d] for a sample with probability `rate`.

    Unlike timm's `DropPath`, it does not divide a kept branch by the keep probability, and evaluation rescales nothing (MBT
    and AV-MAE code; a rescaling version trains a different model).
    """
    if not training or rate == 0.0:
        return branch
    keep = torch.rand(branch.shape[0], 1, 1, device=branch.device) >= rate
    return branch * keep.to(branch.dtype)


class ViTBlock(nn.Module):
    """Pre-norm transformer block: `x + drop(attention(norm(x)))`, then `x + drop(mlp(norm(x)))`."""

    def __init__(self, config, drop_path_rate: float = 0.0):
        super().__init__()
        self.drop_path_rate = drop_path_rate
        self.layernorm_before = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = ViTAttention(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.layernorm_after = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = ViTMLP(config)

    def forward(
        self, hidden_states: torch.Tensor, extra_context: torch.Tensor | None = None, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        hidden_states [B, n, d] -> ([B, n, d], attention weights or None).

        `extra_context` [B, m, d]: tokens prepended as keys and values only; they are not updated. Weights are then
        [B, heads, n, m + n].
        """
        normed, context = self.layernorm_before(hidden_states), None
        if extra_context is not None:
            context = torch.cat([self.layernorm_before(extra_context), normed], dim=1)
        attended, weights = self.attention(normed, context, **kwargs)
        hidden_states = hidden_states + drop_branch(self.dropout(attended), self.drop_path_rate, self.training)
        transformed = self.mlp(self.layernorm_after(hidden_states))
        return hidden_states + drop_branch(transformed, self.drop_path_rate, self.training), weights


class PatchProjection:
    """
    Mixin for a convolution that is given single patches: [N, C, *kernel] -> [N, d, 1, ...].

    Kernel equals input, so the convolution is a matrix product. As one, the tubelets of MBT-Base at 32 frames take 149 ms
    forward and 213 ms with backward, and 299 and 410 ms as a convolution of PyTorch 2.14 (one CPU core,
    `benchmarks/speed_code.py --only projection`). Hooks, offloading and LoRA see an ordinary convolution.
    """

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        weight = self.weight
        # Copies of one channel, made by `expand`. Summing the kernel over its channels gives the same numbers with less work.
        if patches.shape[1] > 1 and patches.stride(1) == 0:
            patches, weight = patches[:, :1], weight.sum(dim=1, keepdim=True)
        patches = patches.flatten(1).to(weight.dtype)
        tokens = nn.functional.linear(patches, weight.flatten(1), self.bias)
        return tokens.reshape(*tokens.shape, *[1] * len(self.kernel_size))


class PatchConv2d(PatchProjection, nn.Conv2d):
    """Projection of spectrogram patches [N, C, fh, fw] -> [N, d, 1, 1]."""


class PatchConv3d(PatchProjection, nn.Conv3d):
    """Projection of tubelets [N, C, ft, fh, fw] -> [N, d, 1, 1, 1]."""


class VideoPatchEmbeddings(nn.Module):
    """
    Tubelet projection: pixel_values [B, T, C, H, W] -> tokens [B, t*h*w, d], ordered frame group, row, column.

    Remainders of T, H and W are dropped (VALID padding in the originals).
    """

    def __init__(self, num_channels: int, hidden_size: int, tubelet_size: int, patch_hw: tuple[int, int]):
        super().__init__()
        self.kernel = (tubelet_size, *patch_hw)
        projection = PatchConv3d(num_channels, hidden_size, kernel_size=self.kernel, stride=self.kernel)
        self.projection = with_init(projection, "lecun")

    def forward(self, pixel_values: torch.Tensor, visible: torch.Tensor | None = None) -> torch.Tensor:
        """`visible` [B, k] names the tokens to project, in order; by default all of them."""
        batch, frames, channels, height, width = pixel_values.shape
        ft, fh, fw = self.kernel
        t, h, w = frames // ft, height // fh, width // fw
        pixels = pixel_values[:, : t * ft, :, : h * fh, : w * fw]
        pixels = pixels.reshape(batch, t, ft, channels, h, fh, w, fw).permute(0, 1, 4, 6, 3, 2, 5, 7)
        pixels = select_tokens(pixels.reshape(batch, t * h * w, -1), visible)
        tokens = self.projection(pixels.reshape(-1, channels, ft, fh, fw))
        return tokens.reshape(batch, pixels.shape[1], -1)


class SpectrogramPatchEmbeddings(nn.Module):
    """
    Patch projection of a spectrogram [B, C, time, mel] -> tokens [B, t*f, d], time-major. C is `num_channels`, or 1.

    As in the originals, a mono spectrogram is repeated for every input channel of the kernel.
    """

    def __init__(self, num_channels: int, hidden_size: int, patch_hw: tuple[int, int]):
        super().__init__()
        self.kernel = patch_hw
        self.num_channels = num_channels
        projection = PatchConv2d(num_channels, hidden_size, kernel_size=patch_hw, stride=patch_hw)
        self.projection = with_init(projection, "lecun")

    def forward(self, input_features: torch.Tensor, visible: torch.Tensor | None = None) -> torch.Tensor:
        """`visible` [B, k] names the tokens to project, in order; by default all of them."""
        batch, channels, time, mel = input_features.shape
        fh, fw = self.kernel
        t, f = time // fh, mel // fw
        patches = input_features[:, :, : t * fh, : f * fw].reshape(batch, channels, t, fh, f, fw)
        patches = patches.permute(0, 2, 4, 1, 3, 5).reshape(batch, t * f, channels * fh * fw)
        patches = select_tokens(patches, visible)
        tokens = self.projection(patches.reshape(-1, channels, fh, fw).expand(-1, self.num_channels, -1, -1))
        return tokens.reshape(batch, patches.shape[1], -1)


def select_tokens(tokens: torch.Tensor, indices: torch.Tensor | None) -> torch.Tensor:
    """tokens [B, n, d], indices [B, k] -> [B, k, d] in the order of the indices; None keeps all tokens."""
    if indices is None:
        return tokens
    return tokens.gather(1, indices.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def sinusoidal_positions(num_tokens: int, width: int) -> torch.Tensor:
    """
    Fixed positions, float32 [1, num_tokens, width]: sine and cosine interleaved over the flattened token index n.

    PE[n, 2i] = sin(n * exp(-2i ln(10000) / width)), PE[n, 2i+1] = cos of the same (AV-MAE code); computed in float64.
    """
    index = torch.arange(num_tokens, dtype=torch.float64, device="cpu")[:, None]
    rates = torch.exp(torch.arange(0, width, 2, dtype=torch.float64, device="cpu") * (-math.log(10000.0) / width))
    return torch.stack([(index * rates).sin(), (index * rates).cos()], dim=2).reshape(1, num_tokens, width).float()


def add_position_table(module: nn.Module, kind: str, num_tokens: int, width: int) -> None:
    """
    Add `position_embeddings` [1, num_tokens, width] to `module`: a parameter for `kind` "learned", a non-persistent buffer for
    "sinusoidal". [`init_position_table`] fills either, also after construction on the meta device.
    """
    table = torch.zeros(1, num_tokens, width)
    if kind == "learned":
        module.position_embeddings = nn.Parameter(table)
    else:
        # On the meta device the values are not computed, since the size of the table is not checked yet.
        table = table if table.is_meta else sinusoidal_positions(num_tokens, width).to(table)
        module.register_buffer("position_embeddings", table, persistent=False)
        module.register_load_state_dict_post_hook(_compute_positions)


def _compute_positions(module: nn.Module, _) -> None:
    refill_buffer(module, "position_embeddings", sinusoidal_positions(*module.position_embeddings.shape[1:]))


def refill_buffer(module: nn.Module, name: str, values: torch.Tensor) -> None:
    """
    Sets a computed buffer that a state dict does not hold. To be called after a state dict was loaded.

    A model built on the meta device has no values, and after `to_empty` it has any.
    """
    buffer = getattr(module, name)
    if buffer.is_meta:  # as after load_state_dict(..., assign=True)
        setattr(module, name, values.to(buffer.dtype))
    else:
        buffer.copy_(values)


def init_position_table(module: nn.Module, std: float) -> None:
    """Fill the table that [`add_position_table`] created."""
    table = module.position_embeddings
    if isinstance(table, nn.Parameter):
        init.normal_(table, std=std)
    else:
        init.copy_(table, sinusoidal_positions(*table.shape[1:]))


def with_init(layer: nn.Module, scheme: str) -> nn.Module:
    """
    Mark a dense or convolution layer with the scheme that [`init_marked_layer`] applies to it.

    The mark is on the layer that owns the weights: when transformers initialises models from outside its tree, it skips
    modules without own parameters, so a rule on the parent would never run.
    """
    layer.init_scheme = scheme
    return layer


def init_marked_layer(module: nn.Module, head_bias: float = 0.0) -> None:
    """
    Initialise a layer marked by [`with_init`] as in the JAX originals. Unmarked modules do not change.

    Attention and MLP kernels: Xavier-uniform, attention biases 0, MLP biases N(0, 1e-6). Patch projections and pre-logits:
    LeCun-normal, biases 0. Head: kernel 0, bias `head_bias`. Schemes "xavier" and "zero" name the kernel's initialisation,
    with bias 0. "torch_default": kernel and bias as torch initialises them;
    "torch_head": the same kernel, bias `head_bias`.
    """
    scheme = getattr(module, "init_scheme", None)
    if scheme in ("attention", "mlp", "xavier"):
        init.xavier_uniform_(module.weight)
    elif scheme == "lecun":
        # Flax truncates at two standard deviations and corrects the variance. transformers' version clips at +-2 at any
        # scale, which makes the values 14 % too large.
        std = module.weight[0].numel() ** -0.5 / 0.87962566103423978
        init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
    elif scheme in ("head", "zero"):
        init.zeros_(module.weight)
    elif scheme in ("torch_default", "torch_head"):
        bound = module.weight[0].numel() ** -0.5
        init.uniform_(module.weight, -bound, bound)
    else:
        return
    if module.bias is None:
        return
    if scheme == "mlp":
        init.normal_(module.bias, std=1e-6)
    elif scheme == "torch_default":
        init.uniform_(module.bias, -bound, bound)
    else:
        init.constant_(module.bias, head_bias if scheme in ("head", "torch_head") else 0.0)
