"""Stage 3 from pretrained weights: latents made once, an adapter trained, exported, and brought back in."""

import functools
import json
import os
import pathlib
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from configs import phantom
from tests.parity.random_weights import load_golden
from vgjax import build, export, parallel, pipeline, weights
from vgjax import config as configs
from vgjax import run as runs
from vgjax.config import ConfigError
from vgjax.context import Context
from vgjax.data import records
from vgjax.diffusion import guidance
from vgjax.features import latents
from vgjax.provenance import fingerprint
from vgjax.sample import Sampler, guidance_weights
from vgjax.stages import denoiser
from vgjax.types import Request

STAGES = ("prior", "disentangler", "denoiser")


def write_weights(folder: pathlib.Path) -> None:
    """A small transformer in diffusers' layout and a small autoencoder."""
    tensors, _, settings = load_golden("pixart_512")
    (folder / "transformer").mkdir()
    (folder / "transformer" / "config.json").write_text(json.dumps(settings["config"]))
    narrow = {name: a.astype(np.float32) for name, a in tensors.items()}
    save_file(narrow, folder / "transformer" / "diffusion_pytorch_model.safetensors")
    tiny = {name: a.astype(np.float32) for name, a in load_golden("autoencoder_tiny")[0].items()}
    save_file(tiny, folder / "tiny.safetensors")


def small(folder: pathlib.Path, **changes):
    c = phantom.get_config("reference+smoke")
    c.denoiser.update(dict(width=24, depth=2, heads=2, patch=2, token_width=20, learn_sigma=True, position_cells=4))
    c.denoiser.lora.rank = 2
    c.denoiser.weights, c.denoiser.train.clip_part = str(folder), "lora"
    c.autoencoder.update(dict(kind="tiny", path=str(folder / "tiny.safetensors"), channels=4, factor=4))
    c.update_from_flattened_dict(changes)
    return c


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    made = tmp_path_factory.mktemp("weights")
    write_weights(made)
    return made


def random_variables(module, *inputs):
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *inputs))
    return jax.tree.map(lambda leaf: rng.uniform(0.05, 0.2, leaf.shape).astype(leaf.dtype), shapes)


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    """Stages 1 and 2 from files of random weights, stage 3 trained."""
    config = configs.from_config_dict(small(folder))
    inputs = {"sdnet": (np.zeros((1, 32, 32, 3)),), "text_disentangler": (np.zeros((1, 1024)), False)}
    modules = {"sdnet": build.prior(config), "text_disentangler": build.disentangler(config)}
    for kind, module in modules.items():
        tensors = weights.to_torch(kind, random_variables(module, *inputs[kind]))
        save_file(tensors, folder / f"{kind}.safetensors")
    given = {
        "prior.weights": str(folder / "sdnet.safetensors"),
        "disentangler.weights": str(folder / "text_disentangler.safetensors"),
    }
    run = runs.open_run(small(folder, **given), str(tmp_path_factory.mktemp("pretrained") / "run"))
    runs.train(run)
    runs.write_export(run, "")
    return run


def test_latents_are_those_of_the_pictures(trained):
    coder = build.autoencoder(trained.config)
    for split, count in (("train", 64), ("validation", 32)):
        rows = trained.context.rows(["pictures", "latents"], split)
        assert len(rows) == count
        image = pipeline.to_unit_range(records.from_png(rows[3]["image"])[None], trained.config.data.intensity)
        assert rows[3]["latents"].shape == (1, 8, 8, 4) and rows[3]["latents"].dtype == np.float16
        np.testing.assert_allclose(rows[3]["latents"], coder.encode(image), rtol=2e-3, atol=2e-3)


def test_only_adapter_and_fusion_module_are_trained(trained):
    exported = trained.context.variables("denoiser")
    assert set(exported["params"]) == {"condition", "lora"}
    ups = [a for path, a in jax.tree.leaves_with_path(exported["params"]["lora"]) if "up" in str(path[-1])]
    assert all(np.abs(up).max() > 0 for up in ups)  # they start at zero
    stage = denoiser.Denoising(trained.context)
    wanted = denoiser.load_transformer(trained.config)
    assert fingerprint(stage.frozen["dit"]) == fingerprint(wanted)


def test_exported_files_bring_the_run_back(trained, folder, tmp_path):
    out = trained.workdir / "export"
    given = {
        "prior.weights": str(out / "sdnet.safetensors"),
        "disentangler.weights": str(out / "text_disentangler.safetensors"),
        "denoiser.hffm_weights": str(out / "hffm.safetensors"),
        "denoiser.lora.weights": str(out / "lora"),
    }
    run = runs.open_run(small(folder, **given), str(tmp_path / "run"))
    runs.train(run)
    for stage in STAGES:
        again, first = (r.artefact(stage).manifest["info"] for r in (run, trained))
        assert again["fingerprint"] == first["fingerprint"]
        assert (again["step"], first["step"]) == (0, 6 * (stage == "denoiser"))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"denoiser.width": 32}, r"denoiser\.weights.*denoiser\.width asks for width 32 where the weights have 24"),
        ({"denoiser.heads": 4}, r"heads 4 where the weights have 2"),
        ({"denoiser.token_width": 32}, r"token_width is 32 where the weights have 20"),
        ({"autoencoder.channels": 8, "denoiser.learn_sigma": False}, r"autoencoder\.channels.*8 and 4.*have 4 and 4"),
        ({"autoencoder.factor": 2}, r"autoencoder\.factor.*have 4 and 4"),
    ],
)
def test_weights_of_another_size_are_refused_before_any_work(folder, tmp_path, changes, match):
    run = runs.open_run(small(folder, **changes), str(tmp_path / "run"))
    with pytest.raises(ConfigError, match=match):
        runs.train(run)
    assert not (run.workdir / "records").exists()


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"prior.weights": "hffm.safetensors"}, r"prior\.weights.*a_encoder.*is missing"),
        ({"disentangler.weights": "hffm.safetensors"}, r"disentangler\.weights.*is missing"),
        ({"denoiser.hffm_weights": "sdnet.safetensors", "denoiser.lora.weights": "lora"}, r"hffm_weights.*is missing"),
        (
            {"denoiser.hffm_weights": "hffm.safetensors", "denoiser.lora.weights": "lora", "denoiser.lora.alpha": 4.0},
            r"denoiser\.lora\.alpha.*another scale",
        ),
        (
            {
                "denoiser.hffm_weights": "hffm.safetensors",
                "denoiser.lora.weights": "lora",
                "denoiser.lora.targets": ("to_q",),
            },
            r"denoiser\.lora\.weights.*other layers",
        ),
    ],
)
def test_given_files_must_fit(trained, folder, tmp_path, changes, match):
    out = trained.workdir / "export"
    named = {key: str(out / value) if key.endswith("weights") else value for key, value in changes.items()}
    run = runs.open_run(small(folder, **named), str(tmp_path / "run"))
    with pytest.raises(ConfigError, match=match):
        runs.check_weights(run)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"denoiser.hffm_weights": "a"}, r"name both or neither"),
        ({"denoiser.lora.weights": "a"}, r"name both or neither"),
        ({"denoiser.weights": ""}, r"set both or neither"),
        ({"prior.weights": "a", "prior.variant": "default"}, r"use the variant :reference"),
        (
            {"denoiser.hffm_weights": "a", "denoiser.lora.weights": "b", "denoiser.condition": "factors"},
            r"use the variant :reference",
        ),
        ({"denoiser.flip": True}, None),
    ],
)
def test_combinations_are_checked(folder, changes, match):
    if not match:
        assert configs.from_config_dict(small(folder, **changes)).denoiser.flip
        return
    with pytest.raises(ConfigError, match=match):
        configs.from_config_dict(small(folder, **changes))


def test_exported_folder_is_complete(trained):
    out = trained.workdir / "export"
    names = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    networks = {"sdnet.safetensors", "text_disentangler.safetensors", "hffm.safetensors"}
    adapter = {"lora/adapter_model.safetensors", "lora/adapter_config.json"}
    assert names == {*networks, *adapter, "factors.safetensors", "example.py"}
    assert json.loads((out / "lora" / "adapter_config.json").read_text())["r"] == 2
    text = (out / "example.py").read_text()
    compile(text, "example.py", "exec")
    assert len(text.splitlines()) <= 30
    assert not [word for word in ("STEPS", "GUIDANCE", "BETA_", "LOAD_") if word in text]


def test_what_diffusers_cannot_compute_is_not_exported():
    with pytest.raises(ConfigError, match=r"denoiser\.condition.*:reference"):
        export.check(configs.from_config_dict(phantom.get_config()))
    c = phantom.get_config("reference+smoke")
    c.sample.guidance.anatomy = 2.0
    with pytest.raises(ConfigError, match=r"sample\.guidance\.anatomy"):
        export.check(configs.from_config_dict(c))


@pytest.mark.slow
@pytest.mark.parametrize("adapted", [True, False])
def test_the_example_draws_what_we_draw(trained, folder, tmp_path, adapted):
    """VGJAX_TORCH_PYTHON names a Python that has torch, diffusers and peft."""
    python = os.environ.get("VGJAX_TORCH_PYTHON")
    if not python:
        pytest.skip("VGJAX_TORCH_PYTHON names no Python with torch, diffusers and peft")
    run = trained
    if not adapted:  # a transformer of our own, trained whole
        c = small(folder, **{"denoiser.weights": "", "denoiser.train.clip_part": ""})
        c.denoiser.lora.rank = 0
        run = runs.open_run(c, str(tmp_path / "run"))
        runs.train(run)
        runs.write_export(run, "a small round lesion in the upper left")
    out = run.workdir / "export"
    source = folder / "transformer" if adapted else out / "transformer"
    subprocess.run([python, "example.py", str(source.absolute())], cwd=out, check=True)
    given = load_file(out / "factors.safetensors")
    model, c = denoiser.Trained(run.context), run.config
    inputs = {name: given[name] for name in model.condition.channels}
    kept = guidance.branches(guidance_weights(c, model.condition.channels))
    coefficients = jnp.asarray(guidance.coefficients(kept, guidance_weights(c, model.condition.channels)))
    ours = pipeline.generate(
        functools.partial(model.to_tokens, model.variables),
        build.Model(model.dit, model.variables["dit"]),
        inputs,
        given["noise"].transpose(0, 2, 3, 1),
        pipeline.Sampling(build.process(c), c.sample.solver, c.sample.steps),
        guidance.Guidance(model.condition.channels, kept, coefficients),
    )
    theirs = load_file(out / "latents.safetensors")["latents"].transpose(0, 2, 3, 1)
    scale = np.abs(theirs).max()
    print(f"largest latent {scale:.3g}, largest difference {np.abs(ours - theirs).max():.3g}")
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-3 * max(scale, 1.0))


# ---------------------------------------------------------------- mirroring


def test_both_views_are_encoded_and_drawn(folder):
    config = configs.from_config_dict(small(folder, **{"denoiser.flip": True}))
    coder, rng = build.autoencoder(config), np.random.default_rng(0)
    image = rng.integers(0, 256, (16, 32, 32, 3), np.uint8)
    both = jax.jit(lambda coder, x: latents.views(coder, x, config))(coder, image)
    assert both.shape == (16, 2, 8, 8, 4)
    mirrored = pipeline.to_unit_range(image[:, :, ::-1], config.data.intensity)
    np.testing.assert_allclose(both[:, 1], coder.encode(mirrored), atol=1e-5)
    assert np.abs(both[:, 1] - both[:, 0, :, ::-1]).max() > 1e-3  # not the mirrored latents
    functions = denoiser.Denoising(Context(config, parallel.make_mesh(config.mesh), {}.__getitem__))
    drawn = np.asarray(functions.latents({"latents": both}, jax.random.key(0)))
    second = np.array([np.array_equal(d, b) for d, b in zip(drawn, both[:, 1], strict=True)])
    first = np.array([np.array_equal(d, b) for d, b in zip(drawn, both[:, 0], strict=True)])
    assert (first ^ second).all() and 0 < second.sum() < 16
    np.testing.assert_array_equal(functions.latents({"latents": both}, None), both[:, 0])


def test_mirroring_is_refused_where_captions_tell_the_sides_apart(folder, tmp_path):
    run = runs.open_run(small(folder, **{"denoiser.flip": True}), str(tmp_path / "run"))
    with pytest.raises(ConfigError, match=r"denoiser\.flip' is True, but \d+ of 96 captions say left or right"):
        runs.prepare(run)


def test_pictures_are_drawn_through_the_autoencoder(trained):
    sampler = Sampler(trained.context)
    pictures = sampler(sampler.inputs([Request(prompt="a small lesion")] * 2, [0, 1]), [0, 1])
    assert pictures.shape == (2, 32, 32, 3) and pictures.dtype == np.uint8
