"""Logits and gradients of the families whose layers differ, in float64, against transformers.

transformers rounds norms, softmax and rotary angles to float32 whatever a model's dtype is; here
its modules are built and run where ``torch.float32`` means float64.
"""

import copy
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from parity.test_pretrained import KIN, MODELS, make, random_tokens
from parity.torch_bridge import DOUBLE, masked_inputs, ragged, torch
from rlhf_jax.interop.families import family_of_model
from rlhf_jax.interop.huggingface import load_pretrained
from rlhf_jax.interop.pretrained import shape_of
from rlhf_jax.interop.tensor_names import at, stacked, tensors_of
from rlhf_jax.models.heads import make_language_model

pytestmark = pytest.mark.torch

ROWS = (20, False), (13, True), (9, False)
"""Real tokens, and whether padding stands before them."""


@pytest.fixture
def exact(monkeypatch):
    """A world without float32."""
    monkeypatch.setattr(torch, "float", torch.float64)
    monkeypatch.setattr(torch, "float32", torch.float64)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    with jax.enable_x64(True):
        yield
    torch.set_default_dtype(before)


@pytest.fixture(scope="module", params=KIN)
def pair(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    return make(folder, MODELS[request.param]), load_pretrained(folder)


@pytest.mark.usefixtures("exact")
def test_logits_and_gradients(pair):
    """Of sequences that are several windows long, padded to neither and to either side."""
    single, imported = pair
    theirs = type(single)(single.config).double().eval()
    theirs.load_state_dict({name: x.double() for name, x in single.state_dict().items()})
    mask = np.stack([ragged([length], 20, left=left)[0] for length, left in ROWS])
    tokens = random_tokens(0, (3, 20))
    logits = theirs(**masked_inputs(tokens, mask)).logits
    (torch.sin(3 * logits) * torch.tensor(mask)[..., None]).sum().backward()

    lm = make_language_model(replace(imported.model, dtype="float64"), imported.vocab_size)
    params = jax.tree.map(DOUBLE.jax, imported.params)

    def loss(params):
        logits = lm.logits(params, tokens, jnp.asarray(mask), start=0)
        return (jnp.sin(3 * logits) * mask[..., None]).sum(), logits

    gradients, found = jax.jit(jax.grad(loss, has_aux=True))(params)
    name = theirs.config.model_type
    DOUBLE.agree(f"{name}: logits", np.asarray(found)[mask], logits[torch.tensor(mask)])
    expected = {name: p.grad for name, p in theirs.named_parameters()}
    ours = {}
    for entry in tensors_of(family_of_model(imported.model), imported.model, params, bare=False):
        parts = entry.write(np.asarray(at(gradients, entry.path)))
        ours |= dict(zip(entry.names, parts, strict=True))
    DOUBLE.agree(f"{name}: gradients", stacked(ours), expected)


MINIMAL = dict(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=7,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
)


@pytest.mark.parametrize("name", KIN)
@pytest.mark.parametrize(
    "more",
    [
        {},
        dict(sliding_window=None),
        dict(
            rope_theta=70.0,
            rope_local_base_freq=7.0,
            rope_scaling=dict(rope_type="linear", factor=2.0),
        ),
    ],
    ids=["defaults", "no window", "older spelling"],
)
def test_a_config_is_read_as_transformers_completes_it(name, more):
    """What a ``config.json`` leaves out is what transformers fills in."""
    config = MODELS[name][1]
    if name == "gemma2" and "sliding_window" in more:
        more = dict(attn_logit_softcapping=None, final_logit_softcapping=None)
    more = {k: v for k, v in more.items() if name == "gemma3" or k != "rope_local_base_freq"}
    if name == "gemma3":
        more.pop("sliding_window", None)
    if name == "phi3":
        more.pop("rope_scaling", None)
    given = MINIMAL | more
    completed = {
        k: v for k, v in config(**copy.deepcopy(given)).to_dict().items() if k != "pad_token_id"
    }
    read = lambda fields: shape_of({"model_type": config.model_type} | fields, "c.json")[1]
    assert read(given) == read(completed)
