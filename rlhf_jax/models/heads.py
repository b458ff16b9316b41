"""Policy, value and reward models as pure functions of parameters and arrays.

Everyone outside ``models/`` holds these functions and a tree of parameters, never a module.

    language model   {"trunk"}              logits = hidden · wteᵀ            (tied, no bias)
                     {"trunk", "lm_head"}   logits = hidden · kernel          (untied)
    scalar model     {"trunk", "head"}      hidden · w + b                    (reward, value)
    policy and value {"policy", "value"}    two trunks (InstructGPT), or
                     {"policy": {"trunk", "head"}}  a value head on the policy's trunk (2019)
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from rlhf_jax.config import ModelConfig
from rlhf_jax.models import layout
from rlhf_jax.models.attention import NEGATIVE, Segments, in_segments, segments_from_mask
from rlhf_jax.models.cpu_decoding import (
    prefers_rearranged,
    prefers_transposed,
    rearranged,
    transposed_head,
)
from rlhf_jax.models.layers import accumulator, capped
from rlhf_jax.models.packing import TokenRows
from rlhf_jax.models.products import transposed_product, wide_product
from rlhf_jax.models.scores import packed_scores, pooled
from rlhf_jax.models.transformer import (
    KeyValues,
    as_layout,
    positions_of,
)
from rlhf_jax.models.trunk import Trunk, make_trunk, padded_rows, read_answers, read_rows, with_room
from rlhf_jax.objectives.logprobs import token_logprobs, token_logprobs_in_parts
from rlhf_jax.objectives.masked import last_index
from rlhf_jax.types import LMBatch, Params


class Cache(NamedTuple):
    """What decoding carries from token to token."""

    layers: tuple[KeyValues, ...]
    """One pair of arrays per layer, whether or not the model scans its layers."""
    mask: Bool[Array, "B S"]
    """Slots that hold a real token."""
    positions: Int[Array, "B"]
    """Position of the next token of each row."""
    index: Int[Array, ""]
    """Slot of the next token, the same for all rows."""


class LanguageModel(NamedTuple):
    """Pure functions of one model shape. ``start`` skips the unembedding of earlier positions."""

    init: Callable[[Key[Array, ""]], Params]
    logits: Callable[..., Float[Array, "B L V"]]
    """(params, tokens [B T], mask [B T], *, start) -> logits of positions start..T-1."""
    read: Callable[[Params, TokenRows], Float[Array, "N M V"]]
    """(params, rows) -> logits at their columns."""
    answer_logits: Callable[..., tuple[Float[Array, "B V"], Float[Array, "A L V"]]]
    """(params, queries, query_mask, responses [B K R], mask [B K R]) -> logits of the first token
    of a query's responses, and of the R-1 later tokens of each of all A = B · K. A query is read
    once."""
    packed_logits: Callable[..., Float[Array, "B T V"]]
    """(params, LMBatch, dropout_key | None) -> logits; dropout acts only when a key is given."""
    packed_logprobs: Callable[..., Float[Array, "B L"]]
    """(params, LMBatch, dropout_key | None) -> log-probs of tokens 1 to T-1, for a loss. With
    ``config.logit_rows`` the logits never exist all at once."""
    prefill: Callable[..., tuple[Float[Array, "B V"], Cache]]
    """(params, queries, query_mask, *, length) -> logits of the first response token, cache."""
    decode: Callable[..., tuple[Float[Array, "B V"], Cache]]
    """(params, tokens [B], cache) -> logits of the next token, cache."""
    prefers_rearranged: Callable[[int], bool]
    """Whether ``decode`` for so many rows is quicker on a CPU with ``rearranged(params, rows)``."""
    rearranged: Callable[[Params, int], Params]
    """The same parameters for ``decode``: layers apart, and for few rows kernels as [out, in]."""
    window: int
    """Of its layers' sliding windows the narrowest, in tokens; 0: they see all."""


class ScalarModel(NamedTuple):
    """A number per position: reward (its last or their mean, ``config.pooling``) or value."""

    init: Callable[[Key[Array, ""], Params], Params]
    """(key, trunk parameters to start from) -> params."""
    values: Callable[..., Float[Array, "B L"]]
    """(params, tokens [B T], mask [B T], *, start) -> outputs of positions start..T-1."""
    read: Callable[[Params, TokenRows], Float[Array, "N M"]]
    """(params, rows) -> outputs at their columns."""
    pool: Callable[..., Float[Array, "B"]]
    """(outputs [B T], mask [B T], *, start) -> scores: ``pooled`` as the model has it."""
    score: Callable[..., Float[Array, "B"]]
    """(params, tokens, mask, dropout_key | None, *, start) -> scores of whole rows, whose answers
    begin in column ``start``; only a mean asks for it."""
    score_packed: Callable[..., Float[Array, "B K"]]
    """(params, queries, query_mask, responses, mask) -> the same scores from the real tokens alone,
    in blocks of rows; 0 of an absent response."""
    score_responses: Callable[..., Float[Array, "B K"]]
    """(params, queries, query_mask, responses [B K R], mask [B K R], dropout_key | None) -> scores
    of K responses to each query, which the trunk reads once."""


class PolicyValue(NamedTuple):
    """The pair that PPO trains, whatever its trunks."""

    init: Callable[[Params, Params], Params]
    """(language-model params, reward-model params) -> params."""
    policy: Callable[[Params], Params]
    """The language-model part of the parameters."""
    evaluate: Callable[..., tuple[Float[Array, "B R V"], Float[Array, "B R"] | None]]
    """(params, queries, query_mask, responses, mask) -> logits that predict each response token,
    and the value before it, or None without a value network."""
    read: Callable[[Params, TokenRows], tuple[Float[Array, "N M V"], Float[Array, "N M"] | None]]
    """(params, rows) -> the same two at the rows' columns."""


def unembed(
    params: Params, hidden: Float[Array, "*B D"], config: ModelConfig
) -> Float[Array, "*B V"]:
    """Logits through the transposed embedding or ``lm_head``, summed in ``accumulator``."""
    rows = hidden.reshape(-1, hidden.shape[-1]).astype(config.dtype)
    # Only in decoding on a CPU, and then instead of the kernel.
    if "transposed" in params.get("lm_head", {}):
        logits = transposed_product(rows, params["lm_head"]["transposed"].astype(config.dtype))
    else:
        kernel = unembedding(params, config.dtype)
        kernel = layout.gathered(kernel, hidden, inner=0) if hidden.ndim == 3 else kernel
        if (sums := accumulator(config.dtype)) == config.dtype:
            logits = wide_product(rows, kernel)
        else:
            logits = jnp.dot(rows, kernel, preferred_element_type=sums)
    logits = capped(logits, config.logit_cap)
    if config.unused_rows:
        # Finite, so that no difference of two of them is NaN; their mass is 0 all the same.
        used = jnp.arange(logits.shape[-1]) < logits.shape[-1] - config.unused_rows
        logits = jnp.where(used, logits, NEGATIVE)
    return layout.logits(logits.reshape(*hidden.shape[:-1], -1))


def unembedding(params: Params, dtype: str) -> Float[Array, "D V"]:
    """The matrix from hidden states to logits: one of its own, or the transposed embedding."""
    if "lm_head" in params:
        return params["lm_head"]["kernel"].astype(dtype)
    # The barrier keeps the transpose apart: folded into the product, it makes the gradient of the
    # embedding a slower kind of product on CPU (a quarter of the head's time).
    return jax.lax.optimization_barrier(params["trunk"]["wte"].astype(dtype).T)


def make_language_model(config: ModelConfig, vocab_size: int) -> LanguageModel:
    """The functions of a language model of this shape."""
    trunk = make_trunk(config, vocab_size)
    head = partial(unembed, config=config)

    def init(key):
        params = {"trunk": trunk.init(key)}
        if config.tied:
            return params
        kernel = 0.02 * jax.random.normal(jax.random.fold_in(key, 1), (config.d_model, vocab_size))
        # Drawn from another key than the trunk, which so is the same with a tied head.
        return params | {"lm_head": {"kernel": kernel}}

    def read(params, rows):
        return head(params, read_rows(trunk, params["trunk"], rows))

    def logits(params, tokens, mask, *, start):
        return read(params, padded_rows(tokens, mask, start=start))

    def answer_logits(params, queries, query_mask, responses, mask):
        rows = (queries, query_mask, responses[..., :-1], mask[..., :-1])
        seen, written = read_answers(trunk, params["trunk"], *rows)
        return head(params, seen[:, -1]), head(params, written)

    def packed_hidden(params, batch: LMBatch, dropout_key):
        apply, segments = trunk.applied(dropout_key), in_segments(batch.segment_ids)
        return apply(params["trunk"], batch.tokens, batch.positions, segments)[0]

    def packed_logits(params, batch: LMBatch, dropout_key):
        return head(params, packed_hidden(params, batch, dropout_key))

    def packed_logprobs(params, batch: LMBatch, dropout_key):
        hidden = packed_hidden(params, batch, dropout_key)
        return next_logprobs(partial(head, params), hidden, batch.tokens, rows=config.logit_rows)

    prefill, decode = make_decoding(trunk, config)
    return LanguageModel(
        init=init,
        logits=logits,
        read=read,
        answer_logits=answer_logits,
        packed_logits=packed_logits,
        packed_logprobs=packed_logprobs,
        prefill=prefill,
        decode=decode,
        prefers_rearranged=partial(prefers_rearranged, config=config),
        rearranged=partial(rearranged, config=config),
        window=min(filter(None, (kind.window for kind in config.layer_kinds)), default=0),
    )


def make_decoding(trunk: Trunk, config: ModelConfig) -> tuple[Callable[..., Any], ...]:
    """``prefill`` and ``decode`` of a language model: the two ends of one cache."""

    def prefill(params, queries, query_mask, *, length):
        positions = positions_of(query_mask)
        segments = segments_from_mask(query_mask)
        hidden, layers = trunk.apply_unrolled(params["trunk"], queries, positions, segments)
        # Queries are padded on the left, so that all rows write their answers to the same slots;
        # positions count real tokens only, and so differ from row to row.
        cache = Cache(
            layers=jax.tree.map(partial(with_room, length=length), layers),
            mask=jnp.pad(query_mask, [(0, 0), (0, length)]),
            positions=query_mask.sum(axis=1),
            index=jnp.int32(queries.shape[1]),
        )
        return next_logits(params, hidden[:, -1], config), cache

    def decode(params, tokens, cache: Cache):
        # The slot of the token that is read now: it sees itself.
        mask = cache.mask.at[:, cache.index].set(True)
        hidden, layers = trunk.apply_unrolled(
            params["trunk"],
            tokens[:, None],
            cache.positions[:, None],
            # Empty slots and padding are of segment 0, which the new token (segment 1) never sees.
            Segments(jnp.ones_like(tokens)[:, None], mask.astype(jnp.int32)),
            cache.layers,
            cache.index,
        )
        cache = Cache(layers, mask, cache.positions + 1, cache.index + 1)
        return unembed(params, hidden[:, 0], config), cache

    return prefill, decode


def next_logprobs(
    logits_of: Callable[[Float[Array, "B P D"]], Float[Array, "B P V"]],
    hidden: Float[Array, "B T D"],
    tokens: Int[Array, "B T"],
    *,
    rows: int,
) -> Float[Array, "B T-1"]:
    """log π of each token but the first; ``rows`` logits exist at a time, or with 0 all."""
    # The last position predicts nothing, but cutting it off the logits would copy them.
    tokens = jnp.roll(tokens, -1, axis=1)
    if not rows:
        return token_logprobs(logits_of(hidden), tokens)[:, :-1]
    B, T = tokens.shape
    positions = min(max(1, rows // B), T)
    return token_logprobs_in_parts(logits_of, hidden, tokens, positions=positions)[:, :-1]


def next_logits(
    params: Params, hidden: Float[Array, "B D"], config: ModelConfig
) -> Float[Array, "B V"]:
    """``unembed`` of one position per row: on a CPU a tied kernel is read as it lies, uncopied."""
    head = partial(unembed, config=config)
    if not (config.tied and prefers_transposed(len(hidden), config)):
        return head(params, hidden)

    def as_it_lies(params, hidden):
        return head(params | transposed_head(params), hidden)

    return jax.lax.platform_dependent(params, hidden, cpu=as_it_lies, default=head)


def make_scalar_model(config: ModelConfig, vocab_size: int) -> ScalarModel:
    """The functions of a model with a scalar head: a reward model or a value network."""
    trunk = make_trunk(config, vocab_size)

    def init(key, trunk_params):
        return {"trunk": as_layout(trunk_params, config), "head": new_head(key, config.d_model)}

    def read(params, rows):
        return apply_head(params["head"], read_rows(trunk, params["trunk"], rows))

    def values(params, tokens, mask, *, start):
        return read(params, padded_rows(tokens, mask, start=start))

    pool = partial(pooled, pooling=config.pooling)

    def score(params, tokens, mask, dropout_key, *, start=0):
        apply = trunk.applied(dropout_key)
        hidden, _ = apply(params["trunk"], tokens, positions_of(mask), segments_from_mask(mask))
        if config.pooling == "mean":
            return pool(apply_head(params["head"], hidden), mask, start=start)
        return apply_head(params["head"], at_position(hidden, last_index(mask)))

    def score_responses(params, queries, query_mask, responses, mask, dropout_key):
        (B, K, R), rows = mask.shape, (queries, query_mask, responses, mask)
        seen, written = read_answers(trunk, params["trunk"], *rows, dropout_key)
        mask = mask.reshape(B * K, R)
        if config.pooling == "mean":
            return pool(apply_head(params["head"], written), mask, start=0).reshape(B, K)
        # An absent response has no token: the query's last stands for it, at index 0, and the last
        # of R' tokens is at index R'.
        hidden = jnp.concatenate([jnp.repeat(seen[:, -1:], K, axis=0), written], axis=1)
        return apply_head(params["head"], at_position(hidden, mask.sum(axis=1))).reshape(B, K)

    packed = partial(packed_scores, read, config.pooling)
    return ScalarModel(init, values, read, pool, score, packed, score_responses)


def at_position(x: Float[Array, "B T D"], index: Int[Array, "B"]) -> Float[Array, "B D"]:
    """x[b, index[b]]: one position of each row."""
    return jnp.take_along_axis(x, index[:, None, None], axis=1)[:, 0]


def apply_head(head: Params, hidden: Float[Array, "*B D"]) -> Float[Array, "*B"]:
    """The scalar head: hidden · kernel + bias."""
    # The head stays in float32: scores that differ by little must not round to ties.
    return (hidden.astype(accumulator(hidden.dtype)) @ head["kernel"])[..., 0] + head["bias"][0]


def new_head(key: Key[Array, ""], d_model: int) -> Params:
    """A scalar head: N(0, 1/√(d + 1)) as OpenAI's released reward models, and a bias of 0."""
    # Stiennon et al. 2020's text lost the root. The K-wise loss never moves the bias: it is for
    # normalisation.
    kernel = (d_model + 1) ** -0.5 * jax.random.normal(key, (d_model, 1))
    return {"kernel": kernel, "bias": jnp.zeros(1)}


def zero_head(params: Params) -> Params:
    """The parameters of a scalar model with a head of 0, so that all its outputs are 0."""
    return params | {"head": jax.tree.map(jnp.zeros_like, params["head"])}


def normalise_head(params: Params, *, bias: float, gain: float) -> Params:
    """Fold ``gain · (output + bias)`` into the head, so that no one has to carry it along."""
    head = params["head"]
    # gain · (h w + b + bias): the bias is scaled with the rest.
    head = {"kernel": head["kernel"] * gain, "bias": (head["bias"] + bias) * gain}
    return params | {"head": head}


def make_policy_value(
    config: ModelConfig,
    value_config: ModelConfig,
    vocab_size: int,
    value_trunk: Literal["separate", "shared", "none"],
) -> PolicyValue:
    """Policy of shape ``config``; a separate value trunk has the reward model's shape."""
    lm = make_language_model(config, vocab_size)
    scalar = make_scalar_model(value_config, vocab_size)
    trunk = make_trunk(config, vocab_size)

    def init(lm_params, reward_params):
        if value_trunk == "separate":
            return {"policy": lm_params, "value": reward_params}
        if value_trunk == "none":
            return {"policy": lm_params}
        # On another trunk the reward model's head means nothing: start at 0 (Ziegler et al. 2019).
        head = {"kernel": jnp.zeros((config.d_model, 1)), "bias": jnp.zeros(1)}
        return {"policy": lm_params | {"head": head}}

    def read(params, rows):
        if value_trunk == "separate":
            return lm.read(params["policy"], rows), scalar.read(params["value"], rows)
        if value_trunk == "none":
            return lm.read(params["policy"], rows), None
        policy = params["policy"]
        hidden = read_rows(trunk, policy["trunk"], rows)
        return unembed(policy, hidden, config), apply_head(policy["head"], hidden)

    def evaluate(params, queries, query_mask, responses, mask):
        inputs = episode_inputs(queries, query_mask, responses, mask)
        # The output at a token predicts the next one, so the query's last gives the first logits,
        # and the value of the state before the first token.
        return read(params, padded_rows(*inputs, start=queries.shape[1] - 1))

    # A head on the policy's own trunk stays in its tree: a language model takes no notice of it.
    return PolicyValue(init, lambda params: params["policy"], evaluate, read)


def episode_inputs(
    queries: Int[Array, "B Q"],
    query_mask: Bool[Array, "B Q"],
    responses: Int[Array, "B R"],
    mask: Bool[Array, "B R"],
) -> tuple[Int[Array, "B T"], Bool[Array, "B T"]]:
    """Tokens whose outputs at Q−1, Q, ... predict the response: all but its last token."""
    tokens = jnp.concatenate([queries, responses[:, :-1]], axis=1)
    return tokens, jnp.concatenate([query_mask, mask[:, :-1]], axis=1)
