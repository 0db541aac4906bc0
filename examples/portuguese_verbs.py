"""Portuguese verbs and their forms: conjugated by the rules of the grammar, or read from Debian's data base.

A form is named by a letter for its tense and a digit for its person: ``conjugate("cantar", "P1")`` is "canto".
The rules know the regular verbs with their changes of spelling (ficar, fiquei; conhecer, conheço), verbs in -ear
and -uzir, and the vowels that change in the stem (servir, sirvo; dormir, durmo), for which the verbs are listed.
"""

from __future__ import annotations

from pathlib import Path

TENSES = {
    "P": "presente",
    "E": "perfeito",
    "I": "imperfeito",
    "F": "futuro",
    "S": "presente do subjuntivo",
    "M": "imperfeito do subjuntivo",
}
PERSONS = {"1": "eu", "2": "tu", "3": "ela", "4": "nós", "5": "vós", "6": "elas"}
FORMS = [tense + person for tense in TENSES for person in PERSONS]

_ENDINGS = {
    ("P", "a"): "o as a amos ais am",
    ("P", "e"): "o es e emos eis em",
    ("P", "i"): "o es e imos is em",
    ("E", "a"): "ei aste ou amos astes aram",
    ("E", "e"): "i este eu emos estes eram",
    ("E", "i"): "i iste iu imos istes iram",
    ("I", "a"): "ava avas ava ávamos áveis avam",
    ("I", "e"): "ia ias ia íamos íeis iam",
    ("I", "i"): "ia ias ia íamos íeis iam",
    ("F", "a"): "arei arás ará aremos areis arão",
    ("F", "e"): "erei erás erá eremos ereis erão",
    ("F", "i"): "irei irás irá iremos ireis irão",
    ("S", "a"): "e es e emos eis em",
    ("S", "e"): "a as a amos ais am",
    ("S", "i"): "a as a amos ais am",
    ("M", "a"): "asse asses asse ássemos ásseis assem",
    ("M", "e"): "esse esses esse êssemos êsseis essem",
    ("M", "i"): "isse isses isse íssemos ísseis issem",
}
# Forms whose stress is on the stem.
_STRESSED = {tense + person for tense in "PS" for person in "1236"}
_LIKE_ODIAR = {"ansiar", "incendiar", "mediar", "odiar", "remediar"}
_LIKE_SERVIR = {
    "aderir", "advertir", "competir", "conferir", "conseguir", "digerir", "divertir", "ferir",
    "inserir", "investir", "mentir", "perseguir", "preferir", "refletir", "repetir", "seguir",
    "sentir", "servir", "sugerir", "transferir", "vestir",
}  # fmt: skip
_LIKE_DORMIR = {"cobrir", "descobrir", "dormir", "engolir", "tossir"}


def conjugate(verb: str, form: str) -> str:
    """Return a form of a verb, such as ``"P1"``, by the rules."""
    stem, vowel = verb[:-2], verb[-2]
    tense, person = form
    ending = _ENDINGS[tense, vowel].split()[int(person) - 1]
    if form in _STRESSED and (verb.endswith("ear") or verb in _LIKE_ODIAR):
        stem = (stem if verb.endswith("ear") else stem[:-1] + "e") + "i"
    if form == "P3" and verb.endswith("uzir"):
        return stem
    return _change_vowel(verb, _respell(stem, vowel, ending[0]), form) + ending


def _respell(stem: str, vowel: str, following: str) -> str:
    """Write the stem's last consonant so that it sounds the same before another vowel."""
    front = following in "eéêií"
    if vowel == "a" and front:
        changes = (("c", "qu"), ("g", "gu"), ("ç", "c"))
    elif vowel != "a" and not front:
        changes = (("gu", "g"), ("c", "ç"), ("g", "j"))
    else:
        return stem
    for old, new in changes:
        if stem.endswith(old):
            return stem[: -len(old)] + new
    return stem


def _change_vowel(verb: str, stem: str, form: str) -> str:
    if form != "P1" and form[0] != "S":
        return stem
    for verbs, old, new in ((_LIKE_SERVIR, "e", "i"), (_LIKE_DORMIR, "o", "u")):
        if verb in verbs:
            before, _, after = stem.rpartition(old)
            return before + new + after
    return stem


def by_rules() -> dict[str, dict[str, str]]:
    """Return the forms of the verbs in ``data/verbs.txt``."""
    verbs = (Path(__file__).parent / "data" / "verbs.txt").read_text("utf-8").split()
    return {verb: {form: conjugate(verb, form) for form in FORMS} for verb in verbs}


# --- Debian's data base ---------------------------------------------------------------------------

_THEIR_TENSES = {"PI": "P", "EI": "E", "II": "I", "FI": "F", "PS": "S", "IS": "M"}
_REGULAR = ("cantar", "vender", "partir")


def from_debian(path: str | Path) -> dict[str, dict[str, str]]:
    """Read ``/usr/lib/brazilian-conjugate/verbos-UTF-8`` of the package brazilian-conjugate, irregular verbs and all.

    The file lists paradigms, each with the tenses that are irregular and followed by the verbs that are conjugated
    like it. What it leaves to be deduced is conjugated by the rules. Its spelling is that of before 2009.
    """
    if not Path(path).is_file():
        raise SystemExit(f"there is no file {path}; Debian's package brazilian-conjugate installs it")
    found: dict[str, dict[str, str]] = {}
    model, ending, given = "", "", {}
    for line in Path(path).read_text("utf-8").splitlines():
        head, *fields = line.strip().split(":")
        if head == "paradigma":
            model, ending, given = fields[0], fields[-1], {}
            found[model] = given
        elif head in _THEIR_TENSES and len(fields) == len(PERSONS):
            given |= {_THEIR_TENSES[head] + p: form for p, form in zip(PERSONS, fields, strict=True) if form}
        elif not fields and head.isalpha() and head.endswith(("ar", "er", "ir")):
            found[head] = _like(head, model, ending, given)
    regular = {
        verb: {form: conjugate(verb, form) for form in FORMS}
        for verb in found
        if verb.endswith(("ar", "er", "ir"))
    }
    whole = {verb: regular.get(verb, {}) | forms for verb, forms in found.items()}
    return {verb: forms for verb, forms in whole.items() if forms.keys() >= set(FORMS)}


def _like(verb: str, model: str, ending: str, given: dict[str, str]) -> dict[str, str]:
    """Put the stem of `verb` in the place of that of `model`, whose last letters `ending` they share."""
    if model in _REGULAR or not verb.endswith(ending):
        return {}
    cut = len(model) - len(ending)
    return {form: verb[: len(verb) - len(ending)] + text[cut:] for form, text in given.items()}
