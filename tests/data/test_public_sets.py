"""The public sets of docs/data.md: rows of their shape, in files laid out as theirs, by name.

The rows are made by hand; nothing of the sets was downloaded.
"""

import gzip
import json
import re
from pathlib import Path

import hub_server
import pyarrow
import pytest
from huggingface_hub import constants
from pyarrow import parquet

from rlhf_jax.data import hub as names
from rlhf_jax.data.formats import iterate
from rlhf_jax.data.rows import Account, Comparison, Demonstration

PAGE = Path(__file__).parents[2] / "docs" / "data.md"
TABLE = re.findall(
    r"^\| ([^|]+?) \| `hf://([^`]+)` \| (comparisons|demonstrations)(?:, [^|]*)? \|",
    PAGE.read_text(encoding="utf-8"),
    re.MULTILINE,
)
KINDS = {"comparisons": Comparison, "demonstrations": Demonstration}
ASKED = {"role": "user", "content": "Where is Lund?"}
GOOD = {"role": "assistant", "content": "By the lake."}
BAD = {"role": "assistant", "content": "No idea."}
HUMAN = "\n\nHuman: Where is Lund?\n\nAssistant:"
POST = {"id": "t3_1", "post": "I fell.", "title": "Help", "subreddit": "AskReddit"}
SUMMARY = "SUBREDDIT: r/AskReddit\n\nTITLE: Help\n\nPOST: I fell.\n\nTL;DR:"
PAIR = ("Where is Lund?", ["By the lake.", "No idea."], [0, 1])
ANSWER = ("Where is Lund?", "By the lake.")
SHARD = "-00000-of-00001"
MARKS = {"helpfulness": 4, "correctness": 4, "coherence": 4, "complexity": 1, "verbosity": 1}

SAMPLES = {
    "HH-RLHF": (
        "harmless-base/train.jsonl.gz",
        [{"chosen": f"{HUMAN} By the lake.", "rejected": f"{HUMAN} No idea."}],
        PAIR,
    ),
    "UltraFeedback, binarized": (
        f"data/train_prefs{SHARD}.parquet",
        [
            {
                **{"prompt": "Where is Lund?", "prompt_id": "0a"},
                **{"chosen": [ASKED, GOOD], "rejected": [ASKED, BAD], "messages": [ASKED, GOOD]},
                **{"score_chosen": 8.0, "score_rejected": 3.5},
            }
        ],
        PAIR,
    ),
    "SHP": (
        "askscience/train.json",
        [
            {
                **{"post_id": "p", "domain": "askscience_train", "upvote_ratio": 0.99},
                **{"history": "Where is Lund?", "c_root_id_A": "a", "c_root_id_B": "b"},
                **{"created_at_utc_A": 1, "created_at_utc_B": 2, "score_A": 9, "score_B": 2},
                **{"human_ref_A": "By the lake.", "human_ref_B": "No idea.", "labels": 1},
                **{"seconds_difference": 1.0, "score_ratio": 4.5},
            },
        ]
        * 2,
        PAIR,
    ),
    "OpenAI's summaries": (
        "comparisons/train/0000.parquet",
        [
            {
                "info": POST | {"site": None, "article": None},
                "summaries": [
                    {"text": " Fell.", "policy": "sup2", "note": "short"},
                    {"text": " A post.", "policy": "ref", "note": None},
                ],
                **{"choice": 0, "worker": "w", "batch": "batch3", "split": "train"},
                "extra": {"confidence": None},
            }
        ],
        (SUMMARY, [" Fell.", " A post."], [0, 1]),
    ),
    "Nectar": (
        "data/rlaif.parquet",
        [
            {
                "prompt": f"{HUMAN} ",
                "answers": [
                    {"answer": f"{n}.", "model": f"m{n}", "rank": float(n)} for n in range(1, 8)
                ],
                **{"turns": 1, "num_responses": 7, "source": ["sharegpt"], "good_natured": True},
            }
        ],
        ("Where is Lund?", [f"{n}." for n in range(1, 8)], list(range(7))),
    ),
    "HelpSteer2": (
        "train.jsonl.gz",
        [{"prompt": "Where is Lund?", "response": "By the lake.", **MARKS}],
        ANSWER,
    ),
    "HelpSteer2, preferences": (
        "preference/preference.jsonl.gz",
        [
            {
                **{"split": "train", "prompt": "Where is Lund?", "response_1": "No idea."},
                **{"response_2": "By the lake.", "preference_strength": 2},
                **{"preference_statement": "@Response 2 says it.", "preference_elaboration": "."},
                "all_preferences_unprocessed": [{"strength": 2, "justification": "."}],
            }
        ],
        ("Where is Lund?", ["No idea.", "By the lake."], [1, 0]),
    ),
    "no_robots": (
        f"data/train{SHARD}.parquet",
        [
            {
                **{"prompt": "Where is Lund?", "prompt_id": "0a", "messages": [ASKED, GOOD]},
                "category": "Open QA",
            }
        ],
        ANSWER,
    ),
    "Alpaca": (
        f"data/train{SHARD}-a09b74b3ef9c3b56.parquet",
        [
            {
                **{"instruction": "Where is it?", "input": "Lund", "output": "By the lake."},
                "text": "Below is an instruction ...",
            }
        ],
        ("Where is it?\n\nLund", "By the lake."),
    ),
    "Dolly": (
        "databricks-dolly-15k.jsonl",
        [
            {
                **{"instruction": "Where is Lund?", "context": "", "response": "By the lake."},
                "category": "open_qa",
            }
        ],
        ANSWER,
    ),
    "OpenAssistant": (
        f"data/train{SHARD}-b42a775f407cee45.parquet",
        [
            {
                **{"message_id": name, "parent_id": parent, "user_id": "u", "text": text},
                **{"created_date": "2023-02-05T14:23:50", "role": role, "lang": "en"},
                **{"review_count": 3, "review_result": True, "deleted": False, "rank": rank},
                **{"synthetic": False, "model_name": None, "detoxify": {"toxicity": 0.0}},
                **{"message_tree_id": "1", "tree_state": "ready_for_export"},
                **{"emojis": {"name": ["+1"], "count": [1]}, "labels": None},
            }
            for name, parent, role, text, rank in (
                ("1", None, "prompter", "Where is Lund?", None),
                ("2", "1", "assistant", "No idea.", 1),
                ("3", "1", "assistant", "By the lake.", 0),
            )
        ],
        ("Where is Lund?", ["No idea.", "By the lake."], [1, 0]),
    ),
}


def written(file, rows):
    """The bytes of a file as it lies on the hub."""
    if file.endswith(".parquet"):
        sink = pyarrow.BufferOutputStream()
        parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
        return sink.getvalue().to_pybytes()
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    return gzip.compress(lines) if file.endswith(".gz") else lines


@pytest.fixture(scope="module")
def hub():
    with hub_server.serve() as hub:
        yield hub


def last(value):
    """The words of a text, or of the last message."""
    return value if isinstance(value, str) else value[-1].content


@pytest.mark.parametrize("name, place, kind", TABLE)
def test_a_public_set_is_read_by_its_name(hub, tmp_path, monkeypatch, name, place, kind):
    template = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    names.listing.cache_clear()
    file, rows, (prompt, *answers) = SAMPLES[name]
    place, _, revision = place.partition("@")
    repo = "/".join(place.split("/")[:2])
    files = {"README.md": b"", file: written(file, rows)}
    if place != repo and "train" in file:
        # Of a split that is not named nothing is read.
        files[file.replace("train", "test")] = b"no rows"
    hub.publish("dataset", repo, files, revision=revision or "main")
    account = Account()
    path = f"hf://{place}{f'@{revision}' if revision else ''}"
    row = next(iterate(path, KINDS[kind], account))
    assert not account.left_out and last(row.prompt) == prompt
    if isinstance(row, Comparison):
        assert [list(map(last, row.responses)), list(row.ranks)] == answers
    else:
        assert [last(row.completion)] == answers
    names.listing.cache_clear()


def test_every_set_of_the_table_has_a_sample():
    assert sorted(name for name, _, _ in TABLE) == sorted(SAMPLES)
