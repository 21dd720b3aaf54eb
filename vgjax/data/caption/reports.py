"""Radiology reports as MIMIC-CXR has them: text -> sections -> the part that describes the picture.

A report consists of blocks: perhaps a preliminary reading ("WET READ", "PROVISIONAL FINDINGS IMPRESSION"), perhaps an
addendum, and the final report; a line of underscores ends the first two. A heading is a known name with a colon, in
capitals anywhere or in any case at the start of a line, or in capitals alone on its line. Other words in capitals with
a colon at the start of a line are headings, too, except within findings and impression, where they are sub-headings
("LUNGS:"). Names of views ("PA AND LATERAL VIEWS OF THE CHEST:") head the findings.
"""

import re

# Canonical name -> how reports spell it. Longer spellings stand first.
SPELLINGS: dict[str, str] = {
    "findings": r"FINDINGS?(?: ?(?:AND|/|&) ?IMPRESSIONS?)?|OBSERVATIONS?|REPORT",
    "impression": r"IMPRESSIONS?(?: ?(?:AND|/|&) ?RECOMMENDATIONS?)?|CONCLUSIONS?|INTERPRETATION|OPINION|SUMMARY",
    "indication": r"(?:CLINICAL )?INDICATIONS?(?: FOR [A-Z ]{1,40})?|(?:CLINICAL )?REASON(?: FOR [A-Z ]{1,40})?"
    r"|CLINICAL (?:INFORMATION|QUESTION|DETAILS|CONTEXT)|MEDICAL CONDITION|QUESTION",
    "history": r"(?:CLINICAL |PATIENT |MEDICAL |PAST MEDICAL |BRIEF )?HISTORY",
    "comparison": r"COMPARISONS?(?: [A-Z]{1,20})?|PRIOR(?: STUDY| STUDIES| EXAMS?)?",
    "technique": r"TECHNIQUES?|PROCEDURE",
    "examination": r"EXAMINATIONS?|EXAM|STUDY|TYPE OF EXAM(?:INATION)?",
    "recommendation": r"RECOMMENDATIONS?|RECOMMENDATION\(S\)",
    "notification": r"NOTIFICATIONS?|COMMUNICATION",
    "addendum": r"(?:FINAL )?ADDENDUM",
    "wet read": r"WET READ|PROVISIONAL FINDINGS IMPRESSION(?: \(PFI\))?|(?:PRELIMINARY|PROVISIONAL) (?:READ|REPORT)",
    "final report": r"FINAL REPORT",
}
DESCRIBING = ("findings", "impression")
BLOCKS = ("addendum", "wet read", "final report")  # what the headings after these belong to

_KNOWN = "|".join(SPELLINGS.values())
# Repetitions are bounded throughout: a hostile report costs time in proportion to its length.
_HEADING = (
    rf"^[ \t]{{0,80}}(?P<start>(?i:{_KNOWN})) ?:"
    rf"|^[ \t]{{0,80}}(?P<block>{SPELLINGS['addendum']}|WET READ)\b(?! ?:)"
    rf"|^[ \t]{{0,80}}(?P<alone>{_KNOWN})[ \t]{{0,80}}$"
    r"|^[ \t]{0,80}(?P<other>[A-Z][A-Z0-9 ,/()&'-]{2,80}?) ?:"
    rf"|(?<![\w/-])(?P<inside>{_KNOWN}) ?:"
)
_VIEW = re.compile(r"\b(?:VIEWS?|RADIOGRAPHS?|CHEST|FILMS?|PORTABLE|UPRIGHT|SUPINE|FRONTAL|LATERAL|AP|PA)\b")
_MARK = re.compile(rf"{_HEADING}|(?P<rule>^[ \t]{{0,80}}_{{10,}}[ \t]{{0,80}}$)", re.MULTILINE)

# De-identification leaves "___" for names, dates, times and ages.
_BLANK = "___"
_PERSON = r"\b(?:doctors?|drs?|mrs?|ms|prof(?:essor)?|resident|attending)\b"
_LINK = r"(?:on|at|by|from|to|with|of|in|dated|since|as of|until|and|for|via|through|per|the|a|an|,)"
_TOLD = re.compile(
    r"\b(?:discuss|telephon|paged|communicat|notif|inform(?:ed)?\b|convey|called|reported (?:to|by)|relayed|e-?mailed"
    r"|reviewed (?:by|with)|wet read|dictated|signed|entered)",
    re.IGNORECASE,
)
_ORPHANS = {
    rf"{_BLANK}[ -]?(?:years?|yrs?|y)?[ -]?(?:olds?|o)\b ?": "",
    rf"{_BLANK} ?(?:years?|yrs?) (?:of age|ago)\b": "",
    rf"\b(?:as |in )?compar(?:ed|ison)(?: (?:is )?made)? (?:to|with) (?:the )?{_BLANK} ?,?": "",
    rf"(?:\b(?:by|with|to|from|per) )?{_PERSON}(?: ?,? ?(?:and )?{_BLANK}){{1,6}}": "",
    rf"(?:(?<!\w){_LINK} ){{0,4}}(?<!\w){_BLANK}(?: ?(?:%|[ap]\.?m\b|[mc]m\b))?": "",
    r"[(\[][ ,.;:/-]{0,20}[)\]]": "",
    r" {2,}": " ",
    r" +([,.;:)])": r"\1",
    r"(?:[,;:] ?){1,9}([.;])": r"\1",
    r",(?: ?,){1,9}": ",",
    r"\.(?: ?\.){1,9}(?!\d)": ".",
}
_REPAIRS = [(re.compile(pattern, re.IGNORECASE), replacement) for pattern, replacement in _ORPHANS.items()]
_SENTENCE = re.compile(r"(?<=[.!?]) (?=[A-Z0-9_(])")


def sections(text: str) -> dict[str, str]:
    """A report's sections by canonical name (see `SPELLINGS`; others in lower case), in the order of the report.

    What precedes the first heading is "preamble". Sections of one name are joined by a blank line. Findings and
    impression of an addendum join those of the final report, the rest of it is "addendum"; all of a preliminary reading
    is "wet read".
    """
    found: dict[str, list[str]] = {}
    # Addenda stand above the report that they amend.
    for block, name, body in sorted(_parts(text), key=lambda part: part[0] == "addendum"):
        if block == "wet read" or (block == "addendum" and name not in DESCRIBING):
            name = block
        found.setdefault(name, []).append(body)
    return {name: joined for name, bodies in found.items() if (joined := "\n\n".join(filter(None, bodies)))}


def caption(text: str) -> str:
    """What a report says of the picture: findings, then impression, in one line, without blanks of de-identification.

    Where it has neither, the last paragraph of the final report that has no heading of its own; "" where it has none.
    Never indication or history, which hold the question rather than the answer. Clauses on who was told what are left
    out.
    """
    found = sections(text)
    said = [tidied for name in DESCRIBING if (tidied := _tidy(found.get(name, "")))]
    if len(said) > 1 and said[1] in said[0]:
        del said[1]
    return " ".join(said) or _last_paragraph(text)


def _parts(text: str) -> list[tuple[str, str, str]]:
    """(block, section, body) in the order of the text; the block is one of `BLOCKS`."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    parts = []
    block, name, start = "final report", "preamble", 0
    for match in _MARK.finditer(text):
        heading = _name(match, name)
        if heading:
            parts.append((block, name, text[start : match.start()].strip()))
            start = match.end()
            block = heading if heading in BLOCKS else block
            name = "preamble" if heading == "final report" else heading
    return [*parts, (block, name, text[start:].strip())]


def _name(match: re.Match[str], current: str) -> str:
    """The section that a match begins, or "" where it belongs to the current one."""
    if match["rule"]:
        return "final report"
    if other := match["other"]:
        # The alternatives overlap where a known name is the beginning of something longer.
        if known := _canonical(other):
            return known
        if current in (*DESCRIBING, "wet read", "addendum"):
            return ""
        return "findings" if _VIEW.search(other) else other.lower()
    return _canonical((match["start"] or match["block"] or match["alone"] or match["inside"]).upper())


def _canonical(heading: str) -> str:
    return next((name for name, spelling in SPELLINGS.items() if re.fullmatch(spelling, heading)), "")


def _last_paragraph(text: str) -> str:
    """The last paragraph of the final report that no heading begins, tidied; "" where there is none.

    Many reports go on after "REASON FOR EXAM: ..." without another heading. Titles, which have no lower-case letter,
    describe nothing.
    """
    free: list[str] = []
    for block, name, body in _parts(text):
        if block == "final report":
            free += re.split(r"\n[ \t]*\n", body)[name != "preamble" :]
    told = (_tidy(paragraph) for paragraph in reversed(free) if re.search(r"[a-z]{2}", paragraph))
    return next((paragraph for paragraph in told if paragraph), "")


def _tidy(text: str) -> str:
    """One line without blanks of de-identification and the words that only introduced them."""
    text = re.sub(r"_{2,}", _BLANK, " ".join(text.split()))
    # A title's full stop ends no sentence.
    text = re.sub(rf"({_PERSON})\.(?= ?{_BLANK})", r"\1", text, flags=re.IGNORECASE)
    sentences = []
    for sentence in _SENTENCE.split(text):
        if _BLANK in sentence:
            sentence = _without_told(sentence)
            for pattern, replacement in _REPAIRS:
                sentence = pattern.sub(replacement, sentence)
            sentence = sentence.strip(" ,;:-")
            if not re.search(r"[A-Za-z]{2}", sentence):
                continue
            sentence = sentence[0].upper() + sentence[1:]
        sentences.append(sentence)
    return " ".join(sentences)


def _without_told(sentence: str) -> str:
    """A sentence up to the clause that says who was told; nothing where that is the first clause."""
    if not (told := _TOLD.search(sentence)):
        return sentence
    clause = max(sentence.rfind(mark, 0, told.start()) for mark in (",", ";", " - ", " (", " which ", " and "))
    return sentence[:clause] + "." if clause > 0 else ""
