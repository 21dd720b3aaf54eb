"""Near-duplicates of datasets without patient numbers: what shows the same must not fall into two splits.

Two pictures are near-duplicates where their thumbnails correlate above `THRESHOLD`. Comparing all pairs is quadratic,
so candidates come from a hash: its bits tell on which sides of fixed random hyperplanes a thumbnail's low frequencies
lie, so that the share of bits in which two hashes differ estimates the angle between the pictures (Charikar, STOC
2002), of which correlation is the cosine. A bit of a plain cosine-transform or difference hash hangs on a single
coefficient or gradient instead, and flips with the least noise where that is small.

The 64 bits are cut into 8 blocks; pictures that agree in any 2 of them meet in a bucket, which is certain up to 6
differing bits (they touch at most 6 blocks) and likely well beyond. Inside a bucket correlation decides; groups are the
connected components.
"""

import functools
import hashlib
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image
from scipy.fft import dctn
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

THRESHOLD = 0.95  # correlation of two thumbnails
SIDE = 32  # pixels of a thumbnail
BITS = 64
BLOCKS, KEY_BLOCKS = 8, 2
MAX_DISTANCE = 16  # bits; about 7 are expected at the threshold, so that comparing pixels beyond is wasted
FREQUENCIES = 12  # half waves a side; above is speckle and compression
# Most energy lies in the few lowest frequencies, in which all pictures of an organ are alike and would share a bucket.
TILT = 0.5  # exponent of frequency
BLANK = 1.0  # grey levels; a thumbnail that deviates less has nothing that could correlate

# Work is bounded where buckets overflow, as they do when all pictures are alike. A picture meets its next neighbours in
# the bucket (all of them, in a small dataset) and a few representatives spread over it; chains do the rest. Both
# budgets are for the whole dataset, with a least share for each picture.
MEETINGS, LEAST_MEETINGS = 2**22, 64
FAILURES, LEAST_FAILURES = 2**24, 16
REPRESENTATIVES = 8
CHUNK = 4096  # pairs whose pixels are compared at once

Pairs = tuple[np.ndarray, np.ndarray]


def thumbnail(image_HWC: np.ndarray) -> np.ndarray:
    """Grey (32, 32) uint8 of an (H, W, 3) or (H, W) uint8 picture, each pixel the mean of what it covers."""
    grey = Image.fromarray(image_HWC).convert("L")
    return np.asarray(grey.resize((SIDE, SIDE), Image.Resampling.BOX))


def perceptual_hash(thumb: np.ndarray) -> int:
    """64 bits of a (32, 32) thumbnail; brightness and contrast do not change them."""
    spectrum = dctn(thumb.astype(np.float32), norm="ortho")[:FREQUENCIES, :FREQUENCIES]
    bits = _hyperplanes() @ spectrum.ravel() > 0
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def pixel_hash(image_HWC: np.ndarray) -> str:
    """Hexadecimal SHA-256 of a picture's shape and pixels: equal for identical pictures only, whatever their files."""
    return hashlib.sha256(f"{image_HWC.shape}{image_HWC.dtype}".encode() + image_HWC.tobytes()).hexdigest()


def group(hashes: Sequence[int], thumbs: np.ndarray) -> np.ndarray:
    """Numbers (N,) int64 of groups of near-duplicates, in order of first appearance; all blank pictures form one.

    The pictures are given by N of `perceptual_hash` and their thumbnails (N, 32, 32) uint8.
    """
    codes = np.array(hashes, np.uint64)
    if not len(codes):
        return np.zeros(0, np.int64)
    pictures = _standardised(thumbs)
    blank = np.flatnonzero(~pictures.any(axis=1))
    labels = _joined(np.arange(len(codes)), (blank[1:], blank[:-1]))
    failures = np.zeros(len(codes), np.int64)
    allowed = max(LEAST_FAILURES, FAILURES // len(codes))
    for mask in _masks():
        order = np.lexsort((codes, codes & mask))
        for left, right in _meetings((codes & mask)[order]):
            a, b = order[left], order[right]
            worth = (labels[a] != labels[b]) & (np.bitwise_count(codes[a] ^ codes[b]) <= MAX_DISTANCE)
            worth &= np.minimum(failures[a], failures[b]) < allowed
            a, b = a[worth], b[worth]
            same = _correlation(pictures, a, b) > THRESHOLD
            labels = _joined(labels, (a[same], b[same]))
            failures += np.bincount(np.concatenate([a[~same], b[~same]]), minlength=len(codes))
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse]


def names(ids: Sequence[str], numbers: np.ndarray) -> list[str]:
    """The name of each picture's group: the smallest id in it, so that a picture without duplicate is its own group."""
    smallest = dict(sorted(zip(numbers.tolist(), ids, strict=True), reverse=True))  # the last of each number stays
    return [smallest[number] for number in numbers.tolist()]


@functools.cache
def _hyperplanes() -> np.ndarray:
    """Normals (64, 144), tilted signs from a digest: the same on every machine and with every version of numpy."""
    frequency = np.hypot(*np.mgrid[:FREQUENCIES, :FREQUENCIES]).ravel()
    tilt = np.where(frequency > 0, frequency**TILT, 0)  # the mean grey says nothing
    digest = hashlib.shake_256(b"near-duplicates").digest(BITS * FREQUENCIES**2 // 8)
    signs = np.unpackbits(np.frombuffer(digest, np.uint8)).reshape(BITS, FREQUENCIES**2)
    return (signs * 2.0 - 1) * tilt


def _masks() -> list[np.uint64]:
    """Which bits make the key, for each table: every choice of blocks."""
    width = BITS // BLOCKS
    blocks = [((1 << width) - 1) << (width * number) for number in range(BLOCKS)]
    return [np.uint64(sum(chosen)) for chosen in itertools.combinations(blocks, KEY_BLOCKS)]


def _standardised(thumbs: np.ndarray) -> np.ndarray:
    """Thumbnails (N, 32, 32) as (N, 1024) float32 of mean 0 and norm 1; blank ones as zeros."""
    flat = thumbs.reshape(len(thumbs), -1).astype(np.float32)
    flat -= flat.mean(axis=1, keepdims=True)
    norms = np.sqrt(np.einsum("ij,ij->i", flat, flat))
    scale = np.where(norms < BLANK * SIDE, 0, 1 / np.maximum(norms, 1))
    flat *= scale[:, None].astype(np.float32)
    return flat


def _meetings(keys: np.ndarray) -> Iterator[Pairs]:
    """Pairs of places in sorted `keys` that share a bucket, each pair at most once but for the representatives'."""
    near = max(LEAST_MEETINGS, MEETINGS // len(keys))
    for offset in range(1, min(near, len(keys) - 1) + 1):
        left = np.flatnonzero(keys[offset:] == keys[:-offset])
        if not len(left):
            return
        yield left, left + offset
    first, last = np.searchsorted(keys, keys, "left"), np.searchsorted(keys, keys, "right")
    crowded = np.flatnonzero(last - first > near)
    for number in range(REPRESENTATIVES):
        representative = first + (last - first) * number // REPRESENTATIVES
        yield representative[crowded], crowded


def _correlation(pictures: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    found = np.zeros(len(a), np.float32)
    for part in (slice(start, start + CHUNK) for start in range(0, len(a), CHUNK)):
        np.einsum("ij,ij->i", pictures[a[part]], pictures[b[part]], out=found[part])
    return found


def _joined(labels: np.ndarray, pairs: Pairs) -> np.ndarray:
    """Labels 0, 1, ... after the groups of each pair became one."""
    if not len(pairs[0]):
        return labels
    edges = (np.ones(len(pairs[0]), bool), (labels[pairs[0]], labels[pairs[1]]))
    graph = coo_matrix(edges, shape=(len(labels), len(labels)))
    return connected_components(graph, directed=False)[1][labels]
