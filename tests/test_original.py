"""Black Forest Labs' files: names and order of parts match diffusers' conversion."""

import inspect
import shutil
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.loaders import single_file_utils
from helpers import tiny
from safetensors.numpy import save_file

from flux_jax.errors import InputError
from flux_jax.models.transformer import FluxConfig
from flux_jax.models.vae import VAEConfig
from flux_jax.pipeline import load
from flux_jax.sharding import make
from flux_jax.tree import flatten, nest
from flux_jax.weights import original, sizes
from flux_jax.weights.loading import abstract_params, read_params
from flux_jax.weights.mapping import to_flax, to_torch
from flux_jax.weights.rules import Table
from flux_jax.weights.source import open_source, read_schedule
from flux_jax.weights.tables import TRANSFORMER, VAE

AXES = sizes.ROPE_AXES


def arrays(model: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in model.state_dict().items()}


def rewritten(name: str, model, old: Table, new: Table) -> dict[str, np.ndarray]:
    """A model's tensors in another layout."""
    params = to_flax(old, arrays(model), abstract_params(name, model.config))
    return to_torch(new, params)


def diffusers_transformer(checkpoint: dict, width: int) -> dict[str, torch.Tensor]:
    """Diffusers' conversion of a transformer's tensors; its converter supports only one width."""
    function = single_file_utils.convert_flux_transformer_checkpoint_to_diffusers
    source = inspect.getsource(function)
    assert source.count("3072") == 1
    space = {"torch": torch}
    exec(source.replace("3072", str(width)), space)
    return space[function.__name__](checkpoint)


@pytest.mark.slow
@pytest.mark.parametrize(
    "sizes",
    [
        {"heads": 1},
        {"heads": 2, "dual": 1, "single": 12, "guidance": False},
        {"heads": 1, "dual": 11, "single": 1, "channels": 2},
    ],
    ids=["dev", "schnell", "deep"],
)
def test_transformer_is_what_diffusers_converts(sizes: dict, tmp_path: Path):
    model = tiny.transformer(axes=AXES, **sizes)
    tensors = rewritten("transformer", model, TRANSFORMER, original.TRANSFORMER)
    checkpoint = {name: torch.from_numpy(np.array(value)) for name, value in tensors.items()}
    theirs = diffusers_transformer(checkpoint, model.config.num_attention_heads * sum(AXES))
    assert not checkpoint, "a tensor that diffusers does not know"
    state = model.state_dict()
    assert theirs.keys() == state.keys()
    for name, value in state.items():
        assert torch.equal(theirs[name], value), name

    save_file({n: np.ascontiguousarray(t) for n, t in tensors.items()}, tmp_path / "x.safetensors")
    source = open_source(tmp_path, "transformer")
    assert FluxConfig.from_dict(source.config) == FluxConfig.from_dict(
        {**model.config, "out_channels": model.out_channels}
    )
    params = read_params(source, "transformer", jnp.float32, make({}))
    wanted = to_flax(TRANSFORMER, arrays(model), abstract_params("transformer", model.config))
    jax.tree.map(np.testing.assert_array_equal, params, wanted)


@pytest.mark.slow
@pytest.mark.parametrize(("widths", "layers"), [((32, 64), 1), ((32, 32, 64, 64), 2)])
def test_autoencoder_is_what_diffusers_converts(widths, layers, tmp_path: Path):
    model = tiny.vae(widths=widths, layers=layers)
    tensors = rewritten("vae", model, VAE, original.vae_table(len(widths)))
    checkpoint = {name: torch.from_numpy(np.array(value)) for name, value in tensors.items()}
    theirs = single_file_utils.convert_ldm_vae_checkpoint(checkpoint, model.config)
    state = model.state_dict()
    assert {name for name, value in theirs.items() if value is not None} == state.keys()
    for name, value in state.items():
        assert torch.equal(theirs[name], value), name

    save_file({n: np.ascontiguousarray(t) for n, t in tensors.items()}, tmp_path / "x.safetensors")
    source = open_source(tmp_path, "vae")
    config = VAEConfig.from_dict(source.config)
    assert (config.block_out_channels, config.layers_per_block) == (widths, layers)
    assert (config.latent_channels, config.scaling_factor, config.shift_factor) == (
        4, 0.3611, 0.1159
    )  # fmt: skip
    params = read_params(source, "vae", jnp.float32, make({}))
    wanted = to_flax(VAE, arrays(model), abstract_params("vae", model.config))
    jax.tree.map(np.testing.assert_array_equal, params, wanted)


@pytest.fixture(scope="module")
def folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline whose transformer and autoencoder are single files; read-only."""
    made = tmp_path_factory.mktemp("original") / "FLUX.1-tiny"
    skipped = shutil.ignore_patterns("transformer", "vae", "scheduler", "model_index.json")
    shutil.copytree(tiny_folder, made, ignore=skipped)
    model = tiny.transformer(axes=AXES, heads=1)
    for name, tensors in (
        ("flux1-dev", rewritten("transformer", model, TRANSFORMER, original.TRANSFORMER)),
        ("ae", rewritten("vae", tiny.vae(widths=(32, 64)), VAE, original.vae_table(2))),
    ):
        plain = {key: np.ascontiguousarray(tensor) for key, tensor in tensors.items()}
        save_file(plain, made / f"{name}.safetensors")
    return made


@pytest.mark.slow
def test_a_folder_of_single_files_is_a_pipeline(folder: Path):
    pipe = load(folder)
    assert pipe.schedule.use_dynamic_shifting
    picture = pipe(["a red apple"], seeds=[1], steps=2, height=16, width=16)
    assert picture.shape == (1, 16, 16, 3)
    # The transformer's file, passed by name, is found beside the rest.
    named = load(folder / "flux1-dev.safetensors")
    again = named(["a red apple"], seeds=[1], steps=2, height=16, width=16)
    np.testing.assert_array_equal(picture, again)


def test_schedules_follow_guidance(folder: Path, tiny_folder: Path):
    assert read_schedule(folder, False)["use_dynamic_shifting"] is False
    assert read_schedule(folder, False)["shift"] == 1.0
    assert read_schedule(folder / "flux1-dev.safetensors", True)["max_shift"] == 1.15
    # If the file exists it is read.
    assert "_diffusers_version" in read_schedule(tiny_folder, True)


def test_a_schedule_that_is_guessed_without_guidance_is_told_of_once(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    # A long path would be shortened.
    monkeypatch.chdir(tmp_path)
    file = Path("flux1-dedistilled.safetensors")
    file.touch()
    read_schedule(file, True)
    assert not capsys.readouterr().err
    read_schedule(file, False)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"note: {file}: FLUX.1 [schnell]'s schedule is used, since the transf")
    assert "embeds no guidance" in line
    assert line.endswith("put its scheduler_config.json into scheduler")
    assert len(line) <= 400
    read_schedule(file, False)
    shutil.copytree(tiny_folder / "scheduler", tmp_path / "scheduler")
    assert "_diffusers_version" in read_schedule(file, False)
    assert not capsys.readouterr().err


def test_bundled_names_are_read_and_others_refused(folder: Path, tmp_path: Path):
    source = open_source(folder, "transformer")
    tensors = {name: np.asarray(tensor) for name, tensor in source.tensors.items()}
    bundled = {f"{original.BUNDLED}{name}": tensor for name, tensor in tensors.items()}
    save_file(bundled, tmp_path / "all.safetensors")
    assert open_source(tmp_path, "transformer").tensors.keys() == tensors.keys()

    shutil.copy(tmp_path / "all.safetensors", tmp_path / "again.safetensors")
    with pytest.raises(InputError, match=r"again\.safetensors, all\.safetensors all contain a tr"):
        open_source(tmp_path, "transformer")
    with pytest.raises(InputError, match=r"no weights of the vae; expected a folder vae with conf"):
        open_source(tmp_path, "vae")
    with pytest.raises(InputError, match=r"ae\.safetensors: no weights of the transformer"):
        open_source(folder / "ae.safetensors", "transformer")


def test_offenders_are_named_as_in_the_file(folder: Path, tmp_path: Path):
    source = open_source(folder, "transformer")
    tensors = {name: np.array(tensor) for name, tensor in source.tensors.items()}
    del tensors["single_blocks.2.linear1.bias"], tensors["img_in.bias"]
    tensors["extra"] = np.ones(3, np.float32)
    tensors["txt_in.bias"] = tensors["txt_in.bias"][:-1]
    save_file(tensors, tmp_path / "flux.safetensors")
    with pytest.raises(InputError) as caught:
        read_params(open_source(tmp_path, "transformer"), "transformer", jnp.float32, make({}))
    said = str(caught.value)
    assert said.startswith(f"{tmp_path}/flux.safetensors: 4 tensors")
    assert len(said) <= 400
    for part in (
        "do not fit: missing: ",
        "surplus: extra [3]",
        "misshapen: txt_in.bias is [127]",
    ):
        assert part in said

    name = "double_blocks.1.img_attn.qkv.weight"
    broken = {key: np.array(tensor) for key, tensor in source.tensors.items()}
    broken[name][200, 3] = np.nan
    save_file(broken, tmp_path / "flux.safetensors")
    with pytest.raises(
        InputError, match=f"1 tensor does .*: not finite: {name} contains infin"
    ) as caught:
        read_params(open_source(tmp_path, "transformer"), "transformer", jnp.float32, make({}))
    assert "damaged, or was saved with NaN" in str(caught.value)
    assert "fetch it again" in str(caught.value)
    assert "config.json" not in str(caught.value)


def test_sizes_that_the_file_does_not_tell(tmp_path: Path):
    model = tiny.transformer()
    tensors = rewritten("transformer", model, TRANSFORMER, original.TRANSFORMER)
    plain = {key: np.ascontiguousarray(tensor) for key, tensor in tensors.items()}
    save_file(plain, tmp_path / "flux.safetensors")
    with pytest.raises(InputError, match=r"heads have 16 channels and FLUX\.1's 128"):
        open_source(tmp_path, "transformer")
    del plain["txt_in.weight"], plain["double_blocks.0.img_attn.norm.query_norm.scale"]
    save_file(plain, tmp_path / "flux.safetensors")
    with pytest.raises(InputError, match=r"query_norm\.scale is missing, which determines a size"):
        open_source(tmp_path, "transformer")


def test_rules_join_and_swap_without_loss():
    shapes = {"a/kernel": (2, 4), "b/kernel": (2, 6), "c/kernel": (3, 8)}
    table = Table(
        (
            *original._joined("ab", ["a", "b"]),
            *original._rows("c", ["c"], original.Swapped(original.LINEAR)),
        )
    )
    flat = {path: np.random.default_rng(1).normal(size=shape) for path, shape in shapes.items()}
    tensors = to_torch(table, nest(flat))
    assert {name: tensor.shape for name, tensor in tensors.items()} == {
        "ab.weight": (10, 2), "c.weight": (8, 3)
    }  # fmt: skip
    np.testing.assert_array_equal(tensors["c.weight"][:4], flat["c/kernel"].T[4:])
    tree = nest({path: SimpleNamespace(shape=shape) for path, shape in shapes.items()})
    again = flatten(to_flax(table, tensors, tree))
    for path, leaf in flat.items():
        np.testing.assert_array_equal(again[path], leaf)
