import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from configs import phantom
from tests.parity.random_weights import load_golden
from vgjax import build, pipeline
from vgjax import config as configs
from vgjax.config import ConfigError
from vgjax.models.autoencoder import PixelAutoencoder, TrainedAutoencoder
from vgjax.weights import from_torch

FACTOR, CHANNELS = 4, 4  # of both goldens


def tensors_of(kind: str) -> dict[str, np.ndarray]:
    return {name: a.astype(np.float32) for name, a in load_golden(kind)[0].items()}


def config_with(kind: str, path: pathlib.Path | str, **changes) -> configs.Config:
    c = phantom.get_config("smoke")
    c.update_from_flattened_dict({"data.image_size": 64, "denoiser.patch": 2})
    c.autoencoder.update(dict(kind=kind, path=str(path), channels=CHANNELS, factor=FACTOR))
    c.update_from_flattened_dict(changes)
    return configs.from_config_dict(c)


@pytest.fixture
def weights_file(tmp_path) -> pathlib.Path:
    save_file(tensors_of("autoencoder_tiny"), tmp_path / "tiny.safetensors")
    return tmp_path / "tiny.safetensors"


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (2, 16, 16, 3)).astype(np.float32)


def test_pixels_are_their_own_latents(image):
    coder = PixelAutoencoder()
    np.testing.assert_array_equal(coder.encode(image), 2 * image)
    np.testing.assert_array_equal(coder.decode(coder.encode(image)), image)
    assert (coder.factor, coder.channels) == (1, 3) and not jax.tree.leaves(coder)


def test_kl_latents_are_the_mean_at_the_weights_own_scale(image):
    config = {"norm_num_groups": 4, "scaling_factor": 0.25, "shift_factor": 0.5}
    coder = TrainedAutoencoder(*from_torch("autoencoder_kl", tensors_of("autoencoder_kl"), config))

    @jax.jit
    def both(coder, image):
        mean, _ = coder.module.apply(coder.variables, image, method="posterior")
        latents = coder.encode(image)
        return mean, latents, coder.decode(latents), coder.module.apply(coder.variables, image)

    mean, latents, decoded, rebuilt = both(coder, image)
    np.testing.assert_allclose(latents, (mean - 0.5) / 4, rtol=0, atol=1e-6)
    np.testing.assert_allclose(decoded, rebuilt, rtol=0, atol=1e-4)
    assert latents.shape == (2, 16 // FACTOR, 16 // FACTOR, CHANNELS)
    assert (coder.factor, coder.channels) == (FACTOR, CHANNELS)


def test_tiny_latents_are_taken_as_they_are(image):
    coder = TrainedAutoencoder(*from_torch("autoencoder_tiny", tensors_of("autoencoder_tiny")))
    latents = coder.encode(image)
    np.testing.assert_array_equal(latents, coder.module.apply(coder.variables, image, method="encode"))
    assert latents.shape == (2, 16 // FACTOR, 16 // FACTOR, CHANNELS)
    assert (coder.factor, coder.channels) == (FACTOR, CHANNELS)
    assert coder.decode(latents).shape == image.shape


def test_weights_are_read_once(weights_file):
    config = config_with("tiny", weights_file)
    coder = build.autoencoder(config)
    assert isinstance(coder, TrainedAutoencoder) and coder.channels == CHANNELS
    weights_file.unlink()
    other = config_with("tiny", weights_file.parent)  # another path has to be read
    assert build.autoencoder(config) is coder
    assert build.dit(config).out_channels == CHANNELS
    with pytest.raises(ConfigError, match="holds 0 weight files"):
        build.autoencoder(other)


@pytest.mark.parametrize("kind", ["kl", "tiny"])
@pytest.mark.parametrize("path", ["", "no/such/file.safetensors"])
def test_weights_must_be_named(kind, path):
    with pytest.raises(ConfigError, match=rf"autoencoder\.path' is ('{path}'|empty) with autoencoder\.kind '{kind}'"):
        config_with(kind, path)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"data.image_size": 34 * 4, "prior.grid": 17, "denoiser.patch": 4}, r"denoiser\.patch.*latent size 34"),
        ({"denoiser.patch": 4, "prior.grid": 8}, r"prior\.grid.*4 patches"),
        ({"autoencoder.factor": 128}, r"data\.image_size' is 64.*divisible by 128"),
        ({"autoencoder.kind": "pixel"}, r"channels' is 4 and autoencoder\.factor 4: .*must be 3 and 1"),
    ],
)
def test_sizes_must_fit_the_latents(weights_file, changes, match):
    with pytest.raises(ConfigError, match=match):
        config_with("tiny", weights_file, **changes)


@pytest.mark.parametrize(("key", "value"), [("channels", 8), ("factor", 8)])
def test_the_weights_must_be_as_the_config_says(weights_file, key, value):
    config = config_with("tiny", weights_file, **{f"autoencoder.{key}": value})
    with pytest.raises(ConfigError, match=r"autoencoder\.channels.*but the weights .* have 4 and 4"):
        build.autoencoder(config)


def test_only_colour_pictures_are_served(tmp_path):
    tensors = tensors_of("autoencoder_tiny")
    tensors["encoder.layers.0.weight"] = tensors["encoder.layers.0.weight"][:, :1].copy()
    for leaf in ("weight", "bias"):
        tensors[f"decoder.layers.11.{leaf}"] = tensors[f"decoder.layers.11.{leaf}"][:1].copy()
    save_file(tensors, tmp_path / "grey.safetensors")
    with pytest.raises(ConfigError, match="made for 1 colour channels"):
        build.autoencoder(config_with("tiny", tmp_path / "grey.safetensors"))


# ---------------------------------------------------------------- real weights on real pictures

REAL = {
    "ham10000": "HAM10000_images_part_*/*.jpg",
    "kvasir-seg": "Kvasir-SEG/images/*.jpg",
    "busi": "Dataset_BUSI_with_GT/*/*).png",
    "covid-chestxray-dataset": "images/*.*",
}
PICTURES, SIDE, LEAST_PSNR = 12, 256, 32.0


def centre(path: pathlib.Path) -> np.ndarray:
    """The central SIDE x SIDE pixels, of a picture whose shorter side is made at least that."""
    with Image.open(path) as file:
        picture = file.convert("RGB")
    scale = max(1.0, SIDE / min(picture.size))
    picture = picture.resize([max(SIDE, round(n * scale)) for n in picture.size], Image.Resampling.LANCZOS)
    left, top = ((n - SIDE) // 2 for n in picture.size)
    return np.asarray(picture.crop((left, top, left + SIDE, top + SIDE)))


@pytest.mark.slow
@pytest.mark.parametrize("dataset", REAL)
def test_taef2_rebuilds_medical_pictures(data_root, dataset):
    weights = data_root.parent / "models" / "taef2"
    if not weights.is_dir():
        pytest.skip(f"no weights in {weights}")
    coder = build.autoencoder(config_with("tiny", weights, **{"autoencoder.channels": 32, "autoencoder.factor": 8}))
    files = sorted((data_root / dataset).glob(REAL[dataset]))
    chosen = [files[i] for i in np.linspace(0, len(files) - 1, PICTURES).astype(int)]
    rebuild = jax.jit(lambda coder, x: coder.decode(coder.encode(x)))
    psnr, scales = [], []
    for path in chosen:
        image = pipeline.to_unit_range(jnp.asarray(centre(path))[None], "dataset")
        scales.append(float(coder.encode(image).std()))
        error = np.square(np.clip(rebuild(coder, image), -1, 1) - image).mean()
        psnr.append(10 * np.log10(4 / error))
    print(f"{dataset}: median {np.median(psnr):.2f} dB, least {min(psnr):.2f}; latents' scale {np.mean(scales):.2f}")
    assert np.median(psnr) >= LEAST_PSNR
    assert 0.3 < np.mean(scales) < 3
