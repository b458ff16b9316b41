"""IFEval's kinds against cases made by hand, and languages told apart."""

import json
from pathlib import Path

import pytest

from rlhf_jax.errors import InputError
from rlhf_jax.tasks.constraints import (
    CHECKS,
    count_sentences,
    followed,
    followed_loosely,
    loose_variants,
    make_constraint,
)
from rlhf_jax.text.language_detection import language_of

DATA = Path(__file__).parents[2] / "data"
LESS, LEAST = "less than", "at least"
# (kind, arguments, responses that fulfil it, responses that do not)
CASES = [
    (
        "keywords:existence",
        {"keywords": ["dog", "Blue moon"]},
        ["A DOG under a blue Moon", "dogs and a blue moon"],
        ["a dog under a moon", "blue\nmoon dog"],
    ),
    (
        "keywords:frequency",
        {"keyword": "war", "relation": LEAST, "frequency": 2},
        ["War, war", "wars beware"],
        ["war", "none"],
    ),
    (
        "keywords:frequency",
        {"keyword": "fake", "relation": LESS, "frequency": 2},
        ["Fake it", "nothing"],
        ["fake fake", "FAKE or fakes"],
    ),
    (
        "keywords:forbidden_words",
        {"forbidden_words": ["damn", "art"]},
        ["a party is no start", "nothing here"],
        ["Damn!", "the art of it", "ART"],
    ),
    (
        "keywords:letter_frequency",
        {"letter": "Q", "let_relation": LEAST, "let_frequency": 2},
        ["quick Quiz"],
        ["quick", "no"],
    ),
    (
        "keywords:letter_frequency",
        {"letter": "#", "let_relation": LESS, "let_frequency": 2},
        ["# one", "none"],
        ["##", "#a #b"],
    ),
    (
        "language:response_language",
        {"language": "de"},
        ["Das ist nicht der Hund, den ich mit dir auf der Straße sah."],
        ["This is not the dog that I saw on the street with you."],
    ),
    (
        "length_constraints:number_sentences",
        {"relation": LEAST, "num_sentences": 3},
        ["One. Two! Three?", "Dr. No came. He saw. 他走了。", "Yes.\nHe said no.\nno end"],
        ["One. Two.", "Dr. No came at 3.5 p.m. and left. Well?"],
    ),
    (
        "length_constraints:number_sentences",
        {"relation": LESS, "num_sentences": 2},
        ["Only this one.", "not even a stop"],
        ["One. Two."],
    ),
    (
        "length_constraints:number_paragraphs",
        {"num_paragraphs": 2},
        ["one\n***\ntwo", "*** one *** two", "one *** two ***"],
        ["one\n\ntwo", "one *** two *** three", "one *** *** two"],
    ),
    (
        "length_constraints:number_words",
        {"relation": LEAST, "num_words": 3},
        ["one two three", "a-b c"],
        ["one two", "... !!"],
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "weekend"},
        ["Hello.\n\nWeekend, at last", 'x\n\n\n\n"Weekend" y'],
        ["Hello.\n\nThe weekend", "weekend", "a\n\nweekend\n\nb", "a\n\nweekends are"],
    ),
    (
        "detectable_content:number_placeholders",
        {"num_placeholders": 2},
        ["[name] lives in [city]", "[a][b][c]"],
        ["[name]", "name city"],
    ),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.S."},
        ["Bye\nP.S. more", "Bye. p. s. more", "Bye.\n\n**P.S.** more", "P.\nS. more"],
        [
            *("Bye", "P and then S", "Bye PS more", "P.S more", "P.  S. more", "PS. more"),
            *("Use these tips.", "steps", "Many apps exist", "Apps. Stops. A ps. Help s."),
        ],
    ),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.P.S"},
        ["Bye P.P.S more", "Bye\np. p. s. more", "P.P.S.", "Step. P.S. more"],
        ["Bye P.S. more", "PPS more", "P.PS more", "Use these tips.", "Many apps exist"],
    ),
    (
        "detectable_content:postscript",
        {"postscript_marker": "PS:"},
        ["Bye\nps: more"],
        ["Bye PS more", "tips"],
    ),
    (
        "detectable_format:number_bullet_lists",
        {"num_bullets": 2},
        ["* one\n* two", "- one\n - two", "so:\n* a\n- b\nend"],
        ["* one", "* a\n* b\n* c", "**bold**\n* one", "--\n* one"],
    ),
    (
        "detectable_format:constrained_response",
        {},
        ["My answer is yes.", "Well. My answer is maybe. Truly."],
        ["yes", "my answer is Yes", "My answer is yes"],
    ),
    (
        "detectable_format:number_highlighted_sections",
        {"num_highlights": 2},
        ["*one* and *two*", "**one** then *two*"],
        ["*one*", "* one\n* two", "** ** *a*"],
    ),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "SECTION", "num_sections": 2},
        ["SECTION 1\na\nSECTION 2\nb", "SECTION1 SECTION2 SECTION3"],
        ["SECTION 1\na", "Section 1\nSection 2", "SECTION one SECTION two"],
    ),
    (
        "detectable_format:json_format",
        {},
        ['{"a": 1}', '```json\n{"a": [1]}\n```', "```\n[1, 2]\n```"],
        ["a: 1", '{"a": 1', '{"a": 1} and more', "7"],
    ),
    (
        "detectable_format:title",
        {},
        ["<<Poem of joy>>\ntext", "before <<x>> after"],
        ["<Poem>", "<< >>", "<<two\nlines>>"],
    ),
    (
        "combination:two_responses",
        {},
        ["one\n******\ntwo", "****** one ****** two"],
        ["one\n***\ntwo", "one\n******\none", "one ****** ", "one ****** two ****** three"],
    ),
    (
        "combination:repeat_prompt",
        {"prompt_to_repeat": "Say it again."},
        ["say it again. Yes.", "  Say it again.\nYes"],
        ["Yes. Say it again.", "Say it"],
    ),
    (
        "startend:end_checker",
        {"end_phrase": "So what is next?"},
        ["Done. So what is next?", 'Done. "so WHAT is next?" '],
        ["So what is next? Nothing.", "next"],
    ),
    (
        "startend:quotation",
        {},
        ['"all of it"', ' "a" and "b" '],
        ['"open', "none", "'single'", '"'],
    ),
    (
        "change_case:capital_word_frequency",
        {"capital_relation": LEAST, "capital_frequency": 2},
        ["I saw NASA", "WELL-KNOWN FACT"],
        ["I saw it", "Nasa Here"],
    ),
    (
        "change_case:capital_word_frequency",
        {"capital_relation": LESS, "capital_frequency": 2},
        ["I saw it", "none"],
        ["AN EXAMPLE"],
    ),
    (
        "change_case:english_capital",
        {},
        ["THIS IS THE END, NO. 3.", "YES"],
        ["This", "DAS IST NICHT DER HUND UND DIE KATZE", "..."],
    ),
    (
        "change_case:english_lowercase",
        {},
        ["this is the end", "yes, 3."],
        ["This is", "das ist nicht der hund und die katze", "..."],
    ),
    ("punctuation:no_comma", {}, ["no pause at all", "全角，逗号"], ["yes, one", ","]),
]


@pytest.mark.parametrize("kind,arguments,fulfil,fail", CASES, ids=lambda x: x if ":" in x else "")
def test_cases_made_by_hand(kind, arguments, fulfil, fail):
    constraint = make_constraint(kind, arguments)
    assert [r for r in fulfil if not constraint.holds(r)] == []
    assert [r for r in fail if constraint.holds(r)] == []
    assert not constraint.holds(" \n"), "an empty response fulfils nothing"


def test_every_kind_has_cases_and_all_of_ifeval_is_known():
    assert {case[0] for case in CASES} == set(CHECKS)
    assert len(CHECKS) == 25
    for line in (DATA / "eval_ifeval" / "prompts.jsonl").open():
        row = json.loads(line)
        for kind, arguments in zip(row["instruction_id_list"], row["kwargs"], strict=True):
            make_constraint(kind, arguments).holds("Some answer. With two sentences.")


def test_an_unknown_kind_is_named():
    with pytest.raises(InputError, match="unknown instruction 'keywords:rhyme'"):
        make_constraint("keywords:rhyme", {})
    with pytest.raises(InputError, match="relation is 'more'"):
        make_constraint(
            "length_constraints:number_words", {"relation": "more", "num_words": 1}
        ).holds("a")


def test_loosely_without_the_lines_around_and_asterisks():
    lower = make_constraint("change_case:english_lowercase", {})
    comma = make_constraint("punctuation:no_comma", {})
    response = "Sure, here it is:\nall in lowercase\nAnything else, sir?"
    assert followed([lower, comma], response) == [False, False]
    assert followed_loosely([lower, comma], response) == [True, True]
    end = make_constraint("startend:end_checker", {"end_phrase": "the end"})
    assert not end.holds("**the end**") and followed_loosely([end], "**the end**") == [True]
    assert len(loose_variants("a\nb")) == 10
    assert followed_loosely([lower], "NO\nNO") == [False]


@pytest.mark.parametrize(
    "text,count",
    [
        ("", 0),
        ("One", 1),
        ("Hello there. Mr. Smith went to St. Louis! Why?", 3),
        ("Costs 3.50 dollars... Really?! Yes.", 3),
        ('He said "Go." Then he left.', 2),
        ("今天很好。你呢？我也是！", 3),
        ("J. R. R. Tolkien wrote it.", 1),
        ("- a list\n- without stops", 1),
    ],
)
def test_sentences_are_counted(text, count):
    assert count_sentences(text) == count


SPOKEN = {
    "en": "The cat sat on the mat and it was not happy with that at all.",
    "de": "Die Katze saß auf der Matte und war damit gar nicht zufrieden, aber es ist nun so.",
    "fr": "Le chat est sur la table et il ne veut pas que vous le dérangiez dans la maison.",
    "es": "El gato está en la mesa y no quiere que los niños se acerquen a la casa por la noche.",
    "it": "Il gatto è sul tavolo e non vuole che gli altri si avvicinino alla casa di notte.",
    "pt": "O gato não está na mesa, mas ele quer que as crianças fiquem em casa com um livro.",
    "vi": "Con mèo không thích những người trong nhà và nó được ngủ với tôi cho đến sáng.",
    "sw": "Paka yupo katika nyumba ya mtu na hii ni habari kwa watoto wa shule hiyo.",
    "fi": "Kissa on pöydällä ja se ei ole iloinen, mutta koira on ulkona kun he ovat kotona.",
    "ru": "Кошка сидит на столе, и это не то, что он хотел, но она была дома.",
    "hi": "बिल्ली मेज पर है और यह नहीं चाहती कि बच्चे घर में आएं।",
    "mr": "मांजर टेबलावर आहे आणि ती मुले घरात येत नाही. मी पण आहे.",
    "ne": "बिरालो टेबलमा छ र यो घरमा हुन्छ। तपाईं पनि आउनु भएको थियो।",
    "ar": "القطة على الطاولة وهي لا تريد أن يأتي هذا الطفل إلى البيت من الشارع.",
    "ur": "بلی میز پر ہے اور یہ نہیں چاہتی کہ بچے گھر میں آئیں۔",
    "fa": "گربه روی میز است و این را نمی خواهد که بچه ها به خانه در شب برای او بیایند.",
    "bn": "বিড়াল টেবিলের উপর আছে এবং সে খুশি নয়।",
    "pa": "ਬਿੱਲੀ ਮੇਜ਼ ਉੱਤੇ ਹੈ ਅਤੇ ਉਹ ਖੁਸ਼ ਨਹੀਂ ਹੈ।",
    "ta": "பூனை மேசையில் உள்ளது, அது மகிழ்ச்சியாக இல்லை.",
    "kn": "ಬೆಕ್ಕು ಮೇಜಿನ ಮೇಲೆ ಇದೆ, ಅದು ಸಂತೋಷವಾಗಿಲ್ಲ.",
    "th": "แมวอยู่บนโต๊ะและมันไม่มีความสุข",
    "ko": "고양이가 탁자 위에 있고 행복하지 않다.",
    "ja": "猫は机の上にいて、うれしくない。",
    "zh": "猫在桌子上，它不高兴。",
}


@pytest.mark.parametrize("language", SPOKEN)
def test_languages_are_told_apart(language):
    assert language_of(SPOKEN[language]) == language


def test_every_language_that_ifeval_asks_for_is_known():
    rows = [json.loads(line) for line in (DATA / "eval_ifeval" / "prompts.jsonl").open()]
    asked = {k["language"] for row in rows for k in row["kwargs"] if "language" in k}
    assert asked <= set(SPOKEN)


def test_no_letters_speak_for_nothing():
    assert language_of("... 123 !") is None
    assert language_of("xyzzy plugh") is None
