"""
The question-answering head of LAVISH for MUSIC-AVQA: grounding, match head, question encoder and answers.

Sources: Lin et al., "Vision Transformers are Parameter-Efficient Audio-Visual Learners" (CVPR 2023), whose head is that of
Li et al., "Learning to Answer Questions in Dynamic Audio-Visual Scenarios" (MUSIC-AVQA, CVPR 2022). Equal to the code of the
former (recorded cases of kind `avqa`). The head takes the normalised tokens of both streams and knows nothing of the backbone.

Differences that do not change results: one pass answers several questions about a clip; the LSTM and the attentions consist of
`nn.Linear` layers. Not in the original: missing modalities and heads of one modality, see `LavishQuestionAnsweringHead`.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import nn
from transformers import initialization as init
from transformers.utils import ModelOutput

from ..shared.layers_vit import with_init
from ..shared.losses_classification import classification_loss
from ..shared.two_streams import zero_missing

MODALITIES = ("video", "audio")
MATCH_WEIGHT = 0.5  # of the match loss in MUSIC-AVQA's and LAVISH's trainers


@dataclass
class LavishQuestionAnsweringHeadOutput(ModelOutput):
    """
    Output of [`LavishQuestionAnsweringHead`]. B clips, Q questions about each, S seconds, N video tokens a second, C answers.

    Args:
        logits (float [B, C], or [B, Q, C] for `input_ids` [B, Q, L]): Scores of the answers before softmax.
        match_logits (float [B, S, 2]): Scores of "sound and frame belong together" (class 1) and "they do not" (class 0), zeros
            where a clip lacks one of them. Absent if the head or the whole batch has one modality.
        negative_match_logits (float [B, S, 2]): The same for the sound with the negative frames, if given.
        match_mask (bool [B]): Clips that count in the match loss: they have both modalities and a negative. Absent if all do.
        grounding_weights (float [B, S, N]): Share of each video token in the grounded frame feature, sum 1 a second. They are
            1/N where a clip has no sound, and zeros where it has no video.
    """

    logits: torch.FloatTensor | None = None
    match_logits: torch.FloatTensor | None = None
    negative_match_logits: torch.FloatTensor | None = None
    match_mask: torch.BoolTensor | None = None
    grounding_weights: torch.FloatTensor | None = None


class QuestionAnsweringLosses(NamedTuple):
    """Scalars, float32: `loss` is that of training; `match` is None without negatives."""

    loss: torch.Tensor
    answer: torch.Tensor
    match: torch.Tensor | None


class QuestionLSTM(nn.Module):
    """
    One LSTM layer over words [B, L, width] -> last hidden state and last cell state, [B, hidden] each.

    Equal to `nn.LSTM`, which `torch.compile(fullgraph=True)` refuses (PyTorch 2.14). Gates are in its order: input, forget,
    cell, output.
    """

    def __init__(self, width: int, hidden_width: int):
        super().__init__()
        self.hidden_width = hidden_width
        self.input_gates = with_init(nn.Linear(width, 4 * hidden_width), "question_lstm")
        self.hidden_gates = with_init(nn.Linear(hidden_width, 4 * hidden_width), "question_lstm")

    def forward(self, words: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        from_words = self.input_gates(words)
        hidden = cell = words.new_zeros(words.shape[0], self.hidden_width)
        for step in range(words.shape[1]):
            gates = from_words[:, step] + self.hidden_gates(hidden)
            enter, forget, candidate, leave = gates.chunk(4, dim=-1)
            cell = forget.sigmoid() * cell + enter.sigmoid() * candidate.tanh()
            hidden = leave.sigmoid() * cell.tanh()
        return hidden, cell


class QuestionEncoder(nn.Module):
    """
    Word indices, integer [B, L] -> question features [B, hidden].

    As published, the LSTM reads the padding (index 0) like any word: neither masked nor packed, and its embedding is trained.
    So features depend on the length to which questions are padded.
    """

    def __init__(self, vocab_size: int, word_width: int, hidden_width: int):
        super().__init__()
        # Without `padding_idx`: the embedding of the padding has values and a gradient.
        self.word_embeddings = with_init(nn.Embedding(vocab_size, word_width), "question_words")
        self.lstm = QuestionLSTM(word_width, hidden_width)
        self.projection = with_init(nn.Linear(2 * hidden_width, hidden_width), "question_dense")

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        hidden, cell = self.lstm(torch.tanh(self.word_embeddings(input_ids)))
        return self.projection(torch.tanh(torch.cat((hidden, cell), dim=-1)))


class AudioGuidedGrounding(nn.Module):
    """
    Video tokens [B, S, N, d] and the sound of each second [B, S, d] -> frame features [B, S, d] and weights [B, S, N].

    MUSIC-AVQA section 4.2: the weights are a softmax, without temperature, of the cosines of tokens and sound. As published, they
    pool the *normalised* tokens.
    """

    def __init__(self, hidden_width: int):
        super().__init__()
        self.projection = with_init(nn.Linear(2 * hidden_width, hidden_width), "question_dense")

    def forward(self, video: torch.Tensor, audio: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        directions = _unit(video)
        weights = (directions @ _unit(audio).unsqueeze(-1)).squeeze(-1).softmax(dim=-1)
        grounded = (weights.unsqueeze(-2) @ directions).squeeze(-2)
        return self.projection(torch.tanh(torch.cat((video.mean(dim=2), grounded), dim=-1))), weights


class MatchHead(nn.Module):
    """Sound and frame features of a second, concatenated [..., 2d] -> [..., 2]: whether they belong together (class 1)."""

    def __init__(self, hidden_width: int, widths: tuple[int, ...]):
        super().__init__()
        sizes = (2 * hidden_width, *widths, 2)
        self.layers = nn.ModuleList([with_init(nn.Linear(*pair), "question_dense") for pair in pairwise(sizes)])

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        *hidden_layers, last = self.layers
        for layer in hidden_layers:
            features = torch.relu(layer(features))
        return last(features)


class QuestionAttention(nn.Module):
    """
    Questions [B, Q, d] attend to the seconds of a stream [B, S, d] -> [B, Q, d].

    Multi-head attention, feed-forward with its own residual, norm. As published, the question is not added to what it reads, and
    seconds have no positions: their order has no influence.
    """

    def __init__(self, hidden_width: int, num_heads: int, feedforward_width: int, dropout: float):
        super().__init__()
        self.head_width = hidden_width // num_heads
        self.q_proj = with_init(nn.Linear(hidden_width, hidden_width), "question_attention_in")
        self.k_proj = with_init(nn.Linear(hidden_width, hidden_width), "question_attention_in")
        self.v_proj = with_init(nn.Linear(hidden_width, hidden_width), "question_attention_in")
        self.o_proj = with_init(nn.Linear(hidden_width, hidden_width), "question_attention_out")
        self.fc1 = with_init(nn.Linear(hidden_width, feedforward_width), "question_dense")
        self.fc2 = with_init(nn.Linear(feedforward_width, hidden_width), "question_dense")
        self.norm = nn.LayerNorm(hidden_width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, questions: torch.Tensor, seconds: torch.Tensor) -> torch.Tensor:
        attended = nn.functional.scaled_dot_product_attention(
            self._heads(self.q_proj(questions)),
            self._heads(self.k_proj(seconds)),
            self._heads(self.v_proj(seconds)),
            dropout_p=self.dropout.p if self.training else 0.0,
        )
        read = self.o_proj(attended.transpose(1, 2).flatten(2))
        transformed = self.fc2(self.dropout(torch.relu(self.fc1(read))))
        return self.norm(read + self.dropout(transformed))

    def _heads(self, values: torch.Tensor) -> torch.Tensor:
        """[B, n, d] -> [B, heads, n, head width]."""
        return values.unflatten(-1, (-1, self.head_width)).transpose(1, 2)


class LavishQuestionAnsweringHead(nn.Module):
    """
    Answers questions about a clip from the tokens of both streams (LAVISH supplementary, MUSIC-AVQA section 4).

    A missing modality has no published counterpart (CHOICE): its half of the feature before the fusion layer is zeros, and
    without sound all tokens of a frame have one weight in grounding. So a row of a mixed batch equals a call without that
    modality, and nothing that stands in its place reaches an output or a gradient.

    Args:
        token_width: width D of the tokens of both streams.
        num_answers: number C of answers (MUSIC-AVQA: 42).
        vocab_size: number of words with the padding (MUSIC-AVQA: 93).
        hidden_width: width of all features of the head.
        word_width: width of the word embeddings; by default `hidden_width`.
        num_heads: attention heads; divides `hidden_width`.
        match_widths: widths of the match head's hidden layers; by default 1, 1/2 and 1/4 of `hidden_width` (512, 256, 128).
        feedforward_width: width of the two feed-forward layers; by default `hidden_width`.
        dropout: rate in the feed-forward layers and of attention weights.
        modalities: those that the head has parts for; one alone has no match head, "audio" alone no grounding.

    Raises:
        ValueError: If sizes are not positive, heads do not divide the width, or modalities are unknown.
    """

    def __init__(
        self,
        token_width: int,
        num_answers: int,
        vocab_size: int = 93,
        hidden_width: int = 512,
        word_width: int | None = None,
        num_heads: int = 4,
        match_widths: tuple[int, ...] | None = None,
        feedforward_width: int | None = None,
        dropout: float = 0.1,
        modalities: tuple[str, ...] = MODALITIES,
    ):
        super().__init__()
        if match_widths is None:
            match_widths = (hidden_width, hidden_width // 2, hidden_width // 4)
        word_width = hidden_width if word_width is None else word_width
        feedforward_width = hidden_width if feedforward_width is None else feedforward_width
        sizes = {
            "token_width": token_width,
            "num_answers": num_answers,
            "vocab_size": vocab_size,
            "hidden_width": hidden_width,
            "word_width": word_width,
            "num_heads": num_heads,
            "feedforward_width": feedforward_width,
            **{f"match_widths[{i}]": width for i, width in enumerate(match_widths)},
        }
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"`{name}` must be at least 1, got {size}. Set it to the size of the checkpoint.")
        if hidden_width % num_heads:
            raise ValueError(
                f"`hidden_width`={hidden_width} must be a multiple of `num_heads`={num_heads}. Change one of them."
            )
        if not modalities or set(modalities) - set(MODALITIES) or len(set(modalities)) != len(modalities):
            raise ValueError(f"`modalities` must name video, audio or both, each once, got {modalities}. Correct it.")
        self.token_width, self.vocab_size = token_width, vocab_size
        self.modalities = tuple(modality for modality in MODALITIES if modality in modalities)

        def attention() -> QuestionAttention:
            return QuestionAttention(hidden_width, num_heads, feedforward_width, dropout)

        def dense(width: int, output_width: int) -> nn.Linear:
            return with_init(nn.Linear(width, output_width), "question_dense")

        has_video, has_audio = "video" in modalities, "audio" in modalities
        self.question_encoder = QuestionEncoder(vocab_size, word_width, hidden_width)
        self.video_projection = dense(token_width, hidden_width) if has_video else None
        self.audio_projection = dense(token_width, hidden_width) if has_audio else None
        self.audio_dense = dense(hidden_width, hidden_width) if has_audio else None
        self.grounding = AudioGuidedGrounding(hidden_width) if has_video else None
        self.match_head = MatchHead(hidden_width, tuple(match_widths)) if has_video and has_audio else None
        self.video_attention = attention() if has_video else None
        self.audio_attention = attention() if has_audio else None
        self.fusion = dense(hidden_width * len(self.modalities), hidden_width)
        self.classifier = dense(hidden_width, num_answers)
        self.apply(init_question_answering_layer)

    def forward(
        self,
        video_tokens: torch.Tensor | None,
        audio_tokens: torch.Tensor | None,
        input_ids: torch.Tensor,
        negative_video_tokens: torch.Tensor | None = None,
        modality_mask: torch.Tensor | None = None,
        negative_mask: torch.Tensor | None = None,
    ) -> LavishQuestionAnsweringHeadOutput:
        """
        Args:
            video_tokens (float [B, S, N, D], or None): Normalised tokens of a frame a second.
            audio_tokens (float [B, S, M, D], or None): Normalised tokens of the sound of each second.
            input_ids (integer [B, L] or [B, Q, L]): Questions as word indices, padded with 0 to the length of training.
            negative_video_tokens (float [B, S, N, D], *optional*): Normalised tokens of frames of other videos, for the match
                head. Published: of the frozen backbone without adapters, without gradient.
            modality_mask (bool [B, 2], *optional*): Columns video, audio; False where a clip lacks the modality and its row
                holds filler.
            negative_mask (bool [B], *optional*): False where a clip has no negative and its row holds filler.

        Raises:
            ValueError: On tokens of a modality that the head lacks, and on wrong shapes, dtypes or word indices.
        """
        self._check_tokens(video_tokens, audio_tokens, negative_video_tokens, modality_mask, negative_mask)
        tokens = audio_tokens if video_tokens is None else video_tokens
        questions = self._check_questions(input_ids, tokens.shape[0])
        questions = self.question_encoder(questions.flatten(0, 1)).unflatten(0, questions.shape[:2])
        has_video = has_audio = None
        if modality_mask is not None:
            has_video, has_audio = modality_mask.bool().unbind(dim=1)

        audio = None if audio_tokens is None else self._audio_features(audio_tokens, has_audio)
        video = weights = None
        if video_tokens is not None:
            video, weights = self._frame_features(video_tokens, audio, has_video)
        # Audio first, as published.
        streams = [(audio, self.audio_attention, has_audio), (video, self.video_attention, has_video)]
        read = [
            self._read(questions, features, attention, present)
            for features, attention, present in streams
            if attention is not None
        ]
        fused = self.fusion(torch.tanh(torch.cat(read, dim=-1)))
        logits = self.classifier(torch.tanh(fused * questions))

        match = negative_match = match_mask = None
        if audio is not None and video is not None:
            match_mask = modality_mask.bool().all(dim=1) if modality_mask is not None else None
            match = self._match(audio, video, match_mask)
            if negative_video_tokens is not None:
                if negative_mask is not None:
                    counted = negative_mask.bool()
                    match_mask = counted if match_mask is None else match_mask & counted
                negative, _ = self._frame_features(negative_video_tokens, audio, match_mask)
                negative_match = self._match(audio, negative, match_mask)
        return LavishQuestionAnsweringHeadOutput(
            logits=logits[:, 0] if input_ids.dim() == 2 else logits,
            match_logits=match,
            negative_match_logits=negative_match,
            match_mask=match_mask,
            grounding_weights=weights,
        )

    def _audio_features(self, tokens: torch.Tensor, present: torch.Tensor | None) -> torch.Tensor:
        """Tokens [B, S, M, D] -> the sound of each second [B, S, hidden], zeros where it is missing."""
        # The original projects all tokens and averages them afterwards, which is the same.
        features = self.audio_dense(torch.relu(self.audio_projection(_keep(tokens, present).mean(dim=2))))
        return _keep(features, present)

    def _frame_features(
        self, tokens: torch.Tensor, audio: torch.Tensor | None, present: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens [B, S, N, D] -> grounded features [B, S, hidden] and weights [B, S, N], zeros where video is missing."""
        projected = self.video_projection(_keep(tokens, present))
        sound = projected.new_zeros(*projected.shape[:2], projected.shape[-1]) if audio is None else audio
        features, weights = self.grounding(projected, sound)
        return _keep(features, present), _keep(weights, present)

    def _match(self, audio: torch.Tensor, video: torch.Tensor, counted: torch.Tensor | None) -> torch.Tensor:
        return _keep(self.match_head(torch.cat((audio, video), dim=-1)), counted)

    @staticmethod
    def _read(
        questions: torch.Tensor,
        features: torch.Tensor | None,
        attention: QuestionAttention,
        present: torch.Tensor | None,
    ) -> torch.Tensor:
        """What each question [B, Q, d] reads from the seconds of a stream [B, S, d], plus their mean: [B, Q, d]."""
        if features is None:
            return torch.zeros_like(questions)
        return _keep(attention(questions, features) + features.mean(dim=1, keepdim=True), present)

    def _check_tokens(
        self,
        video: torch.Tensor | None,
        audio: torch.Tensor | None,
        negative: torch.Tensor | None,
        modality_mask: torch.Tensor | None,
        negative_mask: torch.Tensor | None,
    ) -> None:
        given = {"video": video, "audio": audio}
        for modality, tokens in given.items():
            if tokens is not None and modality not in self.modalities:
                raise ValueError(
                    f"`{modality}_tokens` were given, but this head has only {', '.join(self.modalities)}. Omit them, or load a "
                    "model with that modality."
                )
        if video is None and audio is None:
            raise ValueError("Give `video_tokens`, `audio_tokens` or both; got neither.")
        if negative is not None and (video is None or audio is None):
            raise ValueError(
                "`negative_video_tokens` were given without `video_tokens` or `audio_tokens`. Only clips with both have a match: "
                "omit the negatives."
            )
        if negative_mask is not None and negative is None:
            raise ValueError(
                "`negative_mask` was given without `negative_video_tokens`. Omit it, or give the negatives."
            )
        first = "audio_tokens" if video is None else "video_tokens"
        start = tuple((audio if video is None else video).shape[:2])
        for name, tokens in {"video_tokens": video, "audio_tokens": audio, "negative_video_tokens": negative}.items():
            if tokens is None:
                continue
            if tokens.dim() != 4 or tokens.shape[-1] != self.token_width:
                raise ValueError(
                    f"`{name}` must be [batch, seconds, tokens, {self.token_width}], got {tuple(tokens.shape)}. Give the "
                    "normalised tokens of each second."
                )
            if tuple(tokens.shape[:2]) != start:
                raise ValueError(
                    f"`{name}` holds [batch, seconds] = {tuple(tokens.shape[:2])}, but `{first}` {start}. All tokens must be of "
                    "the same seconds of the same clips."
                )
        for name, mask, shape in (
            ("modality_mask", modality_mask, (start[0], 2)),
            ("negative_mask", negative_mask, start[:1]),
        ):
            if mask is not None and tuple(mask.shape) != shape:
                raise ValueError(
                    f"`{name}` must be bool {list(shape)}, got {tuple(mask.shape)}. Give a row for each clip."
                )

    def _check_questions(self, input_ids: torch.Tensor, batch: int) -> torch.Tensor:
        """Returns integer [B, Q, L]."""
        if input_ids.dim() not in (2, 3) or input_ids.shape[0] != batch or 0 in input_ids.shape[1:]:
            raise ValueError(
                f"`input_ids` must be [batch, length] or [batch, questions, length] for a batch of {batch}, got "
                f"{tuple(input_ids.shape)}. Prepare questions with the model's own processor."
            )
        if input_ids.is_floating_point() or input_ids.is_complex() or input_ids.dtype == torch.bool:
            raise ValueError(
                f"`input_ids` must hold integers, got {input_ids.dtype}. Prepare questions with the model's own processor."
            )
        # Reading values synchronises with the GPU and breaks a graph.
        if input_ids.device.type == "cpu" and not torch.compiler.is_compiling() and input_ids.numel():
            low, high = int(input_ids.min()), int(input_ids.max())
            if low < 0 or high >= self.vocab_size:
                raise ValueError(
                    f"`input_ids` holds {low if low < 0 else high}, but the head knows {self.vocab_size} words, 0 to "
                    f"{self.vocab_size - 1}. Prepare questions with the model's own processor."
                )
        return input_ids if input_ids.dim() == 3 else input_ids.unsqueeze(1)


def question_answering_loss(
    output: LavishQuestionAnsweringHeadOutput, labels: torch.Tensor, match_weight: float = MATCH_WEIGHT
) -> QuestionAnsweringLosses:
    """
    Cross-entropy of the answers plus `match_weight` times cross-entropy of the match logits, in float32.

    The first is a mean over all questions of the batch. The second is a mean over the seconds of all clips that count, positive
    and negative alike, as the original's interleaved rows. Without negatives there is no match loss; the match head then gets
    zero gradients, not none, so that data-parallel processes agree.

    Args:
        output: of [`LavishQuestionAnsweringHead`].
        labels: integer [B] or [B, Q], as `logits` without the last axis; -100 where a question does not count.
        match_weight: published 0.5.

    Raises:
        ValueError: If the shape of `labels` does not fit.
    """
    logits = output.logits
    if labels.shape != logits.shape[:-1]:
        raise ValueError(
            f"`labels` must be integers {list(logits.shape[:-1])}, one for each question, got {tuple(labels.shape)}. Pad with "
            "-100 where clips have fewer questions."
        )
    answer = classification_loss(logits.flatten(0, -2), labels.flatten(), "single_label_classification").mean()
    if output.match_logits is None:
        return QuestionAnsweringLosses(answer, answer, None)
    if output.negative_match_logits is None:
        return QuestionAnsweringLosses(answer + 0.0 * output.match_logits.float().sum(), answer, None)
    positives = -output.match_logits.float().log_softmax(dim=-1)[..., 1]
    negatives = -output.negative_match_logits.float().log_softmax(dim=-1)[..., 0]
    losses = ((positives + negatives) / 2).mean(dim=1)
    if output.match_mask is None:
        match = losses.mean()
    else:
        match = _keep(losses, output.match_mask).sum() / output.match_mask.sum().clamp(min=1)
    return QuestionAnsweringLosses(answer + match_weight * match, answer, match)


@torch.no_grad()
def init_question_answering_layer(module: nn.Module) -> None:
    """
    Initialise a layer of the head as the original does, by the mark of `with_init`. Other modules do not change.

    These are PyTorch's rules for the layers of the original. Dense: uniform up to 1/sqrt(fan in). LSTM: uniform up to
    1/sqrt(hidden). Words: standard normal. Query, key and value: Xavier-uniform of the three as one matrix, biases 0.
    """
    scheme = getattr(module, "init_scheme", None)
    if scheme == "question_words":
        init.normal_(module.weight)
        return
    if scheme == "question_attention_in":
        init.xavier_uniform_(module.weight, gain=0.5**0.5)  # fan out of the fused matrix [3 d, d]: 6 / (d + 3 d)
        init.zeros_(module.bias)
    elif scheme in ("question_dense", "question_attention_out", "question_lstm"):
        fan_in = module.out_features // 4 if scheme == "question_lstm" else module.in_features
        bound = fan_in**-0.5
        init.uniform_(module.weight, -bound, bound)
        if scheme == "question_attention_out":
            init.zeros_(module.bias)
        else:
            init.uniform_(module.bias, -bound, bound)


def _keep(values: torch.Tensor, present: torch.Tensor | None) -> torch.Tensor:
    """`values` [B, ...] with zeros in the rows that are not `present` [B]; None keeps all."""
    return values if present is None else zero_missing(values, present)


def _unit(values: torch.Tensor) -> torch.Tensor:
    """Values divided by their length over the last axis; zeros stay zeros."""
    # The smallest length that `normalize` divides by is 0 in float16.
    wide = values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
    return nn.functional.normalize(wide, dim=-1).to(values.dtype)


__all__ = [
    "MATCH_WEIGHT",
    "LavishQuestionAnsweringHead",
    "LavishQuestionAnsweringHeadOutput",
    "QuestionAnsweringLosses",
    "init_question_answering_layer",
    "question_answering_loss",
]
