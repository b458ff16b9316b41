"""Conversations have the ids that transformers gives them, begin and ends of text too."""

import os
from collections import Counter

import pytest
from tokenizers import AddedToken, processors

os.environ["TRANSFORMERS_VERBOSITY"] = "error"
pytest.importorskip("torch", reason="needs PyTorch: make test-torch")
import transformers as hf
from sentencepieces import KINDS, write_sentencepiece

from rlhf_jax.data.chat import Message
from rlhf_jax.data.demonstrations import demonstration_row, every_answer
from rlhf_jax.data.tokenizer_files import load_tokenizer
from rlhf_jax.data.tokenizers import Tokenizer, train_bpe

pytestmark = [pytest.mark.torch, pytest.mark.slow]

BEGIN, HEAD, TURN_END = "<|begin|>", "<|head|>", "<|turn_end|>"
LINES = (
    "{% for m in messages %}<|head|>{{ m.role }}\n{{ m.content }}<|turn_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|head|>assistant\n{% endif %}"
)
TRIMMED = LINES.replace("m.content }}", "m.content | trim }}").replace(">\n{% endfor", ">{% endfor")
BEGUN = "{{ bos_token }}" + LINES
MARKED = LINES.replace("{{ m.content }}<|turn_end|>", "{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}<|turn_end|>{% endgeneration %}"
    "{% else %}{{ m.content }}<|turn_end|>{% endif %}")  # fmt: skip
TOOLS = "{% if tools is none and documents is none %}no tools{% endif %}" + LINES
CALLING = "{% for f in tools %}<|head|>{{ f | tojson(indent=1) }}{% endfor %}" + LINES.replace(
    "{{ m.content }}",
    "{{ m.content }}{% for c in m.tool_calls %}{{ c.function | tojson }}{% endfor %}",
)
HEADED = [
    Message("system", "Be brief."),
    Message("user", "Is Lund nice? "),
    Message("assistant", " Very."),
]


@pytest.fixture(params=[{}, {"rstrip": True}, {"lstrip": True, "rstrip": True}])
def folder(request, tmp_path):
    """A tokenizer with begin of text and turns, as ``Tokenizer.save`` writes it."""
    backend = train_bpe(["Is Lund nice? Very. user assistant"] * 3, vocab_size=300)._backend
    names = (BEGIN, HEAD, TURN_END)
    backend.add_tokens(
        [AddedToken(name, special=True, normalized=False, **request.param) for name in names]
    )
    backend.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A",
        pair=f"{BEGIN} $A {BEGIN} $B",
        special_tokens=[(BEGIN, backend.token_to_id(BEGIN))],
    )
    tokenizer = Tokenizer(
        backend, eos=TURN_END, pad="<|padding|>", names={"bos_token": BEGIN}, chat_template=LINES
    )
    tokenizer.save(tmp_path)
    return tmp_path


@pytest.mark.parametrize("template", [LINES, TRIMMED, BEGUN, MARKED, TOOLS])
@pytest.mark.parametrize("length", [2, 3])
def test_a_conversation_and_its_answer(folder, template, length):
    """The prompt is the rendering with the generation prompt, or with the final message open."""
    (folder / "chat_template.jinja").write_text(template)
    theirs = hf.AutoTokenizer.from_pretrained(folder)
    ours = load_tokenizer(folder).with_chat_prompts()
    conversation = tuple(HEADED[:length])
    messages = [message._asdict() for message in conversation]
    opened = {"add_generation_prompt": True} if length == 2 else {"continue_final_message": True}
    ids = lambda messages, **options: (
        theirs(
            theirs.apply_chat_template(messages, tokenize=False, **options),
            add_special_tokens=False,
        ).input_ids
    )
    query, answer = ours.encode_prompts([conversation])[0], "Near the lake."
    assert query == ids(messages, **opened)
    (response,) = ours.encode_answers([conversation], [(Message("assistant", answer),)])
    before = messages[2]["content"] if length == 3 else ""
    whole = [*messages[:2], {"role": "assistant", "content": before + answer}]
    assert ids(whole)[: len(query + response)] == query + response
    assert ids(whole)[len(query + response) :] in (
        [],
        theirs("\n", add_special_tokens=False).input_ids,
    )


def test_functions_calls_and_results(folder):
    """The template is given them as transformers gives them: objects, in the order of the file."""
    (folder / "chat_template.jinja").write_text(CALLING)
    theirs = hf.AutoTokenizer.from_pretrained(folder)
    ours = load_tokenizer(folder).with_chat_prompts()
    tools = [
        {"type": "function", "function": {"name": "near", "parameters": {"y": 1, "x": "\u00e9"}}}
    ]
    call = {"function": {"name": "near", "arguments": {"town": "Lund", "n": 2}}}
    messages = [
        {"role": "user", "content": "Is Lund nice?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "name": "near", "content": "Very."},
        {"role": "assistant", "content": "Near the lake."},
    ]
    row = demonstration_row({"tools": tools, "messages": messages}, Counter())
    text = theirs.apply_chat_template(messages, tools=tools, tokenize=False)
    whole = theirs(text, add_special_tokens=False).input_ids
    for each in every_answer([row]):
        (query,) = ours.encode_prompts([each.prompt])
        (answer,) = ours.encode_answers([each.prompt], [each.completion])
        assert [*query, *answer] == whole[: len(query) + len(answer)]
    assert len(whole) - len(query) - len(answer) <= 1  # the line's end


def test_a_plain_text_begins_as_transformers_begins_it(folder):
    theirs, ours = hf.AutoTokenizer.from_pretrained(folder), load_tokenizer(folder)
    assert ours.encode_beginning("Is Lund nice?") == theirs("Is Lund nice?").input_ids
    assert (ours.named_bos_id, ours.eos_id) == (theirs.bos_token_id, theirs.eos_token_id)


PHI = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


@pytest.mark.parametrize("kind", KINDS)
def test_sentencepiece_has_the_ids_of_transformers(tmp_path, kind):
    """What we write is read there: texts, a conversation with its answer, and the way back."""
    write_sentencepiece(tmp_path / "hub", kind, settings={"chat_template": PHI})
    ours = load_tokenizer(tmp_path / "hub").with_chat_prompts()
    ours.save(tmp_path / "ours", rows=ours.vocab_size - 1)
    theirs = hf.AutoTokenizer.from_pretrained(tmp_path / "ours")
    for text in ("Is Lund nice?", "  two  spaces\n", "\u4f60\u597d \U0001f600"):
        assert ours.encode_beginning(text) == theirs(text).input_ids
    asked = [{"role": "user", "content": "Is Lund nice?"}]
    whole = theirs.apply_chat_template(
        [*asked, {"role": "assistant", "content": "Very."}], tokenize=False
    )
    (query,) = ours.encode_prompts(["Is Lund nice?"])
    (answer,) = ours.encode_answers(["Is Lund nice?"], ["Very."])
    ids = theirs(whole, add_special_tokens=False).input_ids
    assert [*query, *answer] == ids[: len(query) + len(answer)]
    assert theirs.decode(answer, skip_special_tokens=True) == "Very."
