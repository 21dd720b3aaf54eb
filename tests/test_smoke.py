"""The whole pipeline, tiny: end to end on eight devices, resumed after a kill, deaf to the ground truth."""

import dataclasses
import json
import pathlib
import shutil

import numpy as np
import pytest
from PIL import Image

from configs import phantom
from tests.test_features import flip
from vgjax import build, checkpoint, parallel, pipeline, stages, train
from vgjax import run as runs
from vgjax.config import ConfigError, Mesh
from vgjax.context import VARIABLES
from vgjax.data.prepare import builder
from vgjax.data.records import from_png
from vgjax.evaluation import summary
from vgjax.evaluation.draw import read_drawn
from vgjax.features.text import encoder_of
from vgjax.models.text_encoder import VocabularyEncoder
from vgjax.sample import Sampler
from vgjax.stages import denoiser
from vgjax.types import SPLITS, Request

STAGES = ("prior", "disentangler", "denoiser")
LARGEST_SEED = (1 << 64) - 1


def small(**changes):
    c = phantom.get_config("smoke")
    # One stage with the schedule that needs the validation scores, another with a loss that joins in some steps, and
    # the largest seed of all.
    own = {"seed": LARGEST_SEED, "prior.train.schedule": "plateau", "denoiser.weight_colour": 0.5}
    c.update_from_flattened_dict({**own, **changes})
    return c


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    run = runs.open_run(small(), str(tmp_path_factory.mktemp("smoke") / "run"))
    runs.run_all(run)
    return run


def fingerprints(run):
    return {s.name: run.artefact(s.name).manifest["info"]["fingerprint"] for s in stages.plan(run.config)}


def test_report_and_metrics_are_written(finished):
    values = json.loads((finished.workdir / "metrics.json").read_text())
    assert 0.0 <= values["control/accuracy_mean"] <= 1.0
    assert values["estimates"]["control/accuracy/colour"]["n"] <= 16
    assert values["control_real/colour"] > 0.9
    assert {f"fingerprint/{s}": f for s, f in fingerprints(finished).items()}.items() <= values.items()
    assert all(values[f"wall_s/{s}"] > 0 for s in STAGES)
    assert values["peak_rss_mb"] > 100
    assert values["artefacts"] == {name: finished.artefact(name).digest for name in finished.producers}
    readings = json.loads(finished.artefact("evaluation").path("readings.json").read_text())
    assert {name: len(rows) for name, rows in readings.items()} == {"captions": 16, "swap": 20, "real": 16}
    page = (finished.workdir / "report.html").read_text()
    assert "perceptual term of stage 1 is off" in page
    assert "://" not in page.replace("http://www.w3.org/2000/svg", "")


ALL_METRICS = ("control", "gain", "swap", "leakage", "wording", "composition", "mask", "prior", "edit", "style")

PICTURED = ("mask", "edit", "style")  # asked for by pictures or masks


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variants", "changes", "left_out"),
    [
        ("smoke", {}, ()),
        ("regression+smoke", {}, PICTURED),
        ("regression+smoke", {"denoiser.learn_from": "text"}, PICTURED),
        ("reference+smoke", {}, PICTURED),
        ("class_label+smoke", {}, (*PICTURED, "swap", "leakage", "composition", "prior", "wording")),
        ("pixart_text+smoke", {}, (*PICTURED, "prior")),
        ("no_alignment+smoke", {}, (*PICTURED, "prior")),
        ("one_channel+smoke", {}, ()),
        ("medart+smoke", {}, (*PICTURED, "prior")),
    ],
)
def test_every_variant_runs_to_its_report(tmp_path, variants, changes, left_out):
    """With every metric that it allows; makers that read a key which they did not declare would stop it."""
    c = phantom.get_config(variants)
    c.data.update(dict(train_items=32, validation_items=16, test_items=16))
    c.evaluate.update(dict(metrics=ALL_METRICS, prompts=8, draws=1))
    c.update_from_flattened_dict(changes)
    run = runs.open_run(c, str(tmp_path / "run"))
    runs.run_all(run)
    values = json.loads((run.workdir / "metrics.json").read_text())
    first = {"control": "control/accuracy_mean", "gain": "control_gain/size", "wording": "plain/accuracy"}
    first |= {"swap": "swap/anatomy", "leakage": "leakage/anatomy", "composition": "composition/gap"}
    first |= {"mask": "mask/iou", "prior": "prior/dice", "edit": "edit/kept/anatomy", "style": "style/colour/text"}
    assert {name for name in ALL_METRICS if first[name] not in values} == set(left_out)


def test_the_colour_loss_joins_in_its_steps_alone(finished):
    rows = train.read_log(finished.artefact("denoiser").folder / train.LOG)
    logged = {row["step"]: row for row in rows if row["kind"] == "train"}
    # Steps 0 and 3, which are the first and the fourth, and what is logged in any case.
    assert [step for step, row in logged.items() if "colour" in row] == [1, 4] and list(logged) == [1, 2, 4, 6]
    for row in logged.values():
        assert row["loss"] == pytest.approx(row["denoise"] + 0.5 * row.get("colour", 0.0), rel=1e-5)


def test_the_same_command_again_makes_nothing(finished):
    kept = lambda: {p: p.stat().st_mtime_ns for p in finished.store.root.rglob("*") if p.is_file()}
    before = kept()
    runs.run_all(runs.open_run(small(), str(finished.workdir)))
    assert kept() == before


def test_the_report_tells_words_that_training_never_saw(finished, monkeypatch):
    told = lambda: [note for note in summary.notes(finished, {}) if note.startswith("Words of test captions")]
    monkeypatch.setattr(summary, "encoder_of", lambda context: VocabularyEncoder.fit(["a lesion in the"], 8))
    (note,) = told()
    unknown = note.removesuffix(".").split(": ")[1].split(", ")
    assert len(set(unknown)) == len(unknown) > 20 and {"a", "the", "lesion"}.isdisjoint(unknown)
    every = [case.caption for case in summary.load_cases(finished.context)]
    monkeypatch.setattr(summary, "encoder_of", lambda context: VocabularyEncoder.fit(every, 1024))
    assert told() == []


def test_sampling_is_reproducible(finished):
    asked = {"prompt": "a small round lesion in the upper left", "modality": "with a red cast"}
    paths = runs.sample.sample_request(finished, asked)
    assert [p.suffix for p in paths] == [".png", ".png", ".json"]
    first = [p.read_bytes() for p in paths]
    runs.draw(finished, n=0, seed=None, **asked)
    assert [p.read_bytes() for p in paths] == first
    settings = json.loads(paths[-1].read_text())
    assert settings["seeds"] == [LARGEST_SEED, 0] and settings["unknown_words"] == []
    assert first[0] != first[1]
    # A seed's picture is the same whichever others are drawn with it.
    alone = runs.sample.sample_request(finished, asked, 1, 0)
    assert alone[0] == paths[1] and alone[0].read_bytes() == first[1]
    assert json.loads(alone[-1].read_text())["seeds"] == [0]


@pytest.mark.parametrize("stage", STAGES)
def test_a_flipped_byte_of_an_export_is_never_drawn_from_nor_measured(finished, tmp_path, stage):
    kept = [path for path in finished.store.root.iterdir() if not path.name.startswith(("drawn", "evaluation"))]
    for path in (path for path in kept if path.is_dir()):
        shutil.copytree(path, tmp_path / "store" / path.name)
    (tmp_path / "run").mkdir()
    shutil.copy(finished.workdir / runs.CONFIG_FILE, tmp_path / "run")
    run = runs.open_run(small(), str(tmp_path / "run"))
    path = run.find(stage).folder / VARIABLES
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    told = f"^the file '{VARIABLES}' of {path.parent} is not as it was made: delete the folder .* and run again$"
    for mode in (lambda: runs.draw(run, 1, None, prompt="a lesion"), lambda: runs.evaluate(run)):
        with pytest.raises(ConfigError, match=told):
            mode()
    assert not (tmp_path / "run" / "samples").exists() and not (tmp_path / "run" / "metrics.json").exists()


def test_a_picture_and_a_mask_draw_without_words(finished):
    rows = finished.context.rows(["pictures"], "test")
    shown = Request(anatomy_image=rows[0]["image"], modality_image=rows[1]["image"])
    asked = [shown, Request(), Request(mask=rows[0]["mask"]), Request(anatomy="a large lesion", mask=rows[0]["mask"])]
    sampler, seeds = Sampler(finished.context), [3, 1, 1, 1]
    inputs = sampler.inputs(asked, seeds)
    pictures = sampler(inputs, seeds)
    assert pictures.shape == (4, 32, 32, 3) and (pictures[0] != pictures[1]).any()
    anatomy = np.asarray(inputs["anatomy"])
    # So short a training barely opens the flow; test_conditions holds it to more.
    assert all(np.abs(anatomy[i] - anatomy[j]).max() > 1e-6 for i in range(4) for j in range(i))
    again = sampler.inputs(asked[:1], [4])  # nothing is left open, so the seed is of the picture's noise alone
    for name, x in again.items():
        np.testing.assert_allclose(x[0], inputs[name][0], atol=1e-5)


def edit(sampler, requests, seeds, strength=None):
    return sampler.edit(sampler.inputs(requests, seeds), requests, seeds, strength)


def test_an_edit_that_asks_nothing_gives_the_picture_back_and_others_change_it(finished):
    rows, sampler = finished.context.rows(["pictures"], "test"), Sampler(finished.context)
    shown = np.stack([from_png(rows[i]["image"]) for i in range(3)]).astype(int)
    plain = [Request(source=rows[i]["image"]) for i in range(3)]
    pictures, error = edit(sampler, plain, [5, 6, 7])
    assert np.abs(pictures - shown).mean() == pytest.approx(error) and error < 1.0
    again, _ = edit(sampler, plain, [8, 8, 8])  # the noise is the pictures', whatever the seed
    np.testing.assert_array_equal(pictures, again)
    changed, same = edit(
        sampler, [dataclasses.replace(one, anatomy_image=rows[9]["image"]) for one in plain], [5, 6, 7]
    )
    assert same == pytest.approx(error) and np.abs(changed - shown).mean() > error
    sampler.config = with_objective(sampler.config, "v")
    with pytest.raises(
        ConfigError, match=r"^config key 'diffusion.objective' is 'v': edit by --strength, or with 'flow'$"
    ):
        edit(sampler, plain, [5, 6, 7])


def with_objective(config, objective):
    return config.model_copy(update={"diffusion": config.diffusion.model_copy(update={"objective": objective})})


def test_the_stronger_the_noise_the_less_is_left_of_an_edited_picture(finished):
    rows, sampler = finished.context.rows(["pictures"], "test"), Sampler(finished.context)
    requests, seeds = [Request(source=rows[i]["image"], modality="dark") for i in range(3)], [1, 2, 3]
    shown = np.stack([from_png(rows[i]["image"]) for i in range(3)]).astype(int)
    pictures = {strength: edit(sampler, requests, seeds, strength) for strength in (0.05, 0.5, 1.0)}
    near, middle, far = (np.abs(one - shown).mean() for one, error in pictures.values() if error is None)
    assert near < middle < far
    drawn = sampler(sampler.inputs(requests, seeds), seeds)
    np.testing.assert_array_equal(pictures[1.0][0], drawn)


def test_the_command_edits_a_picture_and_tells_the_error_of_the_round_trip(finished, tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(finished.context.rows(["pictures"], "test")[0]["image"])
    *drawn, settings = runs.sample.sample_request(finished, {"edit": str(path), "modality": "dark"}, 2)
    told = json.loads(settings.read_text())
    assert 0 <= told["round_trip_error"] < 1 and told["edit"] == str(path) and len(drawn) == 2
    *noised, settings = runs.sample.sample_request(finished, {"edit": str(path), "modality": "dark"}, 2, strength=0.5)
    told = json.loads(settings.read_text())
    assert "round_trip_error" not in told and told["strength"] == 0.5
    assert not set(noised) & set(drawn)


def test_the_command_draws_the_way_from_one_anatomy_to_another(finished, tmp_path):
    ends = [{"anatomy": str(tmp_path / f"{i}.png"), "modality": "dark"} for i in range(2)]
    for i, end in enumerate(ends):
        pathlib.Path(end["anatomy"]).write_bytes(finished.context.rows(["pictures"], "test")[i]["image"])
    *way, settings = runs.sample.sample_request(finished, {**ends[0], "anatomy_to": ends[1]["anatomy"]}, 3, 7)
    first, last = (np.asarray(Image.open(runs.sample.sample_request(finished, end, 1, 7)[0])) for end in ends)
    pictures = [np.asarray(Image.open(path)).astype(int) for path in way]
    assert json.loads(settings.read_text())["seeds"] == [7, 7, 7]
    assert np.abs(pictures[0] - first).max() <= 1 and np.abs(pictures[2] - last).max() <= 1
    assert (first != last).any() and (pictures[1] != pictures[0]).any() and (pictures[1] != pictures[2]).any()


def test_the_picture_of_a_seed_does_not_depend_on_its_batch(finished):
    sampler = Sampler(finished.context)
    texts = ("a large lobed lesion", "", "a small lesion with a blue cast")
    asked, seeds = [Request(prompt=text) for text in texts], [11, 12, 1 << 50]
    together = sampler(sampler.inputs(asked, seeds), seeds)
    for i in range(3):
        alone = sampler(sampler.inputs(asked[i : i + 1], seeds[i : i + 1]), seeds[i : i + 1])[0]
        assert np.abs(alone.astype(int) - together[i]).max() <= 1
    assert np.abs(together[0].astype(int) - together[1]).max() > 1


class Killed(Exception):
    pass


@pytest.mark.parametrize("stage", [pytest.param("prior", marks=pytest.mark.slow), "disentangler", "denoiser"])
def test_a_killed_stage_ends_as_an_uninterrupted_one(finished, tmp_path, monkeypatch, stage):
    """Killed between two checkpoints, started again: the same bytes."""
    for artefact in finished.store.root.iterdir():
        if artefact.is_dir() and not artefact.name.startswith(("drawn", "evaluation", stage)):
            shutil.copytree(artefact, tmp_path / "store" / artefact.name)
    run = runs.open_run(small(), str(tmp_path / "run"))
    log_step = train.Log.step

    def killing(self, step, terms, waited):
        if step == 5:
            raise Killed
        log_step(self, step, terms, waited)

    monkeypatch.setattr(train.Log, "step", killing)
    with pytest.raises(Killed):
        runs.train(run)
    monkeypatch.setattr(train.Log, "step", log_step)
    assert not run.find(stage)
    states = {name: state for name, state, _ in run.store.status([run.recipe(stage)])}
    assert set(states.values()) == {"unfinished"}
    noted, note = [], train.after_validation
    monkeypatch.setattr(train, "after_validation", lambda state, score: noted.append(score) or note(state, score))
    runs.train(run)
    assert bool(noted) == (stage == "prior")  # of the stages, the one with the schedule that needs validation scores
    assert fingerprints(run) == fingerprints(finished)
    rows = train.read_log(run.artefact(stage).folder / train.LOG)
    steps = [row["step"] for row in rows if row["kind"] == "train"]
    assert steps == sorted(set(steps))  # nothing logged twice


@pytest.mark.slow
def test_picture_records_damaged_after_stage_one_cost_themselves_and_not_the_run(finished, tmp_path, caplog):
    for name in ("pictures", "vocabulary", "wordings", "prior"):
        shutil.copytree(finished.artefact(name).folder, tmp_path / "store" / finished.artefact(name).folder.name)
    for split in SPLITS:
        (shard,) = (tmp_path / "store").glob(f"pictures-*/{builder.shards('phantom', split)}")
        flip(shard, row=4)
    run = runs.open_run(small(), str(tmp_path / "run"))
    runs.run_all(run)
    assert run.artefact("factors").manifest["info"]["absent"] == {"train": [4], "validation": [4]}
    assert fingerprints(run)["prior"] == fingerprints(finished)["prior"]
    assert len([told for told in caplog.messages if "1 damaged records" in told]) == len(SPLITS)
    captions = [case.caption for case in summary.load_cases(finished.context)]
    shown = [request.prompt for request in read_drawn(run.context, "captions").requests]
    assert shown[:15] == captions[:4] + captions[5:] and len(shown) == 16


def test_training_never_sees_factors_or_labels(finished, tmp_path):
    run = runs.open_run(small(**{"data.noise_factors": True}), str(tmp_path / "run"))
    runs.train(run)
    assert fingerprints(run) == fingerprints(finished)


def test_one_device_and_eight_agree(finished):
    """The denoiser stage's loss and gradients on a (2, 2, 2) mesh and on one device, from trained weights."""
    import jax

    stage = denoiser.Denoising(finished.context)
    params = finished.context.variables("denoiser")["params"]
    source = stage.source("train")
    rows = [stage.example(source[i]) for i in range(8)]
    batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    frozen = stage.frozen

    def total(params, batch):
        terms = stage.colour_loss(params, {}, frozen, batch, jax.random.key(0))[0]
        return terms["denoise"].mean() + terms["colour"].mean()

    wanted = jax.device_get(jax.jit(jax.value_and_grad(total))(params, batch))
    mesh = parallel.make_mesh(Mesh(data=2, fsdp=2, tensor=2))
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, parallel.shardings(params, mesh))
        got = jax.device_get(jax.jit(jax.value_and_grad(total))(placed, parallel.to_global(batch, mesh)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5, rtol=1e-3), got, wanted)


def test_every_part_of_stage_three_gets_gradient(finished):
    import jax

    stage = denoiser.Denoising(finished.context)
    source = stage.source("train")
    rows = [stage.example(source[i]) for i in range(8)]
    batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    params = finished.context.variables("denoiser")["params"]
    frozen = stage.frozen
    grads = jax.jit(jax.grad(lambda p: stage.loss(p, {}, frozen, batch, jax.random.key(0))[0]["denoise"].mean()))(
        params
    )
    silent = [
        parallel.path_name(path)
        for path, g in jax.tree_util.tree_leaves_with_path(grads)
        if not np.abs(g).max() > 0 and "to_k/bias" not in parallel.path_name(path)  # a key bias cancels in the softmax
    ]
    assert silent == []


def test_contracts(finished):
    """Shapes and scale at every contract of pipeline.py, on the trained run."""
    import chex
    import jax
    import jax.numpy as jnp

    config = finished.config
    prior = build.Model(build.prior(config), finished.context.variables("prior"))
    image = jnp.zeros((3, 32, 32, 3))
    stats = checkpoint.load_export(finished.artefact("factors").path("statistics.safetensors"))
    factors = pipeline.image_factors(prior, stats, image)
    grid, k, z = config.prior.grid, config.prior.anatomy_factors + 1, config.prior.modality_factors
    chex.assert_shape(factors.anatomy_BggK, (3, grid, grid, k))
    chex.assert_shape(factors.modality_BZ, (3, z))
    chex.assert_shape(factors.pooled(), (3, k))
    regression = build.disentangler(config)
    text = jnp.ones((3, config.text_encoder.width))
    variables = jax.eval_shape(lambda: regression.init(jax.random.key(0), text, train=False))
    predicted = jax.eval_shape(lambda v: pipeline.text_factors(build.Model(regression, v), text, grid), variables)
    chex.assert_trees_all_equal_shapes(predicted, factors)
    trained = denoiser.Trained(finished.context)
    inputs = trained.condition.from_requests(
        trained.variables["frozen"], [Request(prompt="a lesion")] * 3, [0, 1, 2], encoder_of(finished.context)
    )
    chex.assert_trees_all_equal_shapes(inputs, pipeline.to_components(factors, trained.variables["frozen"]["basis"]))
    assert {name: x.shape[1] for name, x in inputs.items()} == build.factor_sizes(config)
    keep = dict.fromkeys(trained.condition.channels, jnp.ones(3, bool))
    tokens = trained.to_tokens(trained.variables, inputs, keep)
    chex.assert_shape(tokens.tokens_BND, (3, 2, config.denoiser.token_width))
    with pytest.raises(AssertionError):
        pipeline.image_factors(prior, stats, image[0])


def test_another_guidance_weight_recompiles_nothing(finished):
    drawer = Sampler(finished.context)
    inputs = drawer.inputs([Request(prompt="a large lobed lesion")] * 2, [0, 1])
    plain = drawer(inputs, [0, 1])
    strong = drawer(inputs, [0, 1], {"anatomy": 6.0, "modality": 6.0})
    assert (plain != strong).any() and drawer.compilations == 1
    drawer(inputs, [0, 1], {"anatomy": 3.0, "modality": 1.0})  # of which more branches are evaluated
    assert drawer.compilations == 2


def test_per_image_scaling_fills_the_range():
    rng = np.random.default_rng(0)
    pictures = np.stack([rng.integers(90, 140, (8, 8, 3)), np.full((8, 8, 3), 7)]).astype(np.uint8)
    scaled = np.asarray(pipeline.to_unit_range(pictures, "per_image"))
    assert (scaled[0].min(), scaled[0].max()) == (-1.0, 1.0)
    assert np.isfinite(scaled[1]).all()
    kept = np.asarray(pipeline.to_unit_range(pictures, "dataset"))
    np.testing.assert_allclose(kept, pictures / 127.5 - 1.0, atol=1e-6)
