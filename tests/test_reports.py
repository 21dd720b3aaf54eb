import time

import pytest

from vgjax.data.caption.reports import caption, sections

RULE = 78 * "_"
PLAIN = """\
                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 INDICATION:  ___ year old woman with cough  // ?pneumonia

 TECHNIQUE:  Chest PA and lateral

 COMPARISON:  ___

 FINDINGS:

 The lungs are clear.  The heart
 is normal.

 IMPRESSION:

 No pneumonia.
""".replace("\n\n", "\n \n")  # empty lines hold a blank


def test_a_plain_report_has_its_sections():
    assert sections(PLAIN) == {
        "examination": "CHEST (PA AND LAT)",
        "indication": "___ year old woman with cough  // ?pneumonia",
        "technique": "Chest PA and lateral",
        "comparison": "___",
        "findings": "The lungs are clear.  The heart\n is normal.",
        "impression": "No pneumonia.",
    }


CAPTIONS = {
    "findings and impression": (PLAIN, "The lungs are clear. The heart is normal. No pneumonia."),
    "windows line ends": (PLAIN.replace("\n", "\r\n"), "The lungs are clear. The heart is normal. No pneumonia."),
    "joint heading": ("INDICATION: Fever.\nFINDINGS AND IMPRESSION: Clear lungs.", "Clear lungs."),
    "joint heading with a slash": ("FINDINGS/IMPRESSION:  Clear lungs.", "Clear lungs."),
    "impression alone": ("HISTORY: Pneumonia.\n\nIMPRESSION: Normal.", "Normal."),
    "findings alone": ("FINDINGS: Normal heart.\n\nRECOMMENDATION(S):  Repeat in a week.", "Normal heart."),
    "impression before findings": ("IMPRESSION: Edema.\nFINDINGS: Hazy bases.", "Hazy bases. Edema."),
    "impression repeats findings": ("FINDINGS: No change. Clear.\nIMPRESSION: No change.", "No change. Clear."),
    "several findings": ("FINDINGS: One.\nCOMPARISON: None.\nFINDINGS: Two.\nIMPRESSION: Three.", "One. Two. Three."),
    "headings within a line": ("INDICATION: Pain. COMPARISON: No. FINDINGS: Clear. IMPRESSION: Fine.", "Clear. Fine."),
    "headings in small letters": ("Indication: Pain.\nFindings: Clear.\nImpression: Normal.", "Clear. Normal."),
    "a word is no heading": ("FINDINGS: The findings: as before.\nIMPRESSION: My impression: none.", "The findings: as"
                             " before. My impression: none."),
    "headings without colon": ("HISTORY\nPain.\n\nFINDINGS\nClear.\n\nIMPRESSION\nNormal.", "Clear. Normal."),
    "sub-headings": ("FINDINGS:\nLUNGS: Clear.\nHEART: Large.\nIMPRESSION:\nBig heart.", "LUNGS: Clear. HEART: Large."
                     " Big heart."),
    "conclusion": ("REASON FOR EXAM: Tube.\nCONCLUSION: Tube in place.", "Tube in place."),
    "views as heading": ("PA AND LATERAL VIEWS OF THE CHEST:  Clear lungs.\nCLINICAL HISTORY: Pain.", "Clear lungs."),
    "other headings end nothing they should not": ("DOSE REPORT: 1 mGy.\nIMPRESSION: Normal.", "Normal."),
    "wet read": (
        f"WET READ: ___ ___ 8:02 PM\n FINDINGS: Left effusion.\n {RULE}\n FINAL REPORT\n FINDINGS: Clear.",
        "Clear.",
    ),
    "provisional reading": (
        f"PROVISIONAL FINDINGS IMPRESSION (PFI): ___ 2:50 PM\n Mass.\n{RULE}\n FINAL REPORT\nIMPRESSION: No mass.",
        "No mass.",
    ),
    "only a wet read": ("WET READ: ___ 8:02 PM\n Left effusion.", ""),
    "addendum without description": (
        f" ADDENDUM  The side marker is wrong.\n {RULE}\n FINAL REPORT\n IMPRESSION: Clear.",
        "Clear.",
    ),
    "addendum with impression": (
        f"ADDENDUM: After review.\n IMPRESSION: Also a nodule.\n {RULE}\n FINAL REPORT\n IMPRESSION: Clear.",
        "Clear. Also a nodule.",
    ),
    "addendum behind": ("IMPRESSION: Clear.\n\nADDENDUM: By telephone.", "Clear."),
    "no headings": ("FINAL REPORT\n CHEST RADIOGRAPH\n\n Old film.\n\n The lungs\n are clear.", "The lungs are clear."),
    "paragraph behind the indication": ("FINAL REPORT\n INDICATION: Fever.\n\n Clear lungs.", "Clear lungs."),
    "never the indication": ("INDICATION:\n\n Cough and fever.\n\nCOMPARISON:  None.", ""),
    "never the history": ("FINAL REPORT\nCLINICAL HISTORY: Known cancer.", ""),
    "empty findings": ("FINDINGS:\n\nIMPRESSION:\n\n", ""),
    "title only": ("FINAL REPORT\n CHEST RADIOGRAPH", ""),
    "nothing": ("", ""),
    "blanks only": ("FINDINGS: ___.\nIMPRESSION: ___ ___.", ""),
}  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), CAPTIONS.values(), ids=CAPTIONS.keys())
def test_caption(text, expected):
    assert caption(text) == expected


BLANKS = {
    "The tube was placed on ___ at ___.": "The tube was placed.",
    "Compared with ___, the edema is worse.": "The edema is worse.",
    "As compared to ___, no change.": "No change.",
    "In comparison with the study of ___, no change.": "In comparison with the study, no change.",
    "Unchanged since ___.": "Unchanged.",
    "Since ___, the opacity has cleared.": "The opacity has cleared.",
    "A ___-year-old fracture.": "A fracture.",
    "No edema (___).": "No edema.",
    "Findings were discussed with Dr. ___ by Dr. ___ by telephone on ___ at ___.": "",
    "Clear.  Dr. ___ ___ was paged at 3:15 p.m. on ___.  No edema.": "Clear. No edema.",
    "Large pneumothorax, discussed with Dr. ___ at 3 pm.": "Large pneumothorax.",
    "Line placed by Dr. ___ ends in the atrium.": "Line placed ends in the atrium.",
    "1. Clear.\n 2. Unchanged from ___ through ___.\n 3. Normal.": "1. Clear. 2. Unchanged. 3. Normal.",
    "___ fracture is healed.": "Fracture is healed.",
    "Effusion, ___, ___, is small.": "Effusion, is small.",
    "Snake_case and a_b stay.": "Snake_case and a_b stay.",
}


@pytest.mark.parametrize("text", BLANKS)
def test_blanks_of_deidentification_go_with_their_words(text):
    assert caption(f"IMPRESSION: {text}") == BLANKS[text]


@pytest.mark.parametrize(
    "piece", ["_", "on ", "Dr. ___ and ", "FINDINGS: ", "A", "A B,", " \t", "\n", "(", ", . ", "___ of "]
)
def test_a_hostile_report_takes_time_in_proportion_to_its_length(piece):
    start = time.process_time()
    caption("FINDINGS: x\n" + piece * (200_000 // len(piece)))
    assert time.process_time() - start < 5
