"""The datasets, by the name that config key `data.source` takes."""

from vgjax.data.entries import Source
from vgjax.data.sources import busi, covid_cxr, folder, ham10000, kvasir_seg, mimic, phantom

SOURCES: dict[str, Source] = {
    "phantom": phantom.SOURCE,
    "ham10000": ham10000.SOURCE,
    "kvasir_seg": kvasir_seg.SOURCE,
    "busi": busi.SOURCE,
    "mimic": mimic.SOURCE,
    "covid_cxr": covid_cxr.SOURCE,
    "folder": folder.SOURCE,
}
