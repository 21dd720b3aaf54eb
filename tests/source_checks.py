"""What the tests of several sources ask of a source."""

from pathlib import Path

import pytest

from vgjax.config import ConfigError
from vgjax.data.entries import Index, Source


def reasons(index: Index) -> dict[str, str]:
    return {skip.path: skip.reason for skip in index.skipped}


def refused_by(source: Source, root: Path | str) -> str:
    """The one sentence in which both check and index refuse the root."""
    with pytest.raises(ConfigError) as caught:
        source.check(str(root))
    with pytest.raises(ConfigError) as later:
        source.index(str(root))
    assert str(later.value) == str(caught.value)
    assert "data.root" in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)
