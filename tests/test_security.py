"""Loading a file runs no code, and only the configured endpoint is contacted."""

import ast
import io
import pickle
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.endpoint import Endpoint, says

from erase.config.schema import AdapterConfig, BankConfig, Evaluation, Model
from erase.data.words.irrelevant import Words
from erase.data.words.sentences import Sentences
from erase.methods import esd
from erase.methods.settings.erase_anything import Lower, Upper
from erase.report import pictures
from erase.runs import RunConfig
from erase.runtime import processes
from erase.training import run
from flux_jax.errors import InputError, RunError

ROOT = Path(__file__).resolve().parents[1]
FILES = [
    path
    for folder in ("flux_jax", "erase", "convert", "benchmarks", "recipes", "configs")
    for path in sorted((ROOT / folder).rglob("*.py"))
]
# Modules whose formats run code when they are read.
PICKLES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}


class Runs:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def forbidden(tree: ast.AST) -> list[str]:
    """Imports and calls of a module that could run code from a file."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            names.append(getattr(node, "module", None) or "")
            found += [name for name in names if name.split(".")[0] in PICKLES]
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            given = {word.arg: ast.unparse(word.value) for word in node.keywords}
            if called in ("eval", "exec", "compile", "__import__", "os.system", "os.popen"):
                found.append(called)
            if called == "torch.load" and given.get("weights_only") != "True":
                found.append(called)
            risky = {"allow_pickle", "trust_remote_code", "shell"} & given.keys()
            found += [f"{called}({name})" for name in risky if given[name] != "False"]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_runs_what_it_reads(path: Path):
    assert forbidden(ast.parse(path.read_text())) == []


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from joblib import load",
        "eval(text)",
        "torch.load(path)",
        "np.load(path, allow_pickle=True)",
        "run(command, shell=True)",
        "AutoModel.from_pretrained(path, trust_remote_code=yes)",
    ],
)
def test_what_runs_programs_is_found(text: str):
    assert forbidden(ast.parse(text))


def test_pickled_maps_are_refused(tmp_path: Path):
    trap = tmp_path / "sprung"
    buffer = io.BytesIO()
    np.savez(buffer, before=np.array([Runs(trap)], object), after=np.zeros(1))
    (tmp_path / "attention.npz").write_bytes(buffer.getvalue())
    with pytest.raises(InputError, match=r"attention\.npz cannot be read"):
        pictures.heat_maps(tmp_path, {"attention": [{"before": "a", "after": "b"}]})
    assert not trap.exists()


CONFIG = RunConfig(
    concept="soccer ball",
    prompts=("a {} on grass",),
    synonyms=("football",),
    irrelevant=("cloud", "tree", "spoon"),
    upper=Upper(rsc=1 / 3),
    esd=esd.Settings(eta=1 / 3),
)
SENTENCES = Sentences("soccer ball", ("a soccer ball", "日本 soccer ball"), "m")
MADE = [
    (None, None),
    ({"": (CONFIG, SENTENCES)}, dict[str, tuple[RunConfig, Sentences]]),
    ({"a": Words("cat", (("sun", "key"), ("tree",)), "m at h")}, dict[str, Words]),
]


@pytest.mark.parametrize(("made", "kind"), MADE, ids=["nothing", "sentences", "words"])
def test_other_processes_get_what_the_first_made(made: Any, kind: Any):
    content = processes.written(lambda: made, kind)
    assert processes.read(content, kind) == made
    assert processes.read(processes.written(lambda: made, kind), kind) == made


@pytest.mark.parametrize("error", [InputError, RunError])
def test_other_processes_get_the_error_of_the_first(error: type[Exception]):
    def make() -> None:
        raise error("seed = x: mend it")

    with pytest.raises(error, match="seed = x: mend it") as caught:
        processes.read(processes.written(make, None), None)
    assert type(caught.value) is error


def test_other_processes_unpickle_nothing(tmp_path: Path):
    with pytest.raises(ValueError, match=r"utf-8|Expecting value"):
        processes.read(pickle.dumps(Runs(tmp_path / "sprung")), None)
    assert not (tmp_path / "sprung").exists()


@pytest.fixture
def spoken_to(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Addresses that this process connects to or looks up."""
    seen: list[Any] = []
    connect, look_up = socket.socket.connect, socket.getaddrinfo

    def noted(self: socket.socket, address: Any) -> None:
        seen.append(address)
        connect(self, address)

    def noted_too(host: Any, port: Any, *rest: Any, **more: Any) -> Any:
        seen.append((host, port))
        return look_up(host, port, *rest, **more)

    monkeypatch.setattr(socket.socket, "connect", noted)
    monkeypatch.setattr(socket.socket, "connect_ex", noted)
    monkeypatch.setattr(socket, "getaddrinfo", noted_too)
    return seen


@pytest.mark.slow
def test_a_run_speaks_to_its_endpoint_alone(
    endpoint: Endpoint, spoken_to: list[Any], tiny_folder: Path, tmp_path: Path
):
    endpoint.answers = [says('{"sentences": ["a soccer ball", "the soccer ball"]}')]
    config = replace(
        CONFIG,
        more_prompts=2,
        model=Model(str(tiny_folder)),
        height=16,
        width=16,
        steps=2,
        iterations=1,
        adapter=AdapterConfig(rank=2),
        bank=BankConfig(sentences=2, trajectories=2, batch=2),
        # Two losses are enough here, and compile in half the time.
        lower=Lower(attn=0.0),
        upper=Upper(negatives=2, pictures=1, rsc=0.0),
        evaluation=Evaluation(pictures=1, steps=1, batch=1, others=("cat",)),
    )
    run.run({"": config}, tmp_path / "run")
    place = ("127.0.0.1", endpoint.server.server_address[1])
    assert {tuple(address[:2]) for address in spoken_to} == {place}
