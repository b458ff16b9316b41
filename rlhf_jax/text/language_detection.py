"""Which language a text is in, by its letters and its commonest words. Small and plain on purpose.

Scripts of one language decide alone; languages that share a script are told apart by function
words. Made for "answer in Hindi" style instructions, where the text is a few sentences long.
"""

import re
from collections import Counter

SCRIPTS = {
    "bengali": "\u0980-\u09ff",
    "gurmukhi": "\u0a00-\u0a7f",
    "gujarati": "\u0a80-\u0aff",
    "tamil": "\u0b80-\u0bff",
    "telugu": "\u0c00-\u0c7f",
    "kannada": "\u0c80-\u0cff",
    "thai": "\u0e00-\u0e7f",
    "hangul": "\u1100-\u11ff\uac00-\ud7af",
    "kana": "\u3040-\u30ff",
    "han": "\u3400-\u4dbf\u4e00-\u9fff",
    "devanagari": "\u0900-\u097f",
    "arabic": "\u0600-\u06ff",
    "cyrillic": "\u0400-\u04ff",
    "greek": "\u0370-\u03ff",
    "latin": "A-Za-z\u00c0-\u024f\u1e00-\u1eff",
}
LETTERS = {name: re.compile(f"[{span}]") for name, span in SCRIPTS.items()}
ALONE = {
    "bengali": "bn",
    "gurmukhi": "pa",
    "gujarati": "gu",
    "tamil": "ta",
    "telugu": "te",
    "kannada": "kn",
    "thai": "th",
    "hangul": "ko",
    "kana": "ja",
    "han": "zh",
    "greek": "el",
}
WORDS = {
    "devanagari": {
        "hi": "है हैं में के की का और से को यह नहीं था थी एक पर ने हो लिए इस कि भी",
        "mr": "आहे आहेत आणि मध्ये च्या हे ही तो नाही होते होता मी आम्ही तुम्ही साठी पण करा असते करून",
        "ne": "छ छन् छैन र मा को हो हुन् गर्नु लागि यो भएको थियो हामी तपाईं गर्न पनि छु हुन्छ",
    },
    "arabic": {
        "ar": "في من على إلى أن هذا هذه التي الذي كان لا ما مع عن هو هي كل ثم",
        "ur": "ہے ہیں میں کے کی کا اور سے کو یہ نہیں تھا ایک پر نے ہو اس کہ بھی لیے",
        "fa": "است در و به از که این را با برای می هستند شد یک آن بود خود تا ها",
    },
    "cyrillic": {
        "ru": "и в не на что с как это по но из у за то его она все был или для",
        "bg": "и в не на че с как това по но от за да се са е ще или към който",
        "uk": "і в не на що з як це по але із за та його вона був або для є",
    },
    "latin": {
        "en": "the of and to in is that it for was with as you are this be have not on i",
        "de": "der die das und ist nicht ein eine zu den mit von sie es ich auf für im dem",
        "fr": "le la les de des et est un une que qui dans pour pas sur ce il vous nous au",
        "es": "el la los de y es un una que en por para con no se su del las al lo",
        "it": "il la di e è un una che per non con del sono della nel si gli le da come",
        "pt": "o a de e é um uma que não para com do da em os as no na se por",
        "nl": "de het een en is van niet dat op te in voor met zijn aan er ik om",
        "fi": "ja on ei se että oli hän mutta kun niin ovat myös kuin tai joka sen ole ne",
        "sv": "och att det som en på är av för med den till inte har de ett jag om",
        "sw": "na ya wa ni kwa katika la za kuwa hii yake cha si kama lakini hivyo ambayo hiyo",
        "vi": "và là của không có cho được một các những trong người với này để tôi khi đã",
        "tr": "ve bir bu da de için ile çok olan gibi daha ne var değil o ama",
        "pl": "i w nie na się z do to że jest o jak ale po co za od przez",
    },
}
FUNCTION_WORDS = {
    script: {language: frozenset(text.split()) for language, text in languages.items()}
    for script, languages in WORDS.items()
}


def language_of(text: str) -> str | None:
    """ISO 639-1 code of the language that most of the letters speak for; None if nothing does."""
    counts = Counter({name: len(letter.findall(text)) for name, letter in LETTERS.items()})
    # Japanese is written with Han characters too: some kana decide.
    if counts["kana"] and counts["kana"] * 10 >= counts["han"]:
        counts["kana"] += counts["han"]
        counts["han"] = 0
    script, number = counts.most_common(1)[0]
    if number == 0:
        return None
    if script in ALONE:
        return ALONE[script]
    words = re.findall(r"[^\W\d_][\w\u0900-\u097f]*", text.lower())
    hits = {
        language: sum(word in known for word in words)
        for language, known in FUNCTION_WORDS[script].items()
    }
    best = max(hits, key=lambda language: hits[language])
    return best if hits[best] else None
