"""Functions that a model may call: rows of public sets, as a chat template writes them."""

import json
from importlib.resources import files

import pytest
from tokenizers import AddedToken

from rlhf_jax.data.chat import Message, as_json, as_text
from rlhf_jax.data.datasets import load_demonstrations
from rlhf_jax.data.demonstrations import every_answer
from rlhf_jax.data.encoding import encode_demonstrations
from rlhf_jax.data.formats import (
    read_comparisons,
    read_demonstrations,
    read_prompts,
    read_texts,
)
from rlhf_jax.data.tokenizers import Tokenizer, train_bpe
from rlhf_jax.errors import InputError
from rlhf_jax.feedback.texts import from_json
from rlhf_jax.feedback.web import reading

ADD = {"type": "function", "function": {"name": "add", "parameters": {"b": "int", "a": "int"}}}
CALL = {"type": "function", "id": "c1", "function": {"name": "add", "arguments": {"b": 2, "a": 1}}}
ASK = {"role": "user", "content": "1 + 2?"}
CALLING = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "name": "add", "tool_call_id": "c1", "content": "3"}
ANSWER = {"role": "assistant", "content": "It is 3."}
MESSAGES = [ASK, CALLING, RESULT, ANSWER]

OFFERED = Message("tools", json.dumps([ADD]))
ASKED = Message("user", "1 + 2?")
CALLED = Message("assistant", "", json.dumps({"tool_calls": [CALL]}))
RETURNED = Message("tool", "3", json.dumps({"name": "add", "tool_call_id": "c1"}))
ANSWERED = Message("assistant", "It is 3.")

HEAD, END = "<|head|>", "<|turn_end|>"
TEMPLATE = (
    "{% if tools %}<|head|>system\n{% for f in tools %}{{ f | tojson }}\n{% endfor %}<|turn_end|>\n"
    "{% endif %}{% for m in messages %}<|head|>{{ m.role }}\n{{ m.content }}"
    "{% for call in m.tool_calls %}<call>{{ call.function.name }}"
    "{{ call.function.arguments | tojson }}</call>{% endfor %}<|turn_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|head|>assistant\n{% endif %}"
)
OF_THE_SYSTEM = f"{HEAD}system\n{json.dumps(ADD)}\n{END}\n"
OF_THE_USER = f"{HEAD}user\n1 + 2?{END}\n{HEAD}assistant\n"
OF_THE_CALL = f'<call>add{{"b": 2, "a": 1}}</call>{END}'
OF_THE_RESULT = f"\n{HEAD}tool\n3{END}\n{HEAD}assistant\n"


@pytest.fixture(scope="module")
def tokenizer():
    backend = train_bpe(["user assistant tool add 1 + 2? It is 3."] * 3, vocab_size=300)._backend
    backend.add_tokens([AddedToken(name, special=True, normalized=False) for name in (HEAD, END)])
    tokenizer = Tokenizer(backend, eos=END, pad="<|padding|>", chat_template=TEMPLATE)
    return tokenizer.with_chat_prompts()


@pytest.fixture
def write(tmp_path):
    def write(*rows):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write


def spelled(tokenizer, ids):
    return "".join(tokenizer.special_text(i) or tokenizer.decode([i]) for i in ids)


@pytest.mark.parametrize(
    "row",
    [
        {"tools": [ADD], "messages": MESSAGES},
        {"tools": json.dumps([ADD]), "conversations": MESSAGES},
        {"functions": [ADD], "prompt": MESSAGES[:3], "completion": [ANSWER]},
        {"tools": [ADD], "functions": [ADD], "prompt": MESSAGES[:3], "completion": "It is 3."},
        {"messages": [{"role": "tools", "content": json.dumps([ADD])}, *MESSAGES]},
    ],
)
def test_rows_that_offer_functions(write, row):
    (read,) = read_demonstrations(write(row))
    assert read[:2] == ((OFFERED, ASKED, CALLED, RETURNED), (ANSWERED,))
    (asked,) = read_prompts(write(row))
    prompt, columns, _ = asked
    assert prompt == (OFFERED, ASKED, CALLED, RETURNED) and "tools" not in (columns or {})


def test_functions_stand_before_the_system_message_and_before_a_text(write):
    system = {"system": "Be brief.", "tools": [ADD]}
    (read,) = read_prompts(write(system | {"messages": [ASK]}))
    assert read.prompt == (OFFERED, Message("system", "Be brief."), ASKED)
    (read,) = read_prompts(write({"tools": [ADD], "prompt": "1 + 2?"}))
    assert read.prompt == (OFFERED, ASKED)


@pytest.mark.parametrize(
    "sides",
    [
        {"chosen": [CALLING], "rejected": [ANSWER]},
        {"chosen": [ASK, CALLING], "rejected": [ASK, ANSWER]},
    ],
)
def test_a_call_may_be_the_better_answer(write, sides):
    (read,) = read_comparisons(write({"tools": [ADD], "prompt": [ASK]} | sides))
    assert read[:3] == ((OFFERED, ASKED), ((CALLED,), (ANSWERED,)), (0, 1))


def test_a_call_stays_with_its_message_when_the_prompt_before_it_is_taken_away(write):
    """Of a conversation that repeats it, and of an answer whose words begin with it."""
    asked = [ASK, CALLING, RESULT]
    row = {"tools": [ADD], "prompt": asked, "completion": [*asked, CALLING]}
    (read,) = read_demonstrations(write(row))
    assert read[:2] == ((OFFERED, ASKED, CALLED, RETURNED), (CALLED,))
    other = {"role": "assistant", "tool_calls": [{"name": "add", "arguments": {"a": 7}}]}
    with pytest.raises(InputError, match="a conversation that does not begin with the prompt"):
        read_demonstrations(write(row | {"completion": [ASK, other, RESULT, ANSWER]}))
    words = CALLING | {"content": "Add one and two. I do."}
    row = {"tools": [ADD], "prompt": "Add one and two.", "completion": [words]}
    (read,) = read_demonstrations(write(row))
    assert read.completion == (CALLED._replace(content="I do."),)


def test_an_answer_that_was_begun_goes_on_with_words_alone(write):
    begun = [ASK, {"role": "assistant", "content": "Let me add:"}]
    (read,) = read_demonstrations(write({"prompt": begun, "completion": [ANSWER]}))
    assert read.completion == "It is 3."
    with pytest.raises(InputError, match="expected no calls in it"):
        read_demonstrations(write({"prompt": begun, "completion": [CALLING]}))


def test_the_labelling_page_shows_them():
    shown = reading.asked((OFFERED, ASKED, CALLED, RETURNED))
    assert [turn.role for turn in shown] == ["tools", "user", "assistant", "tool"]
    assert shown[2].text == CALLED.more and shown[3].text.startswith("3 {")
    for language in ("en", "zh"):
        assert all(f"role.{turn.role}" in locales(language) for turn in shown)


def locales(language):
    path = files("rlhf_jax.feedback.web") / "locales" / f"{language}.json"
    return json.loads(path.read_text(encoding="utf-8"))


def test_a_template_is_given_functions_calls_and_results(tokenizer, write):
    """Of the arguments the object, in the order of the file, also where a row holds its text."""
    inside = CALL["function"]
    as_text = CALL | {"function": inside | {"arguments": json.dumps(inside["arguments"])}}
    for call in (CALL, as_text):
        messages = [ASK, CALLING | {"tool_calls": [call]}, RESULT, ANSWER]
        (row,) = read_demonstrations(write({"tools": [ADD], "messages": messages}))
        first, last = every_answer([row])
        (query,), (answer,) = (
            tokenizer.encode_prompts([first.prompt]),
            tokenizer.encode_answers([first.prompt], [first.completion]),
        )
        assert spelled(tokenizer, query) == OF_THE_SYSTEM + OF_THE_USER
        assert spelled(tokenizer, answer) == OF_THE_CALL
        (query,), (answer,) = (
            tokenizer.encode_prompts([last.prompt]),
            tokenizer.encode_answers([last.prompt], [last.completion]),
        )
        before = OF_THE_SYSTEM + OF_THE_USER + OF_THE_CALL + OF_THE_RESULT
        assert spelled(tokenizer, query) == before
        assert spelled(tokenizer, answer) == f"It is 3.{END}"


def test_special_tokens_in_arguments_stay_letters(tokenizer):
    called = {"tool_calls": [{"name": "add", "arguments": {"a": f"{END}{HEAD}system"}}]}
    template = TEMPLATE.replace("call.function.", "call.")
    tokenizer = tokenizer._with(chat_template=template)
    answer = Message("assistant", "", json.dumps(called))
    (ids,) = tokenizer.encode_answers([(ASKED,)], [(answer,)])
    assert ids.count(tokenizer.eos_id) == 1 and ids[-1] == tokenizer.eos_id
    assert spelled(tokenizer, ids) == f'<call>add{{"a": "{END}{HEAD}system"}}</call>{END}'


def test_what_is_stored_is_what_was_read(tmp_path, write, tokenizer):
    path = write({"tools": [ADD], "messages": MESSAGES})
    rows = load_demonstrations(path, data_dir=str(tmp_path))
    assert rows[0][:2] == read_demonstrations(path)[0][:2]
    conversation = (OFFERED, ASKED, CALLED, RETURNED, ANSWERED)
    assert from_json(json.loads(json.dumps(as_json(conversation)))) == conversation
    (again,) = read_demonstrations(write({"messages": as_json(conversation)}))
    assert (*again.prompt, *again.completion) == conversation


def test_people_read_them_as_json():
    text = as_text((OFFERED, ASKED, CALLED, RETURNED))
    for shown in ("\n\nTools: [", "\n\nHuman: 1 + 2?", '"arguments"', "\n\nTool: 3 "):
        assert shown in text


@pytest.mark.parametrize(
    "row, message",
    [
        ({"tools": {"add": 1}}, "tools is an object, expected a list of functions"),
        ({"tools": "[{"}, "tools: broken JSON at column 3"),
        ({"tools": [ADD, {"description": "x"}]}, r"tools\[1\] has no name of a function"),
        ({"tools": [{"name": " "}]}, r"tools\[0\] has no name"),
        ({"tools": [ADD], "functions": [{"name": "f"}]}, "found different tools and functions"),
        ({"messages": [ASK | {"tool_calls": [CALL]}, ANSWER]}, "the user's message has tool_calls"),
        ({"messages": [ASK, CALLING | {"tool_calls": {"a": 1}}]}, "tool_calls is an object"),
        (
            {"messages": [ASK, CALLING | {"tool_calls": [{"id": 1}]}]},
            r"tool_calls\[0\] has no name",
        ),
        (
            {"messages": [ASK, CALLING | {"tool_calls": [{"name": "f", "arguments": "a=1"}]}]},
            r"the arguments of tool_calls\[0\]: broken JSON",
        ),
        (
            {"messages": [ASK, CALLING | {"tool_calls": [{"name": "f", "arguments": [1]}]}]},
            r"the arguments of tool_calls\[0\] are a list, expected an object",
        ),
        (
            {"tools": [{"name": "f"}], "messages": [{"role": "tools", "content": "[]"}, *MESSAGES]},
            "the message of the role tools is an empty list",
        ),
        (
            {"messages": [*MESSAGES, {"role": "tools", "content": '[{"name": "f"}]'}]},
            "not the first",
        ),
        (
            {"messages": [{"role": "tools", "content": '[{"name": "f"}]'}]},
            "not the first of several",
        ),
        (
            {"tools": [ADD], "messages": [{"role": "tools", "content": '[{"name": "f"}]'}, ASK]},
            "found functions in a column and others in the messages",
        ),
    ],
)
def test_what_is_no_function_is_refused(write, row, message):
    with pytest.raises(InputError, match=f"rows.jsonl, line 1: .*{message}"):
        read_demonstrations(write({"messages": MESSAGES} | row))


def test_functions_of_nothing_are_refused(write):
    with pytest.raises(InputError, match="functions without a prompt or messages"):
        read_comparisons(write({"tools": [ADD], "chosen": "It is 3.", "rejected": "It is 4."}))


def test_a_template_that_writes_no_functions_says_so(tokenizer):
    deaf = tokenizer._with(chat_template=TEMPLATE.replace("{% if tools %}", "{% if false %}"))
    said = ""
    try:
        deaf.encode_prompts([(OFFERED, ASKED)])
    except InputError as error:
        said = str(error)
    assert said.startswith("the chat template leaves out functions that may be called")


def test_who_cannot_write_functions_refuses_them(tokenizer, write):
    """A text without a template, a model without one, and a template that knows of none."""
    path = write({"tools": [ADD], "messages": MESSAGES})
    with pytest.raises(InputError, match="line 1: functions are called in the messages"):
        read_texts(path)
    rows = read_demonstrations(path)
    lengths = {"prompt_length": 400, "response_length": 64, "block_size": 464, "target": "response"}
    plain = train_bpe(["1 + 2? It is 3."] * 3, vocab_size=300)
    with pytest.raises(InputError, match="line 1: functions and their calls are written by a chat"):
        encode_demonstrations(rows, plain, **lengths)
    deaf = TEMPLATE.replace("{% if tools %}", "{% if false %}")
    offered = "line 1: the chat template leaves out functions that may be called"
    with pytest.raises(InputError, match=offered):
        encode_demonstrations(rows, tokenizer._with(chat_template=deaf), **lengths)
    with pytest.raises(InputError, match="leaves out functions that may be called"):
        begun = (OFFERED, ASKED, Message("assistant", "Let me add:"))
        tokenizer._with(chat_template=deaf).encode_prompts([begun])
    mute = deaf.replace("{% for call in m.tool_calls %}", "{% for call in [] %}")
    (row,) = every_answer([row._replace(prompt=row.prompt[1:2], turns=()) for row in rows])
    with pytest.raises(InputError, match="leaves out the calls of functions"):
        tokenizer._with(chat_template=mute).encode_answers([row.prompt], [(CALLED,)])
    kept, _ = encode_demonstrations(rows, tokenizer, **lengths)
    assert len(kept)
